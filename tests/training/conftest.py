"""A small data set as people have it: conversations with images, with several turns, without an image."""

import pytest
import torch

import tokenflex
from tests.conftest import image
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.training import ChatDataset, FlexCollator, FlexTrainingArguments


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


ROWS = [
    {"id": "a", "image": image(0), "messages": turns("w1 w2", "w3 w4")},
    {"id": "b", "images": [image(1)], "messages": turns("<image> w5", "w6", "w7 w8", "w9 w10 w11")},
    {"id": "c", "messages": turns("w12 w13", "w14")},
    {"id": "d", "images": [image(2), image(3)], "messages": turns("<image> w1 <image> w2", "w15")},
]


class Forgetful(FlexCollator):
    """Takes the labels of row 1 away."""

    def __call__(self, samples):
        batch = super().__call__(samples)
        for row, sample in enumerate(samples):
            if sample.name.startswith("row 1 "):
                batch["labels"][row] = -100
        return batch


@pytest.fixture
def rows():
    return list(ROWS)


@pytest.fixture
def collator(processor):
    return FlexCollator(processor)


@pytest.fixture
def training_batch(collator):
    dataset = ChatDataset(ROWS)
    return collator([dataset[i] for i in range(len(ROWS))])


@pytest.fixture
def fresh():
    """A model of its own, for tests that change it."""

    def make(seed: int = 0, **parts):
        torch.manual_seed(seed)
        return tokenflex.wrap(tiny_llava_next(), **parts).train()

    return make


@pytest.fixture
def arguments(tmp_path):
    def make(**settings):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return FlexTrainingArguments(**(defaults | settings))

    return make

"""Random images, and a tiny host with something to learn."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import tokenflex
from tokenflex.contracts import VisualTokens
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import ChatDataset, FlexCollator, FlexTrainingArguments

torch.set_num_threads(1)  # the models are too small for more
settings.register_profile("small", max_examples=25, deadline=None)
settings.load_profile("small")


@pytest.fixture(scope="session")
def image():
    """Make random tokens; the same for the same seed."""

    def make(grid, *leading, dim=8, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return VisualTokens(torch.randn(*(leading or (1,)), grid.tokens, dim, generator=generator).to(dtype), grid)

    return make


@pytest.fixture(scope="session")
def built():
    """Make a part with seeded weights."""

    def make(config, dim=8, noise=0.0):
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        part = config.build(dim=dim)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        torch.random.set_rng_state(state)
        return part.eval()

    return make


ROWS = [
    {"image": Image.fromarray(np.random.default_rng(i).integers(0, 255, (40 + 9 * i, 50, 3), dtype=np.uint8)),
     "messages": [{"role": "user", "content": f"w{i} w2"}, {"role": "assistant", "content": f"w3 w{4 + i}"}]}
    for i in range(3)
]  # fmt: skip


@pytest.fixture(scope="session")
def dataset():
    return ChatDataset(ROWS)


@pytest.fixture(scope="session")
def collator():
    return FlexCollator(tiny_llava_next_processor())


@pytest.fixture
def training_batch(dataset, collator):
    return collator([dataset[i] for i in range(len(ROWS))])


@pytest.fixture
def fresh():
    """A wrapped tiny host of its own, for tests that change it."""

    def make(scaler):
        torch.manual_seed(0)
        return tokenflex.wrap(tiny_llava_next(), scaler=scaler).train()

    return make


@pytest.fixture
def arguments(tmp_path):
    return FlexTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=8, per_device_train_batch_size=len(ROWS), warmup_steps=0.0,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip

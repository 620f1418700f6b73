"""A tiny model, its processor, images."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

import tokenflex
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

settings.register_profile("no-clock", deadline=None)  # a test that is slow on a busy machine isn't wrong
settings.load_profile("no-clock")

torch.set_num_threads(1)  # the models are too small for more
SIZES = ((50, 40), (30, 70), (64, 64), (90, 20))


@pytest.fixture(scope="session")
def image():
    """The n-th image; sizes need other canvases and paddings."""

    def make(index: int) -> Image.Image:
        width, height = SIZES[index % len(SIZES)]
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def processor():
    return tiny_llava_next_processor()


@pytest.fixture(scope="session")
def flex():
    torch.manual_seed(0)
    return tokenflex.wrap(tiny_llava_next())


@pytest.fixture(scope="session")
def saved(flex, processor, tmp_path_factory):
    """Folders: ``model`` with its parts; ``host`` and ``parts`` apart; ``bare``, a model without a processor."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in (("model", flex), ("host", flex.host), ("bare", flex)):
        model.save_pretrained(folder / name)
        if name != "bare":
            processor.save_pretrained(folder / name)
    flex.save_parts(folder / "parts")
    return folder

"""Shared fixtures: tiny hosts, their processor, batches as in life."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import tokenflex
from tokenflex import offered
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

torch.set_num_threads(1)  # the models are too small for more
settings.register_profile("no-clock", deadline=None)  # a test that is slow on a busy machine isn't wrong
settings.load_profile("no-clock")

SIZES = ((50, 40), (30, 70), (64, 64), (90, 20))


def image(index: int) -> Image.Image:
    """A random image; sizes need other canvases and paddings."""
    width, height = SIZES[index % len(SIZES)]
    pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def host():
    return tiny_llava_next()


@pytest.fixture(scope="session")
def processor():
    return tiny_llava_next_processor()


@pytest.fixture(scope="session")
def flex(host):
    torch.manual_seed(0)
    return tokenflex.wrap(host)


@pytest.fixture(scope="session")
def batch(processor):
    """Make a batch from texts; every ``<image>`` gets the next image."""

    def make(*texts: str, side: str = "left", first: int = 0):
        count = sum(text.count("<image>") for text in texts)
        images = [image(first + i) for i in range(count)] or None
        return dict(processor(images=images, text=list(texts), padding=True, padding_side=side, return_tensors="pt"))

    return make


@pytest.fixture
def no_plugins(monkeypatch):
    """As if no other distribution offered anything."""
    monkeypatch.setattr(offered, "entry_points", lambda group: [])
    offered._installed.cache_clear()
    yield
    offered._installed.cache_clear()


TEXTS = ("w1 w2 <image> w3", "<image> w4 w5 w6 w7 :", "w9 <image> w3 w9 w9 w8 w9")


@pytest.fixture(params=["left", "right"])
def inputs(request, batch):
    return batch(*TEXTS, side=request.param)


@pytest.fixture
def left(batch):
    return batch(*TEXTS)

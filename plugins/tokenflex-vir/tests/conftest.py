"""A tiny InternVL with something to learn, and random tokens."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

import tokenflex
from tokenflex.contracts import VisualTokens
from tokenflex.testing.zoo.hosts import ZOO

torch.set_num_threads(1)  # the models are too small for more
settings.register_profile("small", max_examples=25, deadline=None)
settings.load_profile("small")

ROWS = [[1, "image", 2, 3, 4], ["image", 5, "image", 6, 7], [8, "image", 9, 1, 2, 5]]
ANSWER = 2
"""Words at the end of each row that are supervised."""


@pytest.fixture(scope="session")
def image():
    """Make random tokens; the same for the same seed."""

    def make(grid, *leading, dim=6, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return VisualTokens(torch.randn(*(leading or (1,)), grid.tokens, dim, generator=generator).to(dtype), grid)

    return make


@pytest.fixture
def fresh():
    """A wrapped tiny host of its own, for tests that change it."""

    def make(model_type="internvl", **parts):
        torch.manual_seed(0)
        chosen = {"scaler": "two-rates", "router": "tile-gate", "voter": "mean", "policy": "quantile-gate"} | parts
        return tokenflex.wrap(ZOO[model_type].build(), **chosen)

    return make


def plain_batch(flex, rows, side, first=0):
    return ZOO[flex.host.config.model_type].batch(flex.host.config, rows, side=side, first=first)


def batch_of(flex, rows, first=0):
    batch = plain_batch(flex, rows, "right", first)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        where = slice(length - ANSWER, length)
        labels[row, where] = batch["input_ids"][row, where]
    return batch | {"labels": labels}


@pytest.fixture
def training_batch():
    """Make a batch of rows with one or two images, the last words of each row being the answer."""
    return lambda flex, rows=ROWS, first=0: batch_of(flex, rows, first)


@pytest.fixture
def prompt():
    """Make the same batch for generating: padded on the left, without labels."""
    return lambda flex: plain_batch(flex, ROWS, "left")

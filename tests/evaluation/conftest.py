"""A handful of questions about images, in every format, and a model to answer them."""

import pytest
import torch

import tokenflex
from tests.conftest import image
from tokenflex.testing.tiny_hosts import tiny_llava_next

ROWS = [
    {
        "id": f"q{i}",
        "image": image(i),
        "question": f"w{i} w{i + 1}",
        "answer": f"w{i + 20}",
        "kind": ("even", "odd")[i % 2],
    }
    for i in range(7)
]


@pytest.fixture
def fresh():
    """A model of its own, for tests that change it."""

    def make(seed: int = 0, **parts):
        torch.manual_seed(seed)
        return tokenflex.wrap(tiny_llava_next(), **parts).eval()

    return make


@pytest.fixture(scope="session")
def still(host):
    """A model nobody changes."""
    torch.manual_seed(0)
    return tokenflex.wrap(host).eval()

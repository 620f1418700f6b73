"""A tiny model with random weights that answers on the page."""

import pytest
import torch

import tokenflex
from tests.conftest import image as drawn
from tokenflex.demo.answering import Model
from tokenflex.testing.tiny_hosts import tiny_llava_next


@pytest.fixture(scope="session")
def model(processor):
    torch.manual_seed(0)
    return Model(tokenflex.wrap(tiny_llava_next()).eval(), processor, "tiny <b>model</b>", new_tokens=4)


@pytest.fixture(scope="session")
def image():
    return drawn(1)


@pytest.fixture
def inputs_of(model):
    """The batch as anyone would make it by hand."""

    def make(image, text):
        return dict(model.processor(images=image, text=text, return_tensors="pt"))

    return make

"""A test class of transformers for one host: around the host itself, or around a `FlexModel` at its finest level."""

import copy
import functools
import importlib
import unittest
from typing import Any

import torch

import tokenflex
from tests.hf_suite.sources import PACKAGE
from tokenflex.model import FlexConfig
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import PICTURE

VARIANTS = ("host", "flex")
ROWS: tuple[tuple[int | str, ...], ...] = ((1, 2, PICTURE, 3, 4), (5, 2, PICTURE, 6, 7), (8, 9, PICTURE, 3, 1))
"""Words and pictures of the batch: of one length, since the tests cut it as they like."""


class ModelTester:
    """What transformers' tests ask of a model: a configuration, inputs, and the sizes that both have.

    Args:
        parent: the running test.
        name: ``model_type`` of the host.
        variant: ``host`` or ``flex``.
    """

    is_training = True

    def __init__(self, parent: unittest.TestCase, name: str, variant: str) -> None:
        self.parent, self.name, self.variant = parent, name, variant
        host = built(name)
        text = host.config.get_text_config()
        self.batch_size = len(ROWS)
        self.seq_length = self.inputs()["input_ids"].shape[1]
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads = text.num_attention_heads

    def get_config(self) -> Any:
        """A fresh configuration of the class under test."""
        host = copy.deepcopy(built(self.name).config)
        return host if self.variant == "host" else FlexConfig(host=host, parts=copy.deepcopy(parts(self.name)))

    def inputs(self) -> dict[str, torch.Tensor]:
        """A batch in which every row has one picture; all pictures have the same size and pixels of their own."""
        tiny, config = ZOO[self.name], built(self.name).config
        rows = [tiny.batch(config, [row]) for row in ROWS]
        batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        noise = torch.Generator().manual_seed(0)
        for name, value in batch.items():
            if value.is_floating_point():
                batch[name] = torch.randn(value.shape, generator=noise)
        return batch

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """Configuration and inputs; images and their placeholders always come together."""
        return self.get_config(), self.inputs()


@functools.cache
def built(name: str) -> Any:
    """The tiny host."""
    return tiny_llava_next() if name == "llava_next" and name not in ZOO else ZOO[name].build()


@functools.cache
def parts(name: str) -> Any:
    """The description of a `FlexModel`'s parts that always picks the finest level."""
    return tokenflex.wrap(built(name), policy="constant").config.parts


def make(name: str, variant: str) -> type[unittest.TestCase]:
    """The test class.

    Args:
        name: ``model_type`` of the host.
        variant: ``host`` for the host itself, ``flex`` for a `FlexModel` around it.
    """
    common = importlib.import_module(f"{PACKAGE}.test_modeling_common")
    generation = importlib.import_module(f"{PACKAGE}.generation.test_utils")
    kind = type(built(name))

    class Suite(common.ModelTesterMixin, generation.GenerationTesterMixin, unittest.TestCase):
        """transformers' tests of a generating image-text model."""

        all_model_classes = (kind if variant == "host" else tokenflex.FlexModel,)
        all_generative_model_classes = all_model_classes
        pipeline_model_mapping: dict[str, Any] = {}
        _is_composite = True
        test_all_params_have_gradient = False  # towers are read before their last layers, and no router is trained here

        def setUp(self) -> None:
            self.model_tester = ModelTester(self, name, variant)

        def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
            """A `FlexModel` is asked for what its host's class is asked for."""
            return super()._prepare_for_class(inputs_dict, kind, return_labels=return_labels)

    return Suite

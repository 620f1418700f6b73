"""A test class of transformers for one host: around the host itself, or around a `FlexModel` at its finest level."""

import contextlib
import copy
import functools
import importlib
import inspect
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

import tokenflex
from tests.hf_suite.sources import PACKAGE
from tokenflex.model import FlexConfig
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE, IMAGE

VARIANTS = ("host", "flex")
ROWS: tuple[tuple[int | str, ...], ...] = tuple((n, 2, AN_IMAGE, 3, n + 1) for n in range(7))
"""Words and images of the batch: rows of one length, and as many as any test takes, since tests cut batches."""


ORIGINAL_FORMAT = ("test_reverse_loading_mapping",)
"""Tests of what ``save_pretrained(save_original_format=True)`` writes; a `FlexModel` does so when it is asked to."""


class Supervised(dict[str, Any]):
    """Inputs in which labels at placeholders are -100, whoever sets them.

    Args:
        inputs: of a model.
        placeholders: where images stand, ``(rows, length)``.
    """

    def __init__(self, inputs: dict[str, Any], placeholders: torch.Tensor) -> None:
        super().__init__()
        self.placeholders = placeholders
        for name, value in inputs.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep an input."""
        if name == "labels" and value is not None and value.shape == self.placeholders.shape:
            value = value.masked_fill(self.placeholders, -100)
        super().__setitem__(name, value)

    def __deepcopy__(self, memo: Any) -> "Supervised":
        """A copy that goes on doing so."""
        return Supervised(copy.deepcopy(dict(self), memo), self.placeholders)


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
        self.image_token_id = IMAGE

    def get_config(self) -> Any:
        """A fresh configuration of the class under test, in which no kernel of attention is chosen yet."""
        known = built(self.name).config
        host = type(known).from_dict(known.to_dict())
        return host if self.variant == "host" else FlexConfig(host=host, parts=copy.deepcopy(parts(self.name)))

    def inputs(self) -> dict[str, torch.Tensor]:
        """A batch in which every row has one image; all images have the same size and pixels of their own."""
        tiny, config = ZOO[self.name], built(self.name).config
        rows = [tiny.batch(config, [row]) for row in ROWS]
        batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        noise = torch.Generator().manual_seed(0)
        for name, value in batch.items():
            if value.is_floating_point():
                batch[name] = torch.randn(value.shape, generator=noise)
        return batch

    def completed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with the images of their rows, which some tests leave out or cut."""
        ids: Any = inputs.get("input_ids")
        rows = 0 if ids is None else len(ids)
        whole = self.inputs()
        if rows and torch.equal(ids, whole["input_ids"][:rows]):
            share = {name: value[: len(value) * rows // self.batch_size] for name, value in whole.items()}
            inputs |= {name: value for name, value in share.items() if name not in ("input_ids", "attention_mask")}
        return inputs if ids is None else Supervised(inputs, ids == self.image_token_id)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """Configuration and inputs; images and their placeholders always come together."""
        return self.get_config(), self.inputs()


@functools.cache
def built(name: str) -> Any:
    """The tiny host."""
    return ZOO[name].build()


@functools.cache
def parts(name: str) -> Any:
    """The description of a `FlexModel`'s parts that always picks the finest level."""
    return tokenflex.wrap(built(name), policy="constant").config.parts


@contextlib.contextmanager
def told_of_host(kind: type) -> Iterator[None]:
    """Within, the class `FlexModel` has the signature of ``forward`` and the flag for static caches of one host.

    Its instances know their host, the class doesn't, and some tests ask the class and would be skipped.

    Args:
        kind: the host's class.
    """
    plain: Any = tokenflex.FlexModel.forward
    own = list(inspect.signature(plain).parameters.values())
    theirs = list(inspect.signature(getattr(kind, "forward")).parameters.values())[1:]  # noqa: B009
    named = [one for one in own if one.kind is not one.VAR_KEYWORD]
    known = {one.name for one in named}
    more = [
        one.replace(kind=one.KEYWORD_ONLY)
        for one in theirs
        if one.name not in known and one.kind is not one.VAR_KEYWORD
    ]
    rest = [one for one in theirs if one.kind is one.VAR_KEYWORD] or [own[-1]]
    plain.__signature__ = inspect.Signature([*named, *more, *rest])
    try:
        flag = "_can_compile_fullgraph"
        with mock.patch.object(tokenflex.FlexModel, flag, getattr(kind, flag)):
            yield
    finally:
        del plain.__signature__


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
            """A tester of the host; for a `FlexModel` also what only its instances can tell (`told_of_host`)."""
            self.model_tester = ModelTester(self, name, variant)
            if variant == "flex":
                self.enterContext(told_of_host(kind))
                if self._testMethodName in ORIGINAL_FORMAT:
                    original = functools.partialmethod(tokenflex.FlexModel.save_pretrained, save_original_format=True)
                    self.enterContext(mock.patch.object(tokenflex.FlexModel, "save_pretrained", original))

        def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
            """As the host's class is asked; images come with their placeholders, on which no label stands."""
            inputs = super()._prepare_for_class(inputs_dict, kind, return_labels=return_labels)
            return self.model_tester.completed(inputs)

        def prepare_config_and_inputs_for_generate(self, batch_size: int = 2) -> Any:
            """Rows of the batch with their images, which the test's own method cuts as if there were one per row."""
            config, inputs = super().prepare_config_and_inputs_for_generate(batch_size)
            return config, self.model_tester.completed(inputs)

    return Suite

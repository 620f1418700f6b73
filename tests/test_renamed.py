"""Names of version 0.1 that still work, with a warning that says what they are called now."""

import importlib

import pytest
import torch

import tokenflex
from tokenflex.contracts import Grid, VisualTokens

IMAGE = VisualTokens(torch.zeros(1, 4, 2), Grid(2, 2), video=True, separators=torch.ones(3, 2))


@pytest.mark.parametrize(("old", "new"), [("clip", "video"), ("marks", "separators")])
def test_fields_of_visual_tokens(old, new):
    with pytest.warns(DeprecationWarning, match=rf"VisualTokens\.{old} is now called VisualTokens\.{new}"):
        assert getattr(IMAGE, old) is getattr(IMAGE, new)


def test_grids_of_the_images_a_scaler_asks_for():
    scaler = tokenflex.scalers.get("resolution").Config().build()
    with pytest.warns(DeprecationWarning, match=r"Scaler\.pictures is now called Scaler\.image_grids"):
        assert scaler.pictures(Grid(8, 8)) == scaler.image_grids(Grid(8, 8))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("tokenflex.hosts.words", "tokenflex.hosts.instruction", "instruction_mask"),
        ("tokenflex.hosts.words", "tokenflex.hosts.instruction", "instructions_of"),
    ],
)
def test_modules(old, new, name):
    module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now called {new}.{name}"):
        assert getattr(module, name) is getattr(importlib.import_module(new), name)


def test_logits_at_targets():
    with pytest.warns(DeprecationWarning, match=r"is now called tokenflex\.hosts\.targets\.target_logits"):
        assert tokenflex.training.answer_logits is tokenflex.training.target_logits


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("tokenflex.measure", "Answer", "AnswerProfile"),
        ("tokenflex.measure", "Setting", "MeasuredSetting"),
        ("tokenflex.serving", "chat_parts", "chat_items"),
    ],
)
def test_names_that_say_what_they_are(module, old, new):
    found = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} is now called {module}\.{new}"):
        assert getattr(found, old) is getattr(found, new)


def test_what_never_was_is_an_error():
    with pytest.raises(AttributeError, match=r"module 'tokenflex\.hosts\.words' has no attribute 'nothing'"):
        importlib.import_module("tokenflex.hosts.words").nothing  # noqa: B018 (asked for on purpose)

"""Names of version 0.1 that still work, with a warning that says what they are called now."""

import importlib
import re
import subprocess
import sys

import pytest
import torch

import tokenflex
from tokenflex.contracts import Grid, VisualTokens

IMAGE = VisualTokens(torch.zeros(1, 4, 2), Grid(2, 2), video=True, separators=torch.ones(3, 2))


def named(path):
    """What a dotted name leads to."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


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
    ("old", "new"),
    [
        ("tokenflex.measure.Answer", "tokenflex.profiling.AnswerProfile"),
        ("tokenflex.measure.Setting", "tokenflex.profiling.MeasuredSetting"),
        ("tokenflex.serving.chat_parts", "tokenflex.serving.chat_items"),
    ],
)
def test_names_that_say_what_they_are(old, new):
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(old)} is now called {re.escape(new)};"):
        assert named(old) is named(new)


@pytest.mark.parametrize(
    ("old", "new"), [("tokenflex.measure", "tokenflex.profiling"), ("tokenflex.released", "tokenflex.conversion")]
)
def test_packages_that_carry_their_commands_names(old, new):
    """Every public name of the new package, and who asks for it by the old one is told on that very line."""
    for name in importlib.import_module(new).__all__:
        with pytest.warns(DeprecationWarning, match=f"^{old}.{name} is now called {new}.{name};") as told:
            assert named(f"{old}.{name}") is named(f"{new}.{name}")
        assert {one.filename for one in told} == {__file__}


def test_names_are_imported_from_the_packages_former_places():
    with pytest.warns(DeprecationWarning, match="is now called tokenflex.profiling.Plan") as told:
        from tokenflex.measure import Plan
    assert [one.filename for one in told] == [__file__]
    assert Plan.__module__ == "tokenflex.profiling.plan"


@pytest.mark.parametrize("old", ["tokenflex.measure", "tokenflex.released"])
def test_former_packages_are_light_and_silent_until_they_are_asked(old):
    script = f"import sys, {old}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", script], check=True)


def test_what_never_was_is_an_error():
    with pytest.raises(AttributeError, match=r"module 'tokenflex\.hosts\.words' has no attribute 'nothing'"):
        importlib.import_module("tokenflex.hosts.words").nothing  # noqa: B018 (asked for on purpose)

"""Converted checkpoints, made once, and the table of deviations printed at the end of a run."""

from collections import defaultdict

import pytest
import torch
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.parity.golden import DATA
from tokenflex import conversion

DEVIATIONS: dict[str, float] = defaultdict(float)


@pytest.fixture
def record(request):
    """Note a deviation under the golden file (and figure) it belongs to."""

    def note(name, value):
        DEVIATIONS[name] = max(DEVIATIONS[name], value)

    return note


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter):
    """With -v, the largest deviation per golden file."""
    if DEVIATIONS and terminalreporter.verbosity >= 0:
        terminalreporter.section("largest deviations from the published implementation")
        for name, value in sorted(DEVIATIONS.items()):
            terminalreporter.write_line(f"{name}: {value:.1e}")


@pytest.fixture(scope="session", params=["e2e_g8", "e2e_g24"])
def converted(request, tmp_path_factory):
    """(name of the golden set, model in float32 from the converted folder, the folder)."""
    out = tmp_path_factory.mktemp(request.param) / "converted"
    conversion.convert(DATA / request.param / "checkpoint", out)
    host = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    return request.param, tokenflex.load_parts(out, host=host).eval(), out

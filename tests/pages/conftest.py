"""An evaluation with right, partly right and wrong answers, and images."""

import pytest

from tests.conftest import image
from tests.evaluation.tables import made
from tests.pages.test_hostile import HOSTILE
from tokenflex.evaluation import drawing
from tokenflex.evaluation.report import report

SETTINGS = {
    "level:0": ([1, 0.5, 0, 1], [2] * 4),
    "level:1": ([1, 1, 1, 1], [8] * 4),
    "router": ([1, 0.5, 0, 1], [2, 8, 2, 8], [[0], [1], [0], [1]]),
}


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """Its folder, with the report."""
    shown = drawing.stored(image(0))
    folder = made(
        tmp_path_factory.mktemp("pieces"), SETTINGS, kinds=["fine", "fine", "coarse", HOSTILE[0]],
        images=dict.fromkeys(range(4), (shown,)),
    )  # fmt: skip
    report(folder, resamples=20)
    return folder


@pytest.fixture(scope="session")
def text(reported):
    """Its page."""
    return (reported / "report.html").read_text(encoding="utf-8")

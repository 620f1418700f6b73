"""Plots have text of a readable size on every screen, and colours that can be told from the page in both themes."""

import re

import pytest

from tests.evaluation.tables import made
from tests.profiling.test_report import made as profiled
from tokenflex.evaluation.plot import pareto
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.summary import summarise
from tokenflex.pages import Series, points
from tokenflex.pages.plot import PALETTE, SHAPES
from tokenflex.profiling.page import image

LEAST = 11
"""CSS pixels of a plot's text."""
NARROWEST = 320 - 2 * 16
"""CSS pixels that a page leaves a plot on the narrowest phone."""


@pytest.fixture(scope="module")
def plot(tmp_path_factory):
    columns = {f"level:{i}": ([i > 0, i > 1], [1 + i, 1 + i]) for i in range(3)}
    columns |= {"router": ([1, 0], [2, 1], [[1], [0]]), "router@ratio=0.3": ([0, 0], [1, 1], [[0], [0]])}
    folder = made(tmp_path_factory.mktemp("plotted"), columns)
    return pareto(summarise(Evaluation(folder), resamples=20))


def smallest_text(svg, shown=None):
    """CSS pixels of the smallest text, of a drawing that is shown ``shown`` pixels wide or at its own size."""
    width, unit = re.search(r'width="([\d.]+)(pt)"', svg).groups()
    own = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    pixels = shown or float(width) * {"pt": 96 / 72}[unit]
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[a-z]+ )?([\d.]+)px", svg)]
    assert sizes
    return min(sizes) * pixels / own


def test_text_is_never_smaller_than_eleven_pixels(plot):
    assert smallest_text(plot.wide) >= LEAST
    assert smallest_text(plot.narrow, NARROWEST) >= LEAST
    (batch,) = profiled().batches
    even = image(batch, batch.break_even[0])
    assert smallest_text(even.narrow, NARROWEST) >= LEAST
    assert not even.wide


def test_the_measure_of_text_can_fail(plot):
    assert smallest_text(plot.wide, 358) < LEAST  # the wide drawing on a phone, which the style sheet never shows


def test_colours_are_the_themes(plot):
    for svg in (plot.wide, plot.narrow):
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(PALETTE)
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "<style" not in svg


def test_drawings_of_one_page_share_no_id(plot):
    wide, narrow = (set(re.findall(r'\sid="([^"]+)"', svg)) for svg in (plot.wide, plot.narrow))
    assert wide
    assert not wide & narrow
    for svg, ids in ((plot.wide, wide), (plot.narrow, narrow)):
        referred = {one or other for one, other in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)}
        assert referred
        assert referred <= ids


def test_the_same_results_give_the_same_drawing():
    series = [Series("a", "red", "o", [(1.0, 0.5), (2.0, 0.7)])]
    one, two = (points(series, across="x", up="y", label="l") for _ in range(2))
    assert (one.wide, one.narrow) == (two.wide, two.narrow)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("name", [name for name in PALETTE if name not in ("paper", "rule", "shade", "accent", "hint")])
def test_colours_stand_out_from_every_ground(name, theme):
    for ground in ("paper", "shade", "accent", "hint"):
        one, other = sorted((luminance(PALETTE[name][theme]), luminance(PALETTE[ground][theme])))
        least = 4.5 if name in ("ink", "quiet") or ground == "paper" else 3.0
        assert (other + 0.05) / (one + 0.05) >= least, ground


def test_every_marker_has_a_shape_in_legends(plot):
    assert {one.marker for one in plot.legend} <= set(SHAPES)
    assert [one.label for one in plot.legend if "budgets" in one.label] == [
        "router under budgets, from left to right: ratio=0.3"
    ]

"""Plots as SVG in the page's own colours, once for wide screens and once for narrow ones; neither is shrunk."""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenflex.markup import readable
from tokenflex.pages.own import Own

PALETTE = {
    "ink": ("#0f172a", "#e2e8f0"),
    "paper": ("#ffffff", "#0b1120"),
    "quiet": ("#475569", "#a3b1c6"),
    "rule": ("#d5dce6", "#33415c"),
    "shade": ("#f1f5f9", "#162033"),
    "accent": ("#fdeeee", "#3a1a22"),
    "hint": ("#eefaf1", "#12301f"),
    "grey": ("#52606f", "#94a3b8"),
    "red": ("#c81e1e", "#f87171"),
    "amber": ("#a85b05", "#fbbf24"),
    "green": ("#147a3a", "#4ade80"),
    "blue": ("#2360e0", "#60a5fa"),
    "purple": ("#8a2be2", "#c084fc"),
    "cyan": ("#0b7286", "#22d3ee"),
    "pink": ("#c81e6f", "#f472b6"),
    "lime": ("#4a770e", "#a3e635"),
    "brown": ("#8f3d0d", "#fb923c"),
}
"""Names of colours, and what they are in light and dark themes."""
SHAPES = {
    "o": "M8 3a5 5 0 1 0 .01 0z",
    "s": "M3 3h10v10h-10z",
    "*": "M8 1l2 4.7 5.1.4-3.9 3.3 1.2 5L8 11.7l-4.4 2.7 1.2-5L.9 6.1 6 5.7z",
    "x": "M3 5l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
    "P": "M6 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "+": "M7 2h2v5h5v2h-5v5h-2v-5h-5v-2h5z",
    "^": "M8 2l6 11h-12z",
    "v": "M8 14l6-11h-12z",
    "D": "M8 1l6 7-6 7-6-7z",
    "": "M1 7h6v2h-6zM9 7h6v2h-6z",
    "-": "M1 7h14v2h-14z",
}
"""Markers of matplotlib as paths of 16 x 16 for legends; without one it is a broken line, ``-`` is a whole one."""
WIDE, NARROW = (9.0, 4.8), (3.0, 3.6)
"""Inches. A narrow plot is as wide as a phone of 320 CSS pixels has room for, and grows with larger ones."""
POINTS = {WIDE: 10.5, NARROW: 9.0}
"""Size of the text; 9 points are 12 CSS pixels."""
OWN_STYLE = re.compile(r"<style[^>]*>[^<]*</style>")
TAG = re.compile(r"<[a-zA-Z/][^<>]*>")
Draw = Callable[[Axes, bool], None]
"""Draws on axes; told whether they are the narrow ones."""


@dataclass(frozen=True)
class Series:
    """Points that belong together, as they are drawn and as the legend names them.

    Attributes:
        colour: a key of `PALETTE`.
        marker: a key of `SHAPES`.
        points: (x, y) each.
        spread: per point the 95 % intervals of x and of y; empty for none.
        line: matplotlib's style of the line between points; empty for none.
        notes: per point what is written beside it on wide screens; empty for none.
    """

    label: str
    colour: str
    marker: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[tuple[tuple[float, float], tuple[float, float]]] = ()
    line: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """A plot as markup.

    Attributes:
        wide, narrow: one SVG each; ``wide`` is empty where the narrow one serves all screens.
        legend: what its marks mean.
        title: what stands above it; empty for nothing.
    """

    wide: Own
    narrow: Own
    legend: tuple[Series, ...] = ()
    title: str = ""


def points(series: Sequence[Series], *, across: str, up: str, label: str) -> Plot:
    """Scores against tokens.

    Args:
        across, up: what the axes are called.
        label: what screen readers say of the plot.
    """

    def draw(axes: Axes, narrow: bool) -> None:
        for one in series:
            _series(axes, one, narrow)
        axes.set_xlim(left=0)

    kept = tuple(one for one in series if one.points)
    return drawn_plot(draw, across=across, up=up, label=label, legend=kept)


def drawn_plot(
    draw: Draw, *, across: str, up: str, label: str, legend: Sequence[Series] = (), title: str = "", both: bool = True
) -> Plot:
    """What ``draw`` draws.

    Args:
        across, up, label: as of `points`.
        both: False: only the narrow one, for plots that stand side by side.
    """
    sizes = (WIDE, NARROW) if both else (NARROW,)
    made = [_svg(draw, size, across, up, label, f"{title}{label}") for size in sizes]
    return Plot(made[0] if both else Own(), made[-1], tuple(legend), title)


def _svg(draw: Draw, size: tuple[float, float], across: str, up: str, label: str, salt: str) -> Own:
    narrow, name = size == NARROW, "narrow" if size == NARROW else "wide"
    ink, rule = PALETTE["ink"][0], PALETTE["rule"][0]
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": f"{salt}{name}", "font.size": POINTS[size],
        "axes.titlesize": POINTS[size], "axes.labelsize": POINTS[size], "xtick.labelsize": POINTS[size],
        "ytick.labelsize": POINTS[size], "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink,
        "ytick.color": ink, "axes.edgecolor": ink, "grid.color": rule,
        "text.parse_math": False, "text.usetex": False,  # names may have dollars in them
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes, narrow)
        axes.set(xlabel=across, ylabel=up)
        axes.locator_params(nbins=5 if narrow else 8)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = target.getvalue()
    prefix = f"{name}{hashlib.blake2b(salt.encode(), digest_size=4).hexdigest()}-"
    text = OWN_STYLE.sub("", text[text.index("<svg") :], count=1)  # the page's style sheet says the same
    text = TAG.sub(lambda tag: _themed(tag[0], prefix), text)
    opening = f'<svg class="{name}" role="img" aria-label="{escape(readable(label))}"'
    return Own(text.replace("<svg", opening, 1))  # matplotlib escapes what it is given


def _themed(tag: str, prefix: str) -> str:
    """A tag with the theme's colours, and with ids that no other drawing of the page has."""
    for name, (light, _) in PALETTE.items():
        tag = tag.replace(light, f"var(--{name})")
    return re.sub(r'(\sid="|href="#|url\(#)', lambda found: found[0] + prefix, tag)


def _series(axes: Axes, one: Series, narrow: bool) -> None:
    if not one.points:
        return
    order = sorted(range(len(one.points)), key=lambda i: one.points[i])
    xs, ys = ([one.points[i][axis] for i in order] for axis in (0, 1))
    bars: dict[str, Any] = {}
    if one.spread:
        for bar, axis, values in (("xerr", 0, xs), ("yerr", 1, ys)):
            spread = [one.spread[i][axis] for i in order]
            bars[bar] = [[max(0.0, abs(ends[end] - value)) for ends, value in zip(spread, values, strict=True)]
                         for end in (0, 1)]  # fmt: skip
    size = {"*": 14, "": 0}.get(one.marker, 7) * (0.8 if narrow else 1)
    axes.errorbar(
        xs, ys, **bars, fmt=one.marker, linestyle=one.line or "none", color=PALETTE[one.colour][0], markersize=size,
        linewidth=1.3, elinewidth=1, capsize=0 if narrow else 2, markeredgewidth=2 if one.marker in ("x", "+") else 1,
    )  # fmt: skip
    if not narrow:
        for i, note in enumerate(one.notes):
            axes.annotate(readable(note), one.points[i], (8, -11), textcoords="offset points")

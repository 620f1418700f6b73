"""Charts without text, drawn by matplotlib."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

CHARTS = ("bar", "line", "pie", "scatter")
SIDE = 192


@dataclass(frozen=True)
class Chart:
    """A chart and where its bars end.

    Attributes:
        bars: colour, and the middle of its upper edge in pixels; of bar charts only.
    """

    image: Image.Image
    kind: str
    bars: tuple[tuple[str, float, float], ...]


def chart(kind: str, rng: np.random.Generator, colours: Mapping[str, tuple[int, int, int]]) -> Chart:
    """A random chart of a kind, 192 x 192 pixels; the lowest 28 are left free."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paper = rng.uniform(0.9, 1.0, 3).tolist()
    figure = Figure(figsize=(SIDE / 96, SIDE / 96), dpi=96, facecolor=(paper[0], paper[1], paper[2]))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.17, 0.88, 0.78))
    names = [list(colours)[i] for i in rng.permutation(len(colours))]
    paints = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in (colours[name] for name in names)]
    axes.set(xticks=[], yticks=[])
    heights: list[float] = []
    if kind == "bar":
        heights = rng.uniform(0.15, 1.0, int(rng.integers(3, 5))).tolist()
        axes.bar([*range(len(heights))], heights, width=0.7, color=paints[: len(heights)])
        axes.set_ylim(0, 1.25)
    elif kind == "line":
        for paint in paints[: int(rng.integers(1, 4))]:
            axes.plot(rng.uniform(0, 1, 7).cumsum() * rng.choice([-1, 1]), color=paint, linewidth=2.5)
    elif kind == "pie":
        axes.pie(rng.uniform(0.15, 1.0, int(rng.integers(3, 6))), colors=paints)
    else:
        axes.scatter(rng.normal(size=30), rng.normal(size=30), color=paints[0], s=22)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    tops = [axes.transData.transform((place, height)) for place, height in enumerate(heights)]
    return Chart(image, kind, tuple((names[i], float(x), SIDE - float(y)) for i, (x, y) in enumerate(tops)))

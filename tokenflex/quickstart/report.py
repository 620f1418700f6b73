"""What the embedded default shows: a table on the screen, ``report.json`` and ``report.html``."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, select_autoescape
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenflex.contracts import Grid
from tokenflex.files import locked, sweep, write_whole
from tokenflex.ops.pooling import Windows
from tokenflex.quickstart.evaluate import Answers, Exam
from tokenflex.quickstart.images import CELL, COARSE_KINDS, FINE_KINDS

Draw = Callable[[Image.Image, int], Image.Image]
"""From an image and a level to a drawing of what was kept."""
KINDS = (*FINE_KINDS, *COARSE_KINDS)
SHOWN = 24
ZOOM = 3


SETTINGS = (
    ("smaller_image", "smaller image", "s", "#64748b"),
    ("router", "router", "*", "#dc2626"),
    ("random_router", "random router", "x", "#ca8a04"),
    ("reconstruction_router", "reconstruction", "P", "#2563eb"),
    ("random_reconstruction", "random reconstr.", "+", "#93c5fd"),
    ("escalate", "escalate", "^", "#7c3aed"),
    ("router_escalate", "router, escalate", "v", "#c026d3"),
    ("oracle", "oracle", "D", "#16a34a"),
)
"""Key of the result, name in tables, marker and colour in the plot; those without an entry weren't run."""


def rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The table's lines: a name and a summary each."""
    levels = [(f"level {i}", summary) for i, summary in enumerate(result["levels"])]
    return [*levels, *((name, result[key]) for key, name, _, _ in SETTINGS if key in result)]


def show(console: Console, result: dict[str, Any], folder: Path) -> None:
    """Print the table."""
    finest = result["levels"][-1]["tokens_mean"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("setting", no_wrap=True)
    for head in ("tokens", "share", "tower", "right", *KINDS):
        table.add_column(head, justify="right", no_wrap=True)
    for name, summary in rows(result):
        kinds = (f"{summary['accuracy_by_kind'][kind]:.2f}" for kind in KINDS)
        tokens, tower = summary["tokens_mean"], f"{100 * summary['tower']:.0f} %"
        share = f"{100 * tokens / finest:.0f} %"
        table.add_row(name, f"{tokens:.1f}", share, tower, f"{summary['accuracy']:.3f}", *kinds)
    console.print(table)
    untrained = (
        " Smaller image: the smallest that the host takes, where it takes several; no stage trained on it."
        " Reconstruction: a router without training, which looks at the image only; random reconstr.: its own "
        "choices at random."
    )
    console.print(
        f"{result['questions']} held-out questions, answered with generate; {100 * result['fine_share']:.0f} % of them "
        f"need fine detail ({', '.join(FINE_KINDS)}). Tokens: visual tokens per image, mean, of all passes. Tower: "
        "work of the vision tower, of that at the finest level. Random router: the router's own choices, dealt out at "
        f"random.{untrained if 'reconstruction_router' in result else ''}"
    )
    for line in promises(result):
        console.print(line)
    spent = sum(result["seconds"].values())
    console.print(f"{spent:.0f} s on {result['device']}. Wrote report.json, report.html and model/ to {folder}")


def promises(result: dict[str, Any]) -> list[str]:
    """What was promised of each way of escalating, and what came of it."""
    found: list[str] = []
    for key, name, _, _ in SETTINGS:
        summary = result.get(key, {})
        told = summary.get("escalate")
        if told is None:
            continue
        start = "no router was asked" if key == "escalate" else "the router's level is the first that is tried"
        found.append(
            f"{name[0].upper()}{name[1:]}: {start}. Calibrated on {told['calibrated']['rows']} other questions: with "
            f"probability {told['confidence']:g} at most {100 * told['risk']:g} % of the answers differ from the "
            f"finest level's. On these questions {100 * summary['differs_from_finest']:.1f} % did, with "
            f"{summary['passes_mean']:.2f} passes of the language model per question."
        )
    return found


def write(folder: Path, result: dict[str, Any], exam: Exam, finest: Answers, routed: Answers, draw: Draw) -> None:
    """Write ``report.json`` and ``report.html``, each complete or not at all."""
    source = files("tokenflex.quickstart").joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=select_autoescape(default=True)).from_string(source)
    page = template.render(
        result=result,
        rows=rows(result),
        kinds=KINDS,
        fine_kinds=FINE_KINDS,
        finest=result["levels"][-1]["tokens_mean"],
        plot=plot(result),
        promises=promises(result),
        cards=cards(exam, finest, routed, draw),
    )
    with locked(folder):
        sweep(folder, "report.*")
        write_whole(folder / "report.json", json.dumps(result, indent=2) + "\n")
        write_whole(folder / "report.html", page)


def plot(result: dict[str, Any]) -> str:
    """Accuracy against visual tokens, as SVG markup."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        levels = result["levels"]
        axes.plot(
            [s["tokens_mean"] for s in levels],
            [s["accuracy"] for s in levels],
            "o-",
            color="#64748b",
            label="fixed level",
        )
        for key, label, marker, colour in SETTINGS:
            point = result.get(key)
            if point is None:
                continue
            size = 16 if marker == "*" else 9
            axes.plot(
                point["tokens_mean"], point["accuracy"], marker, color=colour, markersize=size, label=label,
                linestyle="none", markeredgewidth=2,
            )  # fmt: skip
        axes.set(xlabel="mean visual tokens per image", ylabel="accuracy")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg")
    return target.getvalue()[target.getvalue().index("<svg") :]


def cards(exam: Exam, finest: Answers, routed: Answers, draw: Draw) -> list[dict[str, Any]]:
    """The first questions of each kind, with the routed answer and the chosen grid drawn over the image."""
    shown: list[dict[str, Any]] = []
    per_kind = -(-SHOWN // len(KINDS))
    for kind in KINDS:
        places = [i for i, (_, question) in enumerate(exam) if question.kind == kind][:per_kind]
        for i in places:
            image, question = exam[i]
            level = int(routed.levels[i])
            shown.append(
                {
                    "question": question.question,
                    "kind": kind,
                    "expected": question.answer,
                    "answer": routed.texts[i] or "(nothing)",
                    "finest": finest.texts[i] or "(nothing)",
                    "right": bool(routed.right[i]),
                    "level": level,
                    "tokens": int(routed.tokens[i]),
                    "of": int(finest.tokens[i]),
                    "image": _embedded(draw(image.image, level)),
                }
            )
    return shown


def pooled(windows: Windows) -> Draw:
    """Draws the cells of the pooled grid, one per token."""

    def draw(image: Image.Image, level: int) -> Image.Image:
        down, across = windows[level]
        return gridded(image, (float(down * CELL * ZOOM), float(across * CELL * ZOOM)))

    return draw


def resized(grids: Sequence[Grid]) -> Draw:
    """Draws the image as it was encoded, and its tokens.

    Args:
        grids: of the tokens, per level.
    """

    def draw(image: Image.Image, level: int) -> Image.Image:
        grid = grids[level]
        small = image.resize((grid.cols * CELL, grid.rows * CELL), Image.Resampling.BICUBIC)
        shown = small.resize(image.size, Image.Resampling.NEAREST)
        return gridded(shown, (image.height * ZOOM / grid.rows, image.width * ZOOM / grid.cols))

    return draw


def gridded(image: Image.Image, cell: tuple[float, float]) -> Image.Image:
    """The image, enlarged, with lines between cells.

    Args:
        cell: (height, width) in pixels of the enlarged image.
    """
    large = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for i in range(round(large.width / cell[1]) + 1):
        x = min(round(i * cell[1]), large.width - 1)
        pen.line([(x, 0), (x, large.height)], fill=(255, 255, 255), width=1)
    for i in range(round(large.height / cell[0]) + 1):
        y = min(round(i * cell[0]), large.height - 1)
        pen.line([(0, y), (large.width, y)], fill=(255, 255, 255), width=1)
    return large


def _embedded(image: Image.Image) -> str:
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")

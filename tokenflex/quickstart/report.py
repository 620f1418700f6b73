"""What the embedded default shows: a table on the screen, ``report.json`` and ``report.html``."""

import base64
import io
import json
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

from tokenflex.files import locked, write_whole
from tokenflex.ops.pooling import Windows
from tokenflex.quickstart.evaluate import Answers, Exam
from tokenflex.quickstart.pictures import CELL, COARSE_KINDS, FINE_KINDS

KINDS = (*FINE_KINDS, *COARSE_KINDS)
SHOWN = 24
ZOOM = 3


def rows(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The table's lines: a name and a summary each."""
    levels = [(f"level {i}", summary) for i, summary in enumerate(result["levels"])]
    return [
        *levels,
        ("router", result["router"]),
        ("random router", result["random_router"]),
        ("reconstruction", result["reconstruction_router"]),
        ("random reconstr.", result["random_reconstruction"]),
        ("oracle", result["oracle"]),
    ]


def show(console: Console, result: dict[str, Any], folder: Path) -> None:
    """Print the table."""
    finest = result["levels"][-1]["tokens_mean"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("setting", no_wrap=True)
    for head in ("tokens", "share", "accuracy", *KINDS):
        table.add_column(head, justify="right", no_wrap=True)
    for name, summary in rows(result):
        kinds = (f"{summary['accuracy_by_kind'][kind]:.2f}" for kind in KINDS)
        tokens = summary["tokens_mean"]
        table.add_row(name, f"{tokens:.1f}", f"{100 * tokens / finest:.0f} %", f"{summary['accuracy']:.3f}", *kinds)
    console.print(table)
    console.print(
        f"{result['questions']} held-out questions, answered with generate; {100 * result['fine_share']:.0f} % of them "
        f"need fine detail ({', '.join(FINE_KINDS)}). Tokens: visual tokens per picture, mean. Random router: the "
        "router's own choices, dealt out at random. Reconstruction: a router without training, "
        "which looks at the picture only; random reconstr.: its own choices at random."
    )
    spent = sum(result["seconds"].values())
    console.print(f"{spent:.0f} s on {result['device']}. Wrote report.json, report.html and model/ to {folder}")


def write(folder: Path, result: dict[str, Any], exam: Exam, finest: Answers, routed: Answers, windows: Windows) -> None:
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
        cards=cards(exam, finest, routed, windows),
    )
    with locked(folder):
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
        for key, label, marker, colour in (
            ("router", "router", "*", "#dc2626"),
            ("random_router", "random router", "x", "#ca8a04"),
            ("reconstruction_router", "reconstruction router (no training)", "P", "#2563eb"),
            ("random_reconstruction", "its choices at random", "+", "#93c5fd"),
            ("oracle", "oracle", "D", "#16a34a"),
        ):
            point = result[key]
            size = 16 if marker == "*" else 9
            axes.plot(
                point["tokens_mean"], point["accuracy"], marker, color=colour, markersize=size, label=label,
                linestyle="none", markeredgewidth=2,
            )  # fmt: skip
        axes.set(xlabel="mean visual tokens per picture", ylabel="accuracy")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg")
    return target.getvalue()[target.getvalue().index("<svg") :]


def cards(exam: Exam, finest: Answers, routed: Answers, windows: Windows) -> list[dict[str, Any]]:
    """The first questions of each kind, with the routed answer and the chosen grid drawn over the picture."""
    shown: list[dict[str, Any]] = []
    per_kind = -(-SHOWN // len(KINDS))
    for kind in KINDS:
        places = [i for i, (_, question) in enumerate(exam) if question.kind == kind][:per_kind]
        for i in places:
            picture, question = exam[i]
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
                    "image": _embedded(gridded(picture.image, windows[level])),
                }
            )
    return shown


def gridded(image: Image.Image, window: tuple[int, int]) -> Image.Image:
    """The picture, enlarged, with the cells of the local tiles' pooled grid."""
    large = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for x in range(0, large.width + 1, window[1] * CELL * ZOOM):
        pen.line([(min(x, large.width - 1), 0), (min(x, large.width - 1), large.height)], fill=(255, 255, 255), width=1)
    for y in range(0, large.height + 1, window[0] * CELL * ZOOM):
        pen.line(
            [(0, min(y, large.height - 1)), (large.width, min(y, large.height - 1))], fill=(255, 255, 255), width=1
        )
    return large


def _embedded(image: Image.Image) -> str:
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")

"""What the embedded default shows: a table on the screen, ``report.json`` and ``report.html``."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenflex.files import locked, sweep, write_whole
from tokenflex.quickstart.evaluate import Exam, GradedAnswers
from tokenflex.quickstart.images import FINE_KINDS
from tokenflex.quickstart.lines import KINDS, promises, rows, seeing_less
from tokenflex.quickstart.page import Draw, quickstart_html


def show(console: Console, result: dict[str, Any], folder: Path) -> None:
    """Print the table of results, and where the report lies."""
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
    less = (
        " No image, no question: routers trained alike that see less. Level per kind: the best fixed level of each "
        "kind of question, chosen on these questions."
        if "level_per_kind" in result
        else ""
    )
    console.print(
        f"{result['questions']} held-out questions, answered with generate; {100 * result['fine_share']:.0f} % of them "
        f"need fine detail ({', '.join(FINE_KINDS)}). Tokens: visual tokens per image, mean, of all passes. Tower: "
        "work of the vision tower, of that at the finest level. Random router: the router's own choices, dealt out at "
        f"random.{less}{untrained if 'reconstruction_router' in result else ''}"
    )
    for line in (*seeing_less(result), *promises(result)):
        console.print(line)
    spent = sum(result["seconds"].values())
    console.print(f"{spent:.0f} s on {result['device']}. Wrote report.json, report.html and model/ to {folder}")


def write(
    folder: Path, result: dict[str, Any], exam: Exam, finest: GradedAnswers, routed: GradedAnswers, draw: Draw
) -> None:
    """Write ``report.json`` and ``report.html``, each complete or not at all."""
    page = quickstart_html(result, exam, finest, routed, draw)
    with locked(folder):
        sweep(folder, "report.*")
        write_whole(folder / "report.json", json.dumps(result, indent=2) + "\n")
        write_whole(folder / "report.html", page)

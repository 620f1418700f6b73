"""A finished evaluation as ``summary.json``, ``report.md`` and ``report.html``."""

import json
import os

from tokenflex.evaluation.lines import facts, header, notes, setting_lines
from tokenflex.evaluation.page import evaluation_html
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.summary import Summary, summarise
from tokenflex.files import as_path, locked, sweep, write_whole
from tokenflex.markup import escaped


def report(folder: str | os.PathLike[str], *, resamples: int = 2000, seed: int = 0) -> Summary:
    """Summarise a finished evaluation, write all three files, each complete or not at all, and give the summary.

    Raises:
        ConfigError: there is no evaluation in the folder.
        DataError: answers are missing.
    """
    evaluation = Evaluation(folder)
    summary = summarise(evaluation, resamples=resamples, seed=seed)
    target = as_path(folder)
    texts = (json.dumps(summary, indent=2) + "\n", evaluation_markdown(summary), evaluation_html(summary, evaluation))
    with locked(target):
        for name, text in zip(("summary.json", "report.md", "report.html"), texts, strict=True):
            sweep(target, name)
            write_whole(target / name, text)
    return summary


def evaluation_markdown(summary: Summary) -> str:
    """The tables of a summary as Markdown."""
    shown, kinds = setting_lines(summary), list(summary["kinds"])
    blocks = [
        "# Evaluation",
        escaped(facts(summary)),
        _table(header(summary), [line.cells for line in shown]),
        *notes(summary),
    ]
    if kinds:
        heads = [f"{kind} ({summary['kinds'][kind]})" for kind in kinds]
        blocks += ["## Score by kind", _table(("setting", *heads), [(line.name, *line.kinds) for line in shown])]
    return "\n\n".join(blocks) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    ruler = ("---", *["---:"] * (len(header) - 1))
    table = [[escaped(cell) for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (table[0], ruler, *table[1:]))

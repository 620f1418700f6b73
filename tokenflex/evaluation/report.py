"""A finished evaluation as ``summary.json``, ``report.md`` and ``report.html``."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, select_autoescape

from tokenflex.errors import DataError
from tokenflex.evaluation import drawing
from tokenflex.evaluation.drawing import Cells
from tokenflex.evaluation.plot import pareto
from tokenflex.evaluation.promised import cells_of
from tokenflex.evaluation.records import Evaluation, Record
from tokenflex.evaluation.settings import group_of
from tokenflex.evaluation.summary import Summary, summarise
from tokenflex.files import as_path, locked, sweep, write_whole
from tokenflex.markup import escaped, readable

HEADER = ("setting", "score", "95 %", "tokens", "of finest", "against finest", "regret", "tokens too many")
ESCALATED = ("passes", "tokens wasted")
"""Further columns where answers escalated."""
NARROW = (0, 1, 2, 3, 4, 6)
"""Columns that fit a terminal."""


@dataclass(frozen=True)
class Line:
    """A setting as tables show it.

    Attributes:
        cells: as in `header`.
        kinds: score by kind.
        chosen: images by level, of settings that choose.
    """

    name: str
    group: str
    cells: tuple[str, ...]
    kinds: tuple[str, ...]
    chosen: tuple[int, ...]


def report(folder: str | os.PathLike[str], *, resamples: int = 2000, seed: int = 0) -> Summary:
    """Summarise a finished evaluation, write all three files, each complete or not at all, and give the summary.

    Raises:
        ConfigError: there is no evaluation in the folder.
        DataError: answers are missing.
    """
    evaluation = Evaluation(folder)
    summary = summarise(evaluation, resamples=resamples, seed=seed)
    target = as_path(folder)
    texts = (json.dumps(summary, indent=2) + "\n", markdown(summary), html(summary, evaluation))
    with locked(target):
        for name, text in zip(("summary.json", "report.md", "report.html"), texts, strict=True):
            sweep(target, name)
            write_whole(target / name, text)
    return summary


def lines(summary: Summary) -> list[Line]:
    """Settings, then what follows from them."""
    entries = dict(summary["settings"])
    entries |= {f"{name}, shuffled": entry for name, entry in summary["shuffled"].items()}
    if summary["oracle"]:
        entries["oracle"] = summary["oracle"]
    more = header(summary)[len(HEADER) :]
    return [_line(name, entry, list(summary["kinds"]), bool(more)) for name, entry in entries.items()]


def header(summary: Summary) -> tuple[str, ...]:
    """Of the columns of `lines`."""
    escalated = any("passes" in entry for entry in summary["settings"].values())
    return (*HEADER, *ESCALATED) if escalated else HEADER


def _line(name: str, entry: Mapping[str, Any], kinds: list[str], escalated: bool) -> Line:
    low, high = entry["score_ci95"]
    cells = (
        name,
        f"{entry['score']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{entry['tokens']:.1f}",
        "" if entry["share"] is None else f"{100 * entry['share']:.0f} %",
        _signed(entry.get("minus_finest")),
        "" if "regret" not in entry else f"{entry['regret']:.3f}",
        "" if "regret" not in entry else f"{entry['regret_tokens']:.1f}",
    )
    if escalated:
        told = "passes" in entry
        cells += (f"{entry['passes']:.2f}", f"{entry['wasted']:.1f}") if told else ("", "")
    by_kind = tuple(f"{entry['by_kind'][kind]['score']:.3f}" for kind in kinds)
    return Line(name, entry["group"], cells, by_kind, tuple(entry.get("chosen", ())))


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def facts(summary: Summary) -> str:
    """What was asked of what, in one sentence."""
    model = summary["model"] or summary["host"]
    return (
        f"{model} ({summary['host']}) on {summary['samples']} questions of {summary['data'] or 'a data set'}; metric "
        f"{summary['metric']}; greedy answers of at most {summary['max_new_tokens']} tokens."
    )


NOTES = (
    "Score: mean over questions, with a 95 % interval (bootstrap; Wilson for shares); all settings see the same draws. "
    "Tokens: visual tokens that the language model saw per question, mean.",
    "Oracle: per question the fewest tokens among the fixed levels that score that question's best. Shuffled: the "
    "choices dealt out at random, mean over all deals. Regret: the score that the best possible choices would add at "
    "the same mean tokens; tokens too many: what they would save at the same mean score.",
)
ABOUT_PASSES = (
    "Passes: of the language model per question, mean; their tokens are all counted. Tokens wasted: those of all "
    "passes but the last."
)


def notes(summary: Summary) -> tuple[str, ...]:
    """What the columns mean."""
    return NOTES if header(summary) == HEADER else (*NOTES, ABOUT_PASSES)


def markdown(summary: Summary) -> str:
    """The tables as Markdown."""
    shown, kinds = lines(summary), list(summary["kinds"])
    parts = [
        "# Evaluation",
        escaped(facts(summary)),
        _table(header(summary), [line.cells for line in shown]),
        *notes(summary),
    ]
    if kinds:
        heads = [f"{kind} ({summary['kinds'][kind]})" for kind in kinds]
        parts += ["## Score by kind", _table(("setting", *heads), [(line.name, *line.kinds) for line in shown])]
    return "\n\n".join(parts) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    ruler = ("---", *["---:"] * (len(header) - 1))
    told = [[escaped(cell) for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (told[0], ruler, *told[1:]))


def html(summary: Summary, evaluation: Evaluation) -> str:
    """One page that needs nothing else."""
    source = files("tokenflex.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    known = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, finalize=readable)
    template = known.from_string(source)
    shown = _shown(evaluation)
    return template.render(
        facts=facts(summary),
        notes=notes(summary),
        header=header(summary),
        lines=lines(summary),
        kinds=summary["kinds"],
        levels=summary["levels"],
        plot=pareto(summary),
        shown=shown,
        cards=cards(evaluation, shown),
    )


def _shown(evaluation: Evaluation) -> str:
    """The setting of the gallery: the router, or what comes nearest to it."""
    names = list(evaluation.records)
    for group in ("router", "budget", "random", "level", "scaler"):
        found = [name for name in names if group_of(name) == group]
        if found:
            return found[-1] if group == "level" else found[0]
    return names[0]


def cards(evaluation: Evaluation, setting: str) -> list[dict[str, Any]]:
    """The questions whose images were kept, as a setting answered them."""
    finest = evaluation.records.get(f"level:{evaluation.manifest['levels'] - 1}")
    shown: list[dict[str, Any]] = []
    for sample in evaluation.samples:
        if not sample.images:
            continue
        question, record = sample.question, evaluation.records[setting][sample.question.place]
        try:
            drawings = [drawing.drawn(*pair) for pair in zip(sample.images, _cells(record), strict=False)]
        except DataError as error:
            raise DataError(f"{evaluation.folder}: question {question.place}: {error}") from error
        shown.append(
            {
                "kind": question.kind,
                "question": question.text,
                "references": ", ".join(dict.fromkeys(question.references)),
                "answer": record.answer or "(nothing)",
                "score": record.score,
                "finest": finest[question.place].answer or "(nothing)" if finest else None,
                "levels": ", ".join(map(str, record.levels)),
                "tokens": record.tokens,
                "of": record.of,
                "images": [drawing.embedded(image) for image in drawings],
            }
        )
    return sorted(shown, key=lambda card: card["kind"])


def _cells(record: Record) -> list[Cells | None]:
    found = cells_of(record.cells, f"question {record.place}")
    return [None] * len(record.levels) if found is None else [*found]

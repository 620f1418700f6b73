"""The lines of an evaluation's tables, which the screen, Markdown and the page share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenflex.evaluation.summary import Summary

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


def setting_lines(summary: Summary) -> list[Line]:
    """Settings, then what follows from them."""
    entries = dict(summary["settings"])
    entries |= {f"{name}, shuffled": entry for name, entry in summary["shuffled"].items()}
    if summary["oracle"]:
        entries["oracle"] = summary["oracle"]
    more = header(summary)[len(HEADER) :]
    return [_line(name, entry, list(summary["kinds"]), bool(more)) for name, entry in entries.items()]


def header(summary: Summary) -> tuple[str, ...]:
    """The heads of the columns that the cells of `setting_lines` stand in."""
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
        escalated = "passes" in entry
        cells += (f"{entry['passes']:.2f}", f"{entry['wasted']:.1f}") if escalated else ("", "")
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
    """What the columns mean, as sentences."""
    return NOTES if header(summary) == HEADER else (*NOTES, ABOUT_PASSES)

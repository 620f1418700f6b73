"""Score against visual tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenflex.evaluation.settings import group_of
from tokenflex.pages import Plot, Series, points

SCALERS = ("blue", "purple", "cyan", "pink", "lime", "brown")
Entry = Mapping[str, Any]


def pareto(summary: Mapping[str, Any]) -> Plot:
    """Fixed levels, router, budgets, baselines and oracle of a summary, with 95 % intervals."""
    settings: Mapping[str, Entry] = summary["settings"]
    frontier = [(tokens, score) for tokens, score in summary["frontier"]]
    series = [
        Series("best possible choices", "green", "", frontier, line="--"),
        _series(_of(settings, "level"), "fixed levels", "grey", "o", line="-"),
    ]
    for colour, (name, entries) in zip(SCALERS * len(settings), _by_scaler(settings).items(), strict=False):
        series.append(_series(entries, name, colour, "s", line=":"))
    series += _choices(summary, settings)
    label = f"{summary['metric']} score against visual tokens per question; the table of settings has the numbers."
    return points(series, across="visual tokens per question, mean", up="score, mean", label=label)


def _choices(summary: Mapping[str, Any], settings: Mapping[str, Entry]) -> list[Series]:
    """The points that choose for themselves, and their yardsticks."""
    budgets = {name: entry for name, entry in settings.items() if group_of(name) == "budget"}
    ordered = sorted(budgets, key=lambda name: budgets[name]["tokens"])
    notes = [name.partition("@")[2] for name in ordered]
    label = f"router under budgets, from left to right: {', '.join(notes)}"
    oracle = [summary["oracle"]] if summary["oracle"] else []
    return [
        _series([budgets[name] for name in ordered], label, "red", "^", notes=notes),
        _series(_of(settings, "router"), "router", "red", "*"),
        _series(_of(settings, "escalate"), "escalated, all passes", "red", "v"),
        _series(list(summary["shuffled"].values()), "its choices shuffled", "amber", "x"),
        _series(_of(settings, "random"), "random levels", "amber", "P"),
        _series(oracle, "oracle", "green", "D"),
    ]


def _of(settings: Mapping[str, Entry], group: str) -> list[Entry]:
    return [entry for name, entry in settings.items() if group_of(name) == group]


def _by_scaler(settings: Mapping[str, Entry]) -> dict[str, list[Entry]]:
    """The levels of each scaler, options included in its name."""
    found: dict[str, list[Entry]] = {}
    for name, entry in settings.items():
        if group_of(name) == "scaler":
            head, at, options = name.partition("@")
            found.setdefault(head.split(":")[1] + at + options, []).append(entry)
    return found


def _series(
    entries: Sequence[Entry], label: str, colour: str, marker: str, line: str = "", notes: Sequence[str] = ()
) -> Series:
    spread = [(tuple(entry["tokens_ci95"]), tuple(entry["score_ci95"])) for entry in entries]
    return Series(label, colour, marker, [(entry["tokens"], entry["score"]) for entry in entries], spread, line, notes)

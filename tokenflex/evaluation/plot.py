"""Score against visual tokens, as one SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenflex.evaluation.settings import group_of
from tokenflex.markup import readable

GREY, RED, AMBER, GREEN = "#475569", "#dc2626", "#ca8a04", "#16a34a"
SCALERS = ("#2563eb", "#9333ea", "#0891b2", "#db2777", "#65a30d", "#92400e")
Entry = Mapping[str, Any]


def pareto(summary: Mapping[str, Any]) -> str:
    """Fixed levels, router, budgets, baselines and oracle of a summary, with 95 % intervals, as SVG markup."""
    settings: Mapping[str, Entry] = summary["settings"]
    plain: Any = {"text.parse_math": False, "text.usetex": False}  # names may have dollars in them
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tokenflex", "font.size": 11} | plain):
        figure = Figure(figsize=(8.6, 5.0), layout="constrained")
        axes = figure.subplots()
        if summary["frontier"]:
            tokens, scores = zip(*summary["frontier"], strict=True)
            axes.plot(tokens, scores, "--", color=GREEN, linewidth=1, alpha=0.7, label="best possible choices")
        _line(axes, [e for n, e in settings.items() if group_of(n) == "level"], "fixed levels", GREY, "o-")
        for colour, (name, entries) in zip(SCALERS * len(settings), _by_scaler(settings).items(), strict=False):
            _line(axes, entries, readable(name), colour, "s:", alpha=0.8)
        _choices(axes, summary, settings)
        axes.set(xlabel="visual tokens per question, mean", ylabel=f"score ({summary['metric']}), mean")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
        target = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(target, format="svg", metadata=nothing)
    markup = target.getvalue()
    return markup[markup.index("<svg") :]


def _choices(axes: Axes, summary: Mapping[str, Any], settings: Mapping[str, Entry]) -> None:
    """The points that choose for themselves, and their yardsticks."""
    budgets = {name: entry for name, entry in settings.items() if group_of(name) == "budget"}
    _line(axes, list(budgets.values()), "router under budgets", RED, "^")
    for name, entry in budgets.items():
        text = readable(name.partition("@")[2])
        axes.annotate(text, (entry["tokens"], entry["score"]), (7, -9), textcoords="offset points", fontsize=8)
    if "router" in settings:
        _line(axes, [settings["router"]], "router", RED, "*", size=15)
    escalated = {name: entry for name, entry in settings.items() if group_of(name) == "escalate"}
    _line(axes, list(escalated.values()), "escalated, all passes", RED, "v")
    shuffled = list(summary["shuffled"].values())
    _line(axes, shuffled, "its choices shuffled", AMBER, "x")
    at_random = [entry for name, entry in settings.items() if group_of(name) == "random"]
    _line(axes, at_random, "random levels", AMBER, "P")
    if summary["oracle"]:
        _line(axes, [summary["oracle"]], "oracle", GREEN, "D")


def _by_scaler(settings: Mapping[str, Entry]) -> dict[str, list[Entry]]:
    """The levels of each scaler, options included in its name."""
    found: dict[str, list[Entry]] = {}
    for name, entry in settings.items():
        if group_of(name) == "scaler":
            head, at, options = name.partition("@")
            found.setdefault(head.split(":")[1] + at + options, []).append(entry)
    return found


def _line(
    axes: Axes, entries: Sequence[Entry], label: str, colour: str, style: str, size: int = 6, alpha: float = 1.0
) -> None:
    if not entries:
        return
    entries = sorted(entries, key=lambda entry: entry["tokens"])
    spread = {"xerr": "tokens", "yerr": "score"}
    bars: dict[str, Any] = {
        bar: [[max(0.0, abs(entry[f"{key}_ci95"][end] - entry[key])) for entry in entries] for end in (0, 1)]
        for bar, key in spread.items()
    }
    axes.errorbar(
        [entry["tokens"] for entry in entries], [entry["score"] for entry in entries], **bars, fmt=style, label=label,
        color=colour, markersize=size, linewidth=1.2, elinewidth=1, capsize=2, alpha=alpha,
        markeredgewidth=2 if style == "x" else 1,
    )  # fmt: skip

"""The study's tables as Markdown."""

from collections.abc import Sequence
from typing import Any

from tokenflex.study.images import READING_KINDS, SCENE_KINDS

GROUPS = {"reading": READING_KINDS, "scene": SCENE_KINDS}


def grouped(entry: dict[str, Any], kinds: Sequence[str]) -> dict[str, float]:
    """Score and visual tokens of one setting over all questions of some kinds.

    Args:
        entry: of an evaluation's summary.
    """
    own = [found for kind, found in entry["by_kind"].items() if kind in kinds]
    samples = sum(found["samples"] for found in own)
    return {name: sum(found[name] * found["samples"] for found in own) / samples for name in ("score", "tokens")}


def markdown(result: dict[str, Any]) -> str:
    """Everything of a run: per setting and kind, then the minutes of each stage."""
    summary = result["evaluation"]
    entries = {**summary["settings"], "oracle": summary["oracle"]}
    finest = f"level:{summary['levels'] - 1}"
    whole = entries[finest]["tokens"]
    lines = [
        f"# Study, seed {result['seed']}",
        "",
        f"{summary['samples']} questions about {summary['samples'] // 2} held-out images.",
        "",
        "| setting | tokens | score | less finest | reading | its tokens | scene | its tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in {**entries, **result.get("others", {})}.items():
        groups = [grouped(entry, kinds) for kinds in GROUPS.values()]
        cells = [f"{one[key] / (whole if key == 'tokens' else 1):{form}}"
                 for one in groups for key, form in (("score", ".3f"), ("tokens", ".0%"))]  # fmt: skip
        less = entry["score"] - summary["settings"][finest]["score"]
        shown = [f"{entry['tokens']:.1f}", f"{entry['score']:.3f}", f"{less:+.3f}"]
        lines.append(f"| {' | '.join([name, *shown, *cells])} |")
    kinds = [kind for group in GROUPS.values() for kind in group if kind in summary["kinds"]]
    lines += ["", "Score and share of the tokens by kind:", ""]
    heads = [f"{kind} ({summary['kinds'][kind]})" for kind in kinds]
    lines += [f"| setting | {' | '.join(heads)} |"]
    lines += [f"|---|{'---|' * len(kinds)}"]
    for name, entry in entries.items():
        own = [entry["by_kind"][kind] for kind in kinds]
        cells = [f"{one['score']:.2f} ({one['tokens'] / whole:.0%})" for one in own]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| stage | minutes |", "|---|---|"]
    lines += [f"| {name} | {seconds / 60:.1f} |" for name, seconds in result["seconds"].items()]
    return "\n".join(lines) + "\n"

"""The figures as one JSON line, and as a Markdown page."""

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.measure import Row
from tokenflex.files import write_whole

SCALES = {"seconds": (1.0, "s"), "bytes": (2.0**20, "MiB"), "FLOPs": (1e12, "TFLOP")}


def surroundings(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def versions(told: Mapping[str, Any]) -> str:
    """Those of `surroundings`, in words."""
    return f"torch {told['torch']}, transformers {told['transformers']}, Python {told['python']}"


def quiet() -> None:
    """Keep transformers from writing between the figures."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def keep(out: Path | None, written: str, data: Mapping[str, Any]) -> None:
    """Write a page and, beside it, its figures as JSON; nothing where no file is named."""
    if out:
        write_whole(out, written)
        write_whole(out.with_suffix(".json"), json.dumps(data, indent=1) + "\n")


def hardware(device: str) -> str:
    """The processor's model name and its cores, or the GPU's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [platform.processor() or platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")] or names
    except OSError:
        pass
    return f"{names[0]}, {os.cpu_count()} cores"


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Ratios, spreads, counts and medians of the rows that have a key; all rows under ``rows``."""
    found: dict[str, Any] = {}
    for row in rows:
        if row.key is None:
            continue
        told = row.summed_up()
        found[row.key] = told["ratio"]
        for name in ("spread", "n", "unit", "median_ours", "median_baseline"):
            found[f"{row.key}_{name}"] = told[name]
    return {**found, "rows": [row.summed_up() for row in rows]}


def table(rows: Sequence[Row]) -> str:
    """One Markdown row per comparison."""
    lines = ["| what | ours | baseline | ratio | spread | n |", "|---|---|---|---|---|---|"]
    for row in rows:
        told = row.summed_up()
        low, high = told["spread"]
        lines.append(
            f"| {row.what} | {_shown(told['median_ours'], row.unit)} | {_shown(told['median_baseline'], row.unit)} | "
            f"{told['ratio']:.3f} | {low:.3f} to {high:.3f} | {told['n']} |"
        )
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row], told: dict[str, Any], command: str) -> str:
    """The table with what is needed to judge it."""
    return "\n".join(
        [
            "# Training and routing against the published procedure",
            "",
            f"{datetime.date.today()}; {told['hardware']}, {told['threads']} threads; "
            f"{versions(told)}; seed {told['seed']}; `{command}`; "
            f"{told['seconds'] / 60:.1f} minutes in all.",
            "",
            told["protocol"],
            "",
            table(rows),
        ]
    )


def _shown(value: float, unit: str) -> str:
    scale, name = SCALES[unit]
    return f"{value / scale:.4g} {name}"

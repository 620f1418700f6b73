"""All faults, tried in numbers: ``python -m tests.torture --scale 1`` makes the tables of docs/reliability.md anew."""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

import tokenflex
from tests.torture.outcome import Outcome
from tokenflex.tables.marked_page import markdown_table, renew_page

SECTIONS = ("model_files", "data_files", "requests", "faults", "concurrency", "numerics")
"""Modules of this package with a function ``run(scale, seed)``."""
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MARKS = "<!-- faults: begin, made by just torture -->", "<!-- faults: end -->"
HEADER = ("Fault", "Tried", "Refused", "Lost", "Doubled", "Wrong", "Crashed", "Note")
AT_ONCE = 2


def section(name: str, scale: float, seed: int) -> list[Outcome]:
    """What came of one section's faults, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "outcomes.json")
        command = [sys.executable, "-m", "tests.torture", "--only", name, "--scale", str(scale), "--seed", str(seed)]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--json", str(out)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s, status {done.returncode}\n")
        if done.returncode or not out.is_file():
            sys.stderr.write(f"{done.stdout[-3000:]}{done.stderr[-6000:]}\n")
            return [Outcome(name, "the section itself", 1, crashed=1, note=f"it ended with {done.returncode}")]
        found = [Outcome(**row) for row in json.loads(out.read_text(encoding="utf-8"))]
        if not all(outcome.fine for outcome in found):
            sys.stderr.write(done.stderr)  # what is to be mended
        return found


def page(outcomes: list[Outcome], scale: float, seed: int, seconds: float) -> str:
    """The tables, a heading per area, and how they were made."""
    areas = dict.fromkeys(outcome.area for outcome in outcomes)
    tables = [
        f"### {area}\n\n" + markdown_table(HEADER, [_cells(one) for one in outcomes if one.area == area])
        for area in areas
    ]
    tried = sum(outcome.times for outcome in outcomes)
    made = (
        f"{tried:,} faults in {seconds / 60:.0f} minutes on {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}; "
        f"`just torture` (scale {scale:g}, seed {seed}); tokenflex {tokenflex.__version__}, transformers "
        f"{transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}."
    )
    return "\n".join([made, "", *tables])


def _cells(outcome: Outcome) -> list[str]:
    counts = (outcome.times, outcome.refused, outcome.lost, outcome.doubled, outcome.wrong, outcome.crashed)
    return [outcome.fault, *(f"{count:,}" for count in counts), outcome.note]


def main() -> int:
    """Run, write what was asked for, and tell by the status whether something was lost, doubled, wrong or crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--scale", type=float, default=0.05, help="1 is the full table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SECTIONS, help="one section, in this process")
    parser.add_argument("--json", type=Path, help="a file for the outcomes of --only")
    parser.add_argument("--write", action="store_true", help=f"renew the tables of {PAGE.name}")
    given = parser.parse_args()
    if given.only:
        torch.set_num_threads(1)
        outcomes = importlib.import_module(f"tests.torture.{given.only}").run(given.scale, given.seed)
        if given.json:
            given.json.write_text(json.dumps([dataclasses.asdict(one) for one in outcomes]), encoding="utf-8")
        else:
            sys.stdout.write(page(outcomes, given.scale, given.seed, 0))
        return 0
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        several = list(pool.map(lambda name: section(name, given.scale, given.seed), SECTIONS))
    outcomes = [outcome for one in several for outcome in one]
    body = page(outcomes, given.scale, given.seed, time.monotonic() - began)
    sys.stdout.write(body)
    if given.write:
        renew_page(PAGE, *MARKS, body)
    return 0 if all(outcome.fine for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())

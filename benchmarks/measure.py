"""Time in alternating runs, FLOPs as torch counts them, peak memory in fresh processes."""

import gc
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenflex.profiling.flops import attention_formulas

STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""Settings of glibc under which what is freed goes back to the system at once."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: in words.
        unit: of the two lists.
        ours, baseline: what was measured, in pairs.
        key: its name in the JSON line; rows without one only fill the table.
        total: the ratio is that of the sums, not the median of the pairs' ratios.
    """

    what: str
    unit: str
    ours: Sequence[float]
    baseline: Sequence[float]
    key: str | None = None
    total: bool = False

    @property
    def ratios(self) -> list[float]:
        """Ours over baseline, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median, or the ratio of the sums."""
        return sum(self.ours) / sum(self.baseline) if self.total else statistics.median(self.ratios)

    @property
    def spread(self) -> list[float]:
        """Least and greatest ratio of a pair."""
        return [min(self.ratios), max(self.ratios)]

    def summed_up(self) -> dict[str, Any]:
        """The row as JSON has it."""
        middle = sum if self.total else statistics.median
        return {
            **asdict(self),
            "ratio": self.ratio,
            "spread": self.spread,
            "n": len(self.ours),
            "median_ours": middle(self.ours),
            "median_baseline": middle(self.baseline),
        }


def alternated(
    runs: Mapping[str, Callable[[], Any]],
    rounds: Mapping[str, int],
    device: str,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every run, one after another in every round, each round in the reverse order of the last.

    Args:
        rounds: how often each takes part.
        before: called before each, outside its time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(max(rounds.values())):
        names = [name for name in runs if turn < rounds[name]]
        for name in names if turn % 2 == 0 else names[::-1]:
            before()
            gc.collect()
            seconds[name].append(timed(runs[name], device))
    before()
    return seconds


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of one run."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Flops:
    """Calls functions and counts the FLOPs of each call."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, run: Callable[[], Any]) -> Any:
        """What ``run`` returns."""
        with FlopCounterMode(display=False, custom_mapping=attention_formulas()) as counter:
            result = run()
        self.counts.append(counter.get_total_flops())
        return result


def peak(run: Callable[[], Any], device: str) -> int:
    """Bytes that a run needs at its peak above what is held before it, one page at least."""
    return max(_peak(run, device), resource.getpagesize())


def _peak(run: Callable[[], Any], device: str) -> int:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        held = _kilobytes("VmRSS")
        run()
        return (_kilobytes("VmHWM") - held) * 1024
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def in_own_process(argument: str) -> int:
    """What ``python -m benchmarks.memory`` answers, in a fresh process with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", argument],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **STEADY, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {argument} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])

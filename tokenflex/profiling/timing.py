"""Seconds: clocks for CPU and CUDA, median and 95th percentile, and runs that take turns."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tokenflex.errors import ConfigError

Call = Callable[[], Any]
Clock = Callable[[Call], float]
"""Seconds of one call, whatever it left running on the device included."""


@dataclass(frozen=True)
class Times:
    """Seconds of every run, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return quantile(self.seconds, 0.5)

    @property
    def p95(self) -> float:
        """The 95th percentile, in seconds."""
        return quantile(self.seconds, 0.95)

    def to_dict(self) -> dict[str, Any]:
        """Median, 95th percentile, number of runs, and the runs themselves; to the nanosecond."""
        taken = [round(seconds, 9) for seconds in self.seconds]
        return {"median": round(self.median, 9), "p95": round(self.p95, 9), "n": len(taken), "seconds": taken}


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, on straight lines between neighbours.

    Args:
        values: one or more, in any order.
        share: 0 to 1.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below if below == above else below + (above - below) * (place - math.floor(place))


def clock_for(device: torch.device) -> Clock:
    """The clock of a device: CUDA's events, or the processor's performance counter.

    Raises:
        ConfigError: neither CPU nor CUDA.
    """
    if device.type == "cuda":
        return lambda run: _cuda_seconds(run, device)
    if device.type == "cpu":
        return _cpu_seconds
    raise ConfigError(f"device {device.type!r} has no clock here; profile on cpu or cuda.")


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[str, ...]]:
    """The order of every round: everyone once, each round another first, every second round backwards.

    In ``2 * len(names)`` rounds everyone has stood twice in every place, so drift and neighbours hit all alike.
    """
    for turn in range(rounds):
        start = turn // 2 % max(len(names), 1)
        order = (*names[start:], *names[:start])
        yield order if turn % 2 == 0 else order[::-1]


def interleaved(
    settings: Mapping[str, Mapping[str, Call]],
    rounds: int,
    warm_up: int,
    clock: Clock,
    tick: Call = lambda: None,
) -> dict[str, dict[str, Times]]:
    """Time every call of every setting once per round.

    Args:
        settings: setting -> measure -> what to call; a setting's calls follow one another.
        warm_up: rounds before those that count.
        tick: called after every setting's turn.
    """
    seconds = {name: {measure: list[float]() for measure in calls} for name, calls in settings.items()}
    with _no_collection():
        for turn, order in enumerate(turns(list(settings), warm_up + rounds)):
            gc.collect()
            for name in order:
                for measure, call in settings[name].items():
                    taken = clock(call)
                    if turn >= warm_up:
                        seconds[name][measure].append(taken)
                tick()
    return {name: {measure: Times(tuple(took)) for measure, took in each.items()} for name, each in seconds.items()}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected between rounds, not inside a run."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _cpu_seconds(run: Call) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Call, device: torch.device) -> float:
    """Between two events, the device idle before the first, so that waiting for the processor counts too."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

"""Peak memory of training steps, each measured in a process of its own (and this module is what runs there)."""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from benchmarks import measure, sizes, steps
from benchmarks.measure import Row

ALL = 5
"""Levels of the published pyramid."""


@dataclass(frozen=True)
class Probe:
    """One step to be measured.

    Attributes:
        name: see `steps.FORWARDS`.
        levels: granularities, counted from the finest.
        frozen_tower: leave the vision tower without gradients, as the published code does in stages 3 and 4.
    """

    name: str
    levels: int = ALL
    frozen_tower: bool = True


@dataclass(frozen=True)
class Comparison:
    """Two steps, and how often each is measured; the rest as in `Row`."""

    what: str
    ours: Probe
    baseline: Probe
    repeats: int = 1
    key: str | None = None


PUBLISHED, LOW = "stage3/published", "stage3/low"
COMPARISONS: dict[str, tuple[Comparison, ...]] = {
    "stage3": (
        Comparison("stage 3 (low), peak memory", Probe(LOW), Probe(PUBLISHED), 2, "stage3_memory_ratio"),
        Comparison("stage 3 (packed), peak memory", Probe("stage3/packed"), Probe(PUBLISHED)),
        Comparison("stage 3 (joint), peak memory", Probe("stage3/joint"), Probe(PUBLISHED)),
        Comparison(
            "stage 3 (low), vision tower trained, peak memory",
            Probe(LOW, frozen_tower=False),
            Probe(PUBLISHED, frozen_tower=False),
            key="stage3_tower_trained_memory_ratio",
        ),
    ),
    "stage4": (
        Comparison("stage 4, peak memory", Probe("stage4/ours"), Probe("stage4/published"), 2, "stage4_memory_ratio"),
    ),
    "levels": tuple(
        Comparison(
            f"stage 3, {count} finest of {ALL} levels, peak memory of low / joint",
            Probe(LOW, count),
            Probe("stage3/joint", count),
        )
        for count in (1, 3, ALL)
    ),
}
"""Part of the benchmark -> what is compared there."""


def rows(size: str, seed: int, parts: Sequence[str], together: int) -> dict[str, list[Row]]:
    """Peaks, part by part.

    Args:
        together: how many processes run at once, each with one thread.
    """
    chosen = {part: COMPARISONS[part] for part in parts if part in COMPARISONS}
    times: dict[Probe, int] = {}
    for comparison in (one for comparisons in chosen.values() for one in comparisons):
        for probe in (comparison.ours, comparison.baseline):
            times[probe] = max(times.get(probe, 0), comparison.repeats)
    with ThreadPoolExecutor(together) as pool:
        asked = {
            probe: [pool.submit(measure.in_own_process, _argument(size, seed, probe)) for _ in range(count)]
            for probe, count in times.items()
        }
        peaks = {probe: [float(future.result()) for future in futures] for probe, futures in asked.items()}
    return {
        part: [
            Row(one.what, "bytes", peaks[one.ours][: one.repeats], peaks[one.baseline][: one.repeats], one.key)
            for one in comparisons
        ]
        for part, comparisons in chosen.items()
    }


def peak(size: str, seed: int, probe: Probe) -> int:
    """Peak bytes of one step above the loaded model, gradients included.

    A step of the tiny model goes first, so that code loaded on the way isn't counted.
    """
    chosen = sizes.SIZES[size]
    found = 0
    for each in (sizes.on(sizes.TINY, chosen.device), chosen):
        flex, batch = sizes.flex_model(each, seed, probe.levels), sizes.batch(each, seed)
        steps.prepare(flex, steps.stage_of(probe.name), frozen_tower=probe.frozen_tower)
        found = measure.peak(lambda flex=flex, batch=batch: steps.run(flex, batch, probe.name), chosen.device)
    return found


def _argument(size: str, seed: int, probe: Probe) -> str:
    return json.dumps({"size": size, "seed": seed, "probe": asdict(probe)})


def main() -> None:
    """Answer one probe: bytes, on standard output."""
    told = json.loads(sys.argv[1])
    sys.stdout.write(f"{peak(told['size'], told['seed'], Probe(**told['probe']))}\n")


if __name__ == "__main__":
    main()

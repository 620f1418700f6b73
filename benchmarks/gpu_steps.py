"""Time and peak memory of one training step of stage 3 and of stage 4, and peak memory of one request.

    python -m benchmarks.gpu_steps --size 7b --out steps.md      # about 60 GB of GPU memory
    python -m benchmarks.gpu_steps --size small

Every row is written as it is known.
"""

import argparse
import gc
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, paper_speed, report, sizes, steps
from tokenflex.profiling.memory import LiveBytes

STEPS = ("stage4/ours", "stage3/low", "stage3/packed", "stage3/joint")
REQUESTS = ("vanilla", "routed 0", "routed 4", "forced 0")
PROTOCOL = """\
{model}. A step is forward and backward of one batch without optimizer, parameters frozen as the stage does, \
{checkpointing}; a request is an image, a question and {answers} new tokens at batch 1. Every call runs once untimed, \
then {runs} times; seconds are medians. Peak is the most memory held during one more call, above what was held before \
it, {memory}; gradients of a step are freed before it.\
"""


@dataclass(frozen=True)
class Row:
    """One call.

    Attributes:
        seconds: median; None for a call that ran out of memory.
        peak: bytes above what was held before it.
        held: bytes on the GPU before it, model included; None on the CPU.
        failed: why there are no figures.
    """

    what: str
    seconds: float | None = None
    peak: int | None = None
    held: int | None = None
    failed: str | None = None


def measured(what: str, call: Callable[[], Any], before: Callable[[], Any], runs: int, device: str) -> Row:
    """Seconds and peak of a call; running out of memory is a result too."""
    try:
        before()
        call()
        seconds: list[float] = []
        for _ in range(runs):
            before()
            gc.collect()
            seconds.append(measure.timed(call, device))
        before()
        held = torch.cuda.memory_allocated() if device == "cuda" else None
        return Row(what, statistics.median(seconds), _peak(call, device), held)
    except torch.OutOfMemoryError as error:
        return Row(what, failed=f"out of memory: {' '.join(str(error).split())[:120]}")
    finally:
        before()
        if device == "cuda":
            torch.cuda.empty_cache()


def _peak(call: Callable[[], Any], device: str) -> int:
    if device == "cuda":
        return measure.peak(call, device)
    with LiveBytes() as live:
        call()
    return live.peak


def calls(options: argparse.Namespace, size: sizes.Size, tell: Callable[[Row, str], None]) -> None:
    """Measure one call after another, requests first.

    Args:
        tell: takes every row as it is known, and a description of the model.
    """
    asked = paper_speed.SIZES[options.size]
    models, inputs = paper_speed.built(asked, options.seed)
    model = sizes.describe(asked, models["routed"], inputs).split("; a batch")[0]
    settings = paper_speed.runs({"routed": models["routed"]}, inputs, options.answers)
    for name in options.requests:
        tell(measured(f"request, {name}", settings[name], gc.collect, options.runs, size.device), model)
    del models, settings, inputs
    gc.collect()
    flex, batch = sizes.flex_model(size, options.seed), sizes.batch(size, options.seed)
    for name in options.steps:
        steps.prepare(flex, steps.stage_of(name))
        clear = partial(flex.zero_grad, set_to_none=True)
        tell(measured(name, partial(steps.run, flex, batch, name), clear, options.runs, size.device), model)


def page(rows: Sequence[Row], told: Mapping[str, Any]) -> str:
    """The rows with what is needed to judge them."""
    lines = [
        "# Training steps and requests: time and peak memory",
        "",
        f"{told['hardware']}; {report.versions(told)}; size {told['size']}, seed {told['seed']}.",
        "",
        told["protocol"],
        "",
        "| call | time | peak above | held before |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row.failed:
            lines.append(f"| {row.what} | {row.failed} | | |")
        else:
            held = "" if row.held is None else f"{row.held / 2**20:.0f} MiB"
            lines.append(f"| {row.what} | {row.seconds:.4g} s | {(row.peak or 0) / 2**20:.0f} MiB | {held} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, and write to standard output and ``--out``."""
    options = _options(argv)
    size = sizes.SIZES[options.size]
    if size.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--size {options.size} needs a CUDA device with about 60 GB, and torch sees none; use --size small.")
    torch.set_num_threads(options.threads)
    report.quiet()
    rows: list[Row] = []
    told = {"size": options.size, "seed": options.seed, **report.surroundings(size.device)}

    def tell(row: Row, model: str) -> None:
        rows.append(row)
        told["protocol"] = PROTOCOL.format(
            model=model,
            checkpointing="layers computed again in the backward pass" if size.checkpointing else "nothing recomputed",
            answers=options.answers,
            runs=options.runs,
            memory="as CUDA's allocator counts it" if size.device == "cuda" else "in storages of live tensors",
        )
        sys.stderr.write(f"{row}\n")
        report.keep(options.out, page(rows, told), {"rows": [asdict(one) for one in rows], **told})

    calls(options, size, tell)
    sys.stdout.write(page(rows, told))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes.SIZES, default="small", help="tiny only shows that it runs")
    parser.add_argument("--out", type=Path, help="Markdown file to write; JSON goes beside it")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--requests", nargs="*", choices=REQUESTS, default=REQUESTS, metavar="REQUEST")
    parser.add_argument("--answers", type=int, default=5, help="new tokens per request (default 5)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of every call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

"""What one request asks of the device: kernel launches and copies to the host, before and after ``flex.compile()``.

    python -m benchmarks.gpu_launches --size 7b --out launches.md
    python -m benchmarks.gpu_launches --size small               # on the CPU operators are counted in place of launches

At batch 1 a GPU waits for its launches, so their number says more than FLOPs do. Every row is written as it is known.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure, paper_speed, report, sizes
from tokenflex.model import FlexModel
from tokenflex.policies.constant import ConstantPolicy

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPHS = ("cudaGraphLaunch",)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READ = "aten::_local_scalar_dense"
PROTOCOL = """\
{model}. One request (batch 1): one image of {image[0]} x {image[1]} pixels, {words} text tokens, one new token; \
{dtype}. Counted by torch's profiler in one call after {warm} untimed ones; {counted}. `reads` are values that Python \
takes from a tensor ({read}), `copies` go from the device to the host. Seconds are medians of {runs} runs without the \
profiler. `vanilla` is the plain host's generate, `routed 0` runs the router and keeps the fewest tokens, `forced 0` \
does without the router; encode (tower included), scores and at_levels are steps of `routed 0`.\
"""


@dataclass(frozen=True)
class Row:
    """One call.

    Attributes:
        compiled: after ``flex.compile()``.
        launches: of kernels; on the CPU operators that compute or move something.
        graphs: CUDA graphs replayed, each in one launch.
        reads: values taken from tensors; each waits for the device.
        copies: from the device to the host.
        waits: for the device, whatever for.
    """

    what: str
    compiled: bool
    launches: int
    graphs: int
    reads: int
    copies: int
    waits: int
    seconds: float


def counted(what: str, call: Callable[[], Any], options: argparse.Namespace, device: str, compiled: bool) -> Row:
    """Launches, copies and seconds of a call."""
    for _ in range(options.warm):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as seen:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    seconds = [measure.timed(call, device) for _ in range(options.runs)]
    return Row(what, compiled, **counts(seen.events() or [], device), seconds=statistics.median(seconds))


def counts(events: Sequence[Any], device: str) -> dict[str, int]:
    """What the profiler saw, by kind."""
    names = [event.name for event in events]
    on_cpu = [event for event in events if event.name.startswith("aten::") and not event.cpu_children]
    launches = sum(name in LAUNCHES for name in names) if device == "cuda" else sum(map(computes, on_cpu))
    return {
        "launches": launches,
        "graphs": sum(name in GRAPHS for name in names),
        "reads": names.count(READ),
        "copies": sum(name.startswith("Memcpy DtoH") for name in names),
        "waits": sum(name in WAITS for name in names),
    }


def computes(event: Any) -> bool:
    """Whether an operator is more than a view, an allocation or a question about a tensor."""
    name = event.name.removeprefix("aten::").rstrip("_")
    packet = getattr(torch.ops.aten, event.name.removeprefix("aten::"), None)
    if name in NO_WORK or packet is None:
        return False
    return not all(getattr(packet, overload).is_view for overload in packet.overloads())


NO_WORK = frozenset({
    "empty", "empty_strided", "empty_like", "resize", "to", "reshape", "contiguous", "lift_fresh", "detach", "set",
    "resolve_conj", "resolve_neg", "is_nonzero", "item", "local_scalar_dense", "result_type", "as_strided", "view",
    "_local_scalar_dense", "_unsafe_view", "_reshape_alias", "alias", "can_cast", "stride", "size", "is_pinned",
})  # fmt: skip


def settings(flex: FlexModel, inputs: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Every call that is counted."""
    asked = {**inputs, "max_new_tokens": 1, "min_new_tokens": 1, "do_sample": False}
    policy = ConstantPolicy.Config(level=0)
    with torch.no_grad():
        encoded = flex.encode(inputs)
    levels = [0] * len(encoded.images)

    def apart(call: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(call)

    # Encoded anew for every count: what was made of a batch once needn't be made again.
    return {
        "vanilla": partial(flex.host.generate, **asked),
        "forced 0": partial(flex.generate, **asked, level=0),
        "routed 0": partial(flex.generate, **asked, budget=policy),
        "encode": apart(partial(flex.encode, inputs)),
        "encode and scores": apart(lambda: flex.scores(flex.encode(inputs))),
        "encode and at_levels": apart(lambda: flex.at_levels(inputs, flex.encode(inputs), levels)),
    }


def apart(rows: Sequence[Row]) -> list[Row]:
    """Rows of sums, such as ``encode and scores``, less their first part."""
    found: list[Row] = []
    for row in rows:
        first, _, second = row.what.partition(" and ")
        base = next(
            (other for other in rows if second and other.what == first and other.compiled == row.compiled), None
        )
        if base is None:
            found.append(row)
            continue
        less = {
            name: getattr(row, name) - getattr(base, name) for name in asdict(row) if name not in ("what", "compiled")
        }
        found.append(Row(second, row.compiled, **less))
    return found


def page(rows: Sequence[Row], told: Mapping[str, Any]) -> str:
    """The rows with what is needed to judge them."""
    what = "launches" if told["device"] == "cuda" else "operators"
    lines = [
        "# What a request asks of the device",
        "",
        f"{told['hardware']}; {report.versions(told)}; size {told['size']}, seed {told['seed']}.",
        "",
        told["protocol"],
        "",
        f"| call | compiled | {what} | graphs | reads | copies | waits | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in apart(rows):
        lines.append(
            f"| {row.what} | {'yes' if row.compiled else 'no'} | {row.launches} | {row.graphs} | {row.reads} | "
            f"{row.copies} | {row.waits} | {1e3 * row.seconds:.2f} ms |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Count, and write to standard output and ``--out``."""
    options = _options(argv)
    size = paper_speed.SIZES[options.size]
    if size.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--size {options.size} needs a CUDA device with about 20 GB, and torch sees none; use --size small.")
    torch.set_num_threads(options.threads)
    report.quiet()
    models, inputs = paper_speed.built(size, options.seed)
    flex = models["routed"]
    told = {
        "size": options.size,
        "seed": options.seed,
        "device": size.device,
        **report.surroundings(size.device),
        "protocol": PROTOCOL.format(
            model=sizes.describe(size, flex, inputs).split("; a batch")[0],
            image=size.image,
            words=size.words,
            dtype=str(size.dtype).removeprefix("torch."),
            warm=options.warm,
            runs=options.runs,
            read=READ,
            counted="launches of kernels, those of compiled graphs included"
            if size.device == "cuda"
            else "on the CPU "
            "operators that are no view and no allocation; what a compiled graph fuses isn't among them",
        ),
    }
    rows: list[Row] = []
    for compiled in (False, True)[: 1 if options.eager else 2]:
        if compiled:
            flex.compile(**({"mode": options.mode} if options.mode else {}))
        for what, call in settings(flex, inputs).items():
            rows.append(counted(what, call, options, size.device, compiled))
            sys.stderr.write(f"{rows[-1]}\n")
            report.keep(options.out, page(rows, told), {"rows": [asdict(row) for row in apart(rows)], **told})
    sys.stdout.write(page(rows, told))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes.SIZES, default="small", help="tiny only shows that it runs")
    parser.add_argument("--out", type=Path, help="Markdown file to write; JSON goes beside it")
    parser.add_argument("--eager", action="store_true", help="count without flex.compile() only")
    parser.add_argument("--mode", help="of torch.compile, e.g. reduce-overhead")
    parser.add_argument("--warm", type=int, default=3, help="calls before the one that is counted")
    parser.add_argument("--runs", type=int, default=10, help="timed calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

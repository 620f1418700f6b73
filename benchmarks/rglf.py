"""What training and routing cost, against a plain implementation of the published procedure.

    python -m benchmarks.rglf --size small            # under ten minutes on two CPU cores
    python -m benchmarks.rglf --size small --json     # the same figures as one JSON line
    python -m benchmarks.rglf --size 7b --out benchmarks/results/rglf_7b.md

Nothing is reported unless both sides compute the same losses and gradients.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import arithmetic, memory, report, routers, sizes, step_time, stored
from benchmarks.measure import Row
from benchmarks.steps import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from tokenflex.files import write_whole

PARTS = ("stage3", "stage4", "router", "store", "levels")
PROTOCOL = """\
Ratios are ours / baseline. The baseline is `benchmarks/published.py`: the published procedure written down plainly,
with the vision tower run again for every level (and once more for the router), float32 logits of the whole vocabulary
at every position, and in stage 3 all levels' graphs and logits alive until one backward pass. As in the published code
the vision tower has no gradients in stage 3, on either side; only rows that say `vision tower trained` (JSON keys
`stage3_tower_trained_...`) train it on both sides, as the paper describes and the published code doesn't do, in each of
the baseline's passes. Ours is `MultiGranularityObjective(memory="low")` and `RGLFObjective()`; `packed` (with attention
of variable length) and `joint` are the other ways through the levels. Model: {model}. Other parameters are frozen as
the stage does. Before anything is reported, both sides have to agree on the loss to {loss:g} and on gradients to
{gradient:g} (relative, float32, dropout 0).

Time: seconds of forward and backward without optimizer step; both sides take turns in one process, after one untimed
run of each, in an order that turns round every time; figures are medians, ratios medians of the pairs' ratios,
spreads their least and greatest. FLOPs: as torch's counter sees them, attention included; exact, so counted once.
Memory: peak above the loaded model (gradients included), {memory}, every run in a process of its own{threads}.
Router: one image of {tiles} tiles of {patches} x {patches} tokens with {words} words, pooling included, without
gradients. Store: `RGLFTrainer` on both sides with the same order of samples and the same start, ours from a store
with router inputs, the baseline our own stage 4 with the model in the loop; the ratio is that of the sums over
epochs, the spread that of single epochs; both runs have to end with the same router. Rows on the number of levels
compare `low` (ours) with `joint` (baseline).

Arithmetic: `benchmarks/arithmetic.py` counts the same steps module by module, for this size and for the 7B model
(LLaVA-NeXT on Vicuna 7B, images of 672 x 672 pixels, 200 text tokens, 100 of them supervised, layers computed again
in the backward pass). What the tower and the logits weigh depends on the size: with 7B parameters the ratios of FLOPs,
and so of time wherever arithmetic is what takes it, are those of the last column, however small the measured ones are.\
"""


def measured(name: str, size: sizes.Size, seed: int, threads: int, only: Collection[str]) -> tuple[list[Row], str]:
    """All rows asked for, and a description of the model."""
    if set(only) & set(memory.COMPARISONS):
        _say("peak memory")
    peaks = memory.rows(name, seed, tuple(only), together=1 if size.device == "cuda" else threads)
    flex, batch = sizes.flex_model(size, seed), sizes.batch(size, seed)
    model = sizes.describe(size, flex, batch)
    found: list[Row] = []
    for stage in (3, 4):
        if f"stage{stage}" in only:
            _say(f"stage {stage}")
            found += [*step_time.rows(size, flex, batch, seed, stage), *peaks[f"stage{stage}"]]
    if "router" in only:
        _say("router")
        found += routers.rows(size, seed)
    if "store" in only:
        _say("store")
        found += stored.rows(size, flex, batch, seed)
    return found + peaks.get("levels", []), model


def _say(what: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")


ARITHMETIC = {
    "stage3": "stage 3",
    "stage3_tower_trained": "stage 3, vision tower trained",
    "stage4": "stage 4",
    "router": "router",
}
"""Key of a ratio of FLOPs -> what it is of."""


def counted(name: str) -> dict[str, dict[str, float]]:
    """Ratios of FLOPs from arithmetic, for a size and for 7B, by the keys of `ARITHMETIC`."""
    found = {size: arithmetic.ratios(sizes.SIZES[size]) for size in dict.fromkeys((name, "7b"))}
    return {key: {size: ratios[key] for size, ratios in found.items()} for key in ARITHMETIC}


def counted_table(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """The same as Markdown."""
    names = next(iter(ratios.values()))
    lines = [f"| FLOPs by arithmetic, ours / baseline | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for key, found in ratios.items():
        lines.append(f"| {ARITHMETIC[key]} | {' | '.join(f'{ratio:.3f}' for ratio in found.values())} |")
    return "\n".join(lines) + "\n"


def protocol(size: sizes.Size, model: str) -> str:
    """How the figures were made."""
    on_cuda = size.device == "cuda"
    return PROTOCOL.format(
        model=model,
        loss=LOSS_TOLERANCE,
        gradient=GRADIENT_TOLERANCE,
        memory="as CUDA's allocator counts it" if on_cuda else "resident",
        threads="" if on_cuda else " with one thread",
        tiles=size.tiles,
        patches=size.patches,
        words=size.router_words,
    )


def results(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and what else the JSON line says."""
    size = sizes.SIZES[options.size]
    if options.pairs:
        size = replace(size, pairs=options.pairs, extra_pairs=min(size.extra_pairs, options.pairs))
    if options.widths:
        size = replace(size, routers=tuple(options.widths))
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        rows, model = measured(options.size, size, options.seed, options.threads, options.only)
        _say("arithmetic")
        ratios = counted(options.size)
    told = {
        "size": options.size,
        "seed": options.seed,
        "threads": options.threads,
        "n": size.pairs,
        "seconds": time.perf_counter() - start,
        "arithmetic": ratios,
        **{f"{key}_flop_ratio_7b": found["7b"] for key, found in ratios.items()},
        "protocol": protocol(size, model),
        **report.surroundings(size.device),
    }
    return rows, told


def main(argv: list[str] | None = None) -> None:
    """Measure, and write to standard output and ``--out``."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    if sizes.SIZES[options.size].device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--size {options.size} needs a CUDA device with about 80 GB, and torch sees none; use --size small.")
    report.quiet()
    rows, told = results(options)
    _say("done")
    table = counted_table(told["arithmetic"])
    if options.out:
        page = report.page(rows, told, " ".join(["python -m benchmarks.rglf", *argv]))
        _write(options.out, f"{page}\n{table}")
    if options.json:
        sys.stdout.write(json.dumps({**report.figures(rows), **told}) + "\n")
    else:
        sys.stdout.write(f"{report.table(rows)}\n{table}")


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes.SIZES, default="small", help="tiny only shows that it runs")
    parser.add_argument("--json", action="store_true", help="write one JSON line and nothing else")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the CPU")
    parser.add_argument("--widths", type=int, nargs="+", help="of the routers alone; by default the size's own")
    parser.add_argument("--pairs", type=int, help="pairs of timed runs; by default the size's own, 5")
    return parser.parse_args(argv)


def _parts(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(PARTS)}")
    return chosen


def _write(path: Path, text: str) -> None:
    """The file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


if __name__ == "__main__":
    main()

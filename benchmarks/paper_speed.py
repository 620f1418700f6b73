"""How much faster requests get at the shares of tokens that AVG-LLaVA keeps on each benchmark, router included.

    python -m benchmarks.paper_speed --size small            # minutes on two CPU cores
    python -m benchmarks.paper_speed --size small --json     # the same figures as one JSON object
    python -m benchmarks.paper_speed --size 7b --out benchmarks/results/paper_speed_7b.md
    python -m benchmarks.paper_speed --size small --tables before-tower   # levels that are smaller images

Published figures: AVG-LLaVA (arXiv 2410.02745), table of tokens kept and speed-ups.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tokenflex
from benchmarks import before_tower, measure, qwen, report, sizes
from benchmarks.measure import Flops
from benchmarks.mixing import mix, mixed
from tokenflex.files import write_whole
from tokenflex.model import FlexModel
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.routers.avg import AVGRouter

PUBLISHED = (
    ("AI2D", 0.147, 2.53),
    ("VizWiz", 0.264, 1.77),
    ("MMMU", 0.300, 1.87),
    ("ScienceQA", 0.549, 1.41),
    ("MME", 0.693, 1.19),
    ("GQA", 0.800, 1.14),
    ("ChartQA", 0.991, 0.97),
)
"""(benchmark, share of tokens kept, speed-up over keeping all)."""
SIZES = {
    "tiny": replace(sizes.TINY, words=12, pairs=1),
    "small": replace(
        sizes.SMALL,
        vision={**sizes.SMALL.vision, "hidden_size": 232, "intermediate_size": 928, "num_attention_heads": 4},
        text={"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 17,
              "num_attention_heads": 8, "num_key_value_heads": 8},
        image=(336, 336), words=64, batch=1, pairs=10,
    ),
    "7b": replace(sizes.VICUNA_7B, words=64, checkpointing=False, pairs=20),
}  # fmt: skip
"""``small`` has the shares of the 7B model at the coarsest level, by FLOPs: the router adds 19 % to a request, and the
vision tower is 35 % of one without it. A router is as wide as the language model, and its share grows with that width,
so the small language model is wide for its number of layers: 512 and 17."""
TABLES = ("published", "before-tower")
PROTOCOL = """\
{model}. One request at a time (batch 1): one image of {image[0]} x {image[1]} pixels, {words} text tokens,
{answers} new tokens, greedy, the end token never written; {dtype}, attention {attention}. Vanilla is the stock host on
all tokens. A routed request runs vision tower, router, splice, prefill and decode; random weights would choose at
random, so the router is run in full and its choice is then replaced by a given level. A benchmark's share of tokens is
met by mixing the two levels next to it; requests come one after another, so the mix's time is the weighted mean of its
levels' times. All settings take turns in every round, in an order that turns round, after one untimed round; a round's
speed-up is vanilla's time by the mix's; figures are medians over {n} rounds, spreads their least and greatest.
`pooled` is the router whose votes come from all levels but the finest. At the coarsest level a router adds 19 % to a
request's FLOPs at 7B with images of 672 x 672 pixels (`pooled` 9 %; `benchmarks/arithmetic.py`); in size `small` the
router, and with it the language model, is made so wide that it adds the same there, so no row is scaled.\
"""


@dataclass(frozen=True)
class Row:
    """One benchmark.

    Attributes:
        kept: published share of tokens, which the mix of levels meets.
        measured_speedup, spread: over vanilla, router included.
        pooled_speedup: the same with ``rows="pooled"``.
        forced_speedup: the same mix without any router: what routing could reach at most.
    """

    benchmark: str
    kept: float
    published_speedup: float
    measured_speedup: float
    spread: tuple[float, float]
    pooled_speedup: float
    forced_speedup: float


def speedups(seconds: Mapping[str, Sequence[float]], router: str, weights: Mapping[int, float]) -> list[float]:
    """Vanilla's time by that of a mix of levels, round by round."""
    times = mixed(seconds, router, weights)
    return [vanilla / ours for vanilla, ours in zip(seconds["vanilla"], times, strict=True)]


def rows(seconds: Mapping[str, Sequence[float]], shares: Sequence[float]) -> list[Row]:
    """One per published benchmark.

    Args:
        seconds: of every setting, round by round.
        shares: of tokens, by level.
    """
    found: list[Row] = []
    for name, kept, published in PUBLISHED:
        weights = mix(kept, shares)
        routed = speedups(seconds, "routed", weights)
        others = [statistics.median(speedups(seconds, router, weights)) for router in ("pooled", "forced")]
        found.append(Row(name, kept, published, statistics.median(routed), (min(routed), max(routed)), *others))
    return found


def overheads(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """What routing adds at the coarsest level: its time by that of forcing the level, round by round."""
    found: dict[str, dict[str, float]] = {}
    for router in ("routed", "pooled"):
        ratios = [ours / forced for ours, forced in zip(seconds[f"{router} 0"], seconds["forced 0"], strict=True)]
        found[router] = {"ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return found


def runs(models: Mapping[str, FlexModel], inputs: dict[str, Any], answers: int) -> dict[str, Callable[[], Any]]:
    """Every setting as a call that answers one request.

    Args:
        models: ``routed`` and ``pooled``, on one host.
        answers: new tokens.
    """
    flex = models["routed"]
    asked = {**inputs, "max_new_tokens": answers, "min_new_tokens": answers, "do_sample": False}
    found: dict[str, Callable[[], Any]] = {"vanilla": partial(flex.host.generate, **asked)}
    for level in range(flex.compressor.num_levels):
        found[f"forced {level}"] = partial(flex.generate, **asked, level=level)
        for name, model in models.items():
            found[f"{name} {level}"] = partial(model.generate, **asked, budget=ConstantPolicy.Config(level=level))
    return found


def built(size: sizes.Size, seed: int) -> tuple[dict[str, FlexModel], dict[str, Any]]:
    """Both routers on one host, and one request."""
    host = sizes.host(size, seed).eval()
    dtype = size.dtype
    models = {
        name: tokenflex.wrap(host, router=AVGRouter.Config(rows=rows), dtype=dtype).eval()
        for name, rows in (("routed", "all"), ("pooled", "pooled"))
    }
    processor = sizes.collator(size).processor
    (sample,) = [sizes.dataset(replace(size, answers=2), seed, 1)[0]]
    question = sample.messages[0]["content"]
    text = processor.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    made = processor(images=list(sample.images), text=text, return_tensors="pt")
    inputs = {k: v.to(size.device, dtype) if v.is_floating_point() else v.to(size.device) for k, v in made.items()}
    return models, inputs


def measured(size: sizes.Size, seed: int, answers: int) -> dict[str, Any]:
    """Everything: rows, overheads, FLOPs, times, protocol."""
    models, inputs = built(size, seed)
    flex = models["routed"]
    with torch.no_grad():
        counts = [int(count) for count in flex.encode(inputs).counts[0]]
    calls = runs(models, inputs, answers)
    flops = {}
    for name in ("vanilla", "forced 0", "routed 0", "pooled 0"):
        counter = Flops()
        counter(calls[name])
        flops[name] = counter.counts[0]
    measure.alternated(calls, dict.fromkeys(calls, 1), size.device)
    seconds = measure.alternated(calls, dict.fromkeys(calls, size.pairs), size.device)
    shares = [count / counts[-1] for count in counts]
    model = sizes.describe(size, flex, inputs)
    return {
        "rows": [asdict(row) for row in rows(seconds, shares)],
        "router_overhead": overheads(seconds),
        "tokens": counts,
        "flops": flops,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "protocol": PROTOCOL.format(
            model=model.split("; a batch")[0] + f"; {', '.join(map(str, counts))} visual tokens at the levels",
            image=size.image,
            words=size.words,
            answers=answers,
            dtype=str(size.dtype).removeprefix("torch."),
            attention=flex.host.config._attn_implementation,
            n=size.pairs,
        ),
    }


def before(size: sizes.Size, other: qwen.QwenSize, seed: int, answers: int) -> dict[str, Any]:
    """Levels before the vision tower beside levels after it, on both geometries.

    Args:
        other: the model of Qwen2.5-VL's geometry.
    """
    models, inputs = built(size, seed)
    told = f"one image of {size.image[0]} x {size.image[1]} pixels, {size.words} text tokens"
    tiled = before_tower.of_llava_next(models["routed"].host, inputs, told, size.dtype)
    found = [before_tower.measured(tiled, answers, size.pairs, size.device)]
    del models, tiled
    found.append(before_tower.measured(before_tower.of_qwen(other, seed), answers, size.pairs, size.device))
    dtype = str(size.dtype).removeprefix("torch.")
    return {
        "geometries": found,
        "figures": {name: before_tower.figure(qwen.SIZES[name], answers) for name in ("small", "7b")},
        "protocol": before_tower.PROTOCOL.format(answers=answers, dtype=dtype, n=size.pairs),
    }


def before_table(found: Mapping[str, Any]) -> str:
    """The results of `before` as Markdown."""
    told = "\n".join(f"- {one['geometry']}: {one['model']}" for one in found["geometries"])
    figures = "\n".join(
        f"What one image costs at {name} with Qwen2.5-VL's geometry, in GFLOPs, by arithmetic:\n\n{figure}"
        for name, figure in found["figures"].items()
    )
    return "\n\n".join([found["protocol"], told, before_tower.table(found["geometries"]), figures])


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| benchmark | tokens kept | published | measured | spread | pooled rows | no router |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        low, high = row["spread"]
        lines.append(
            f"| {row['benchmark']} | {100 * row['kept']:.1f} % | {row['published_speedup']:.2f}x | "
            f"{row['measured_speedup']:.2f}x | {low:.2f}-{high:.2f} | {row['pooled_speedup']:.2f}x | "
            f"{row['forced_speedup']:.2f}x |"
        )
    lines += [
        "",
        "| at the coarsest level | time by that of forcing it | spread | FLOPs by the same |",
        "|---|---|---|---|",
    ]
    for router, ratio in found["router_overhead"].items():
        flops = found["flops"][f"{router} 0"] / found["flops"]["forced 0"]
        lines.append(
            f"| {router} | {ratio['ratio']:.3f} | {ratio['least']:.3f}-{ratio['greatest']:.3f} | {flops:.3f} |"
        )
    return "\n".join(lines) + "\n"


def page(found: Mapping[str, Any], command: str) -> str:
    """The tables that were made, with what is needed to judge them."""
    about = (
        f"{datetime.date.today()}; {found['hardware']}, {found['threads']} threads; "
        f"{report.versions(found)}; `{command}`."
    )
    pieces: list[str] = []
    if "rows" in found:
        pieces += ["# Speed at the published shares of tokens", about, found["protocol"], table(found)]
    if "before_tower" in found:
        pieces += ["# Levels before the vision tower", about, before_table(found["before_tower"])]
    return "\n\n".join(pieces)


def main(argv: list[str] | None = None) -> None:
    """Measure, and write to standard output and ``--out``."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    size = SIZES[options.size]
    if options.rounds:
        size = replace(size, pairs=options.rounds)
    if size.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--size {options.size} needs a CUDA device with about 20 GB, and torch sees none; use --size small.")
    torch.set_num_threads(options.threads)
    report.quiet()
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "n": size.pairs, **report.surroundings(size.device)}
    if "published" in options.tables:
        found |= measured(size, options.seed, options.answers)
    if "before-tower" in options.tables:
        found["before_tower"] = before(size, qwen.SIZES[options.size], options.seed, options.answers)
    written = page(found, " ".join(["python -m benchmarks.paper_speed", *argv]))
    if options.out:
        write_whole(options.out, written)
    sys.stdout.write(json.dumps(found) + "\n" if options.json else written)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="tiny only shows that it runs")
    parser.add_argument("--json", action="store_true", help="write one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=TABLES[:1], help="what is measured (default: published)"
    )
    parser.add_argument("--answers", type=int, default=5, help="new tokens per request (default 5)")
    parser.add_argument("--rounds", type=int, help="timed rounds; by default the size's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of the CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

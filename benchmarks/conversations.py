"""How long a turn of a conversation is read for: what earlier turns left is kept, or read again.

python -m benchmarks.conversations --out benchmarks/results/conversations_small.md --svg docs/images/conversations.svg

A Qwen2.5-VL of transformers' own classes with random weights. Every second turn brings an image; the turn behind it
asks again without one. All images stay at the finest level, or share a budget and fade.
"""

import argparse
import datetime
import io
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

import tokenflex
from benchmarks import measure, qwen, report
from tokenflex.files import write_whole

IMAGES, SIDE = 12, 224
KINDS = ("fine", "fade")
PROTOCOL = """\
{images} images of {side} x {side} pixels ({tokens} visual tokens each at the finest level), one in every second turn;
the turns between ask again without one. {text}; random weights, {dtype}. `fine`: every image at the finest level.
`fade`: `Fade(tokens={budget}, recall=0.0)`, {share:.0%} of all images' tokens at the end. Seconds are of a whole turn
with one new token: the vision tower over a new image, the choice of levels, and the language model over what it has to
read. *Kept* goes on from the cache of the turn before; *again* has let go of it, and reads the whole prompt, with the
images' features still at hand, so it is not the slowest way there is. Both take the same turn one after the other, in
an order that changes from turn to turn, after one untimed conversation each. Ratios are kept by again; medians over
{n} conversations, spreads their least and greatest. The FLOP limit is the same ratio of the FLOPs that torch counted in
these very calls.\
"""


def turns(size: qwen.QwenSize, images: int) -> list[dict[str, Any]]:
    """Every second one with an image."""
    found: list[dict[str, Any]] = []
    for number in range(images):
        shown = qwen.request(size, number)
        if number:
            per_token = ("input_ids", "attention_mask", "mm_token_type_ids")
            shown = {name: value[:, 1:] if name in per_token else value for name, value in shown.items()}
        asked = shown["input_ids"][:, -size.words // 2 :]
        found += [shown, {"input_ids": asked, "attention_mask": torch.ones_like(asked)}]
    return found


def conversation(flex: Any, kind: str, budget: int) -> tokenflex.Conversation:
    """One that nothing was said in."""
    return tokenflex.Conversation(flex, budget=tokenflex.Fade(tokens=budget, recall=0.0) if kind == "fade" else None)


def held(flex: Any, kind: str, budget: int, said: Sequence[dict[str, Any]], count: bool) -> list[dict[str, Any]]:
    """One conversation twice, turn by turn: (seconds or FLOPs with the cache kept, and read again)."""
    kept, again = (conversation(flex, kind, budget) for _ in range(2))
    options = {"level": None if kind == "fade" else "finest", "max_new_tokens": 1, "min_new_tokens": 1}
    found: list[dict[str, Any]] = []
    for number, turn in enumerate(said):
        row: dict[str, Any] = {}
        pair = [("kept", kept), ("again", again)]
        for name, one in pair if number % 2 == 0 else pair[::-1]:
            if one is again:
                one._cache.clear()
            level = options["level"] if len(one.decisions) or "pixel_values" in turn else None

            call = partial(one.go_on, turn, **{**options, "level": level})

            if count:
                flops = measure.Flops()
                reply = flops(call)
                row[name] = float(flops.counts[-1])
            else:
                start = time.perf_counter()
                reply = call()
                row[name] = time.perf_counter() - start
            row[f"{name} read"], row["prompt"], row["visual"] = reply.read, reply.read + reply.reused, reply.tokens
        found.append(row)
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, FLOPs and tokens of every turn."""
    size = replace(qwen.SIZES[options.size], image=options.side)
    flex = tokenflex.wrap(qwen.host(size, 0), router="constant", voter="mean").eval()
    said = turns(size, options.images)
    full = int(flex.encode(said[0]).counts[0, -1])
    budget, start = int(0.35 * full * options.images), time.perf_counter()
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        flops = held(flex, kind, budget, said, count=True)
        rounds = [held(flex, kind, budget, said, count=False) for _ in range(options.rounds)]
        rows[kind] = [
            {
                **{name: flops[i][name] for name in ("prompt", "visual", "kept read")},
                "limit": flops[i]["kept"] / flops[i]["again"],
                "kept": [one[i]["kept"] for one in rounds],
                "again": [one[i]["again"] for one in rounds],
            }
            for i in range(len(said))
        ]
    text = sum(p.numel() for p in flex.adapter.parameter_groups()["language_model"]) / 1e6
    tower = sum(p.numel() for p in flex.adapter.parameter_groups()["vision_tower"]) / 1e6
    told = PROTOCOL.format(
        images=options.images, side=options.side, tokens=full, budget=budget, share=0.35, n=options.rounds,
        text=f"Language model {text:.1f} M parameters, vision tower {tower:.1f} M",
        dtype=str(size.dtype).removeprefix("torch."),
    )  # fmt: skip
    return {
        **report.surroundings("cpu"),
        **{"protocol": told, "rows": rows, "seconds": time.perf_counter() - start, "threads": torch.get_num_threads()},
    }


def ratio(row: dict[str, Any]) -> tuple[float, float, float]:
    """(median, least, greatest) of kept by again."""
    found = [one / other for one, other in zip(row["kept"], row["again"], strict=True)]
    return statistics.median(found), min(found), max(found)


def page(told: dict[str, Any], command: str) -> str:
    """The tables with what is needed to judge them."""
    lines = [
        "# Turns of a conversation: kept or read again",
        "",
        f"{datetime.date.today()}; {told['hardware']}, {told['threads']} thread(s); {report.versions(told)}; "
        f"`{command}`; {told['seconds'] / 60:.1f} minutes.",
        "",
        told["protocol"],
    ]
    for kind in KINDS:
        lines += [
            "",
            f"## {kind}",
            "",
            "| turn | visual tokens | prompt | read | again | kept | ratio | spread | FLOP limit |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for number, row in enumerate(told["rows"][kind], 1):
            middle, low, high = ratio(row)
            again, kept = (statistics.median(row[name]) for name in ("again", "kept"))
            lines.append(
                f"| {number} | {row['visual']} | {row['prompt']} | {row['kept read']} | {again:.2f} s | {kept:.2f} s | "
                f"{middle:.2f} | {low:.2f} to {high:.2f} | {row['limit']:.2f} |"
            )
    return "\n".join([*lines, ""])


def curve(told: dict[str, Any]) -> str:
    """Seconds by turn, as SVG."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "conversations", "font.size": 11}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for kind, colour in zip(KINDS, ("#c0392b", "#2471a3"), strict=True):
            rows, places = told["rows"][kind], range(1, len(told["rows"][kind]) + 1)
            for name, style in (("again", "--"), ("kept", "-")):
                seconds = [statistics.median(row[name]) for row in rows]
                axes.plot(places, seconds, style, color=colour, marker=".", label=f"{kind}, {name}")
        axes.set_xlabel("turn (odd turns bring an image)")
        axes.set_ylabel("seconds until the first token")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return target.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--size", choices=sorted(qwen.SIZES), default="small")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--side", type=int, default=SIDE, help="of an image, in pixels; a multiple of 112")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the page here, and its figures beside it")
    parser.add_argument("--svg", type=Path, help="write the curve here")
    options = parser.parse_args(argv)
    report.quiet()
    torch.set_num_threads(1)
    told = measured(options)
    written = page(
        told, f"python -m benchmarks.conversations {' '.join(sys.argv[1:] if argv is None else argv)}".strip()
    )
    report.keep(options.out, written, told)
    if options.svg:
        write_whole(options.svg, curve(told))
    sys.stdout.write(written + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

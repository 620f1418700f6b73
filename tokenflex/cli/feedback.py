"""``tokenflex feedback recipe.yaml``: score a data set once with the frozen LMM."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tokenflex.cli import early


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "feedback",
        help="score a data set once with the frozen LMM, at every level",
        description="Score the data of a stage 4 recipe once, at every level, into the folder that its key 'feedback' "
        "names. Stopped or killed, it goes on where it was; under torchrun each process takes its share. With "
        "--levels-cache it also stores what a router sees, and routers are trained without the host. Options of the "
        "recipe can be overridden: --per_device_eval_batch_size 16",
        add_help=False,
    )
    parser.add_argument("recipe", nargs="?", help="YAML file; 'tokenflex train --help' lists every key")
    parser.add_argument("-h", "--help", action="store_true", dest="wants_help")
    parser.set_defaults(run=run, takes_overrides=True, parser=parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Score what isn't scored yet, and say what there is."""
    if options.wants_help or options.recipe is None:
        options.parser.print_help()
        return 0 if options.wants_help else 2
    early.recipe(options.recipe)
    from transformers.utils import logging

    from tokenflex.training import recipe, run

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # of loading weights; this pass writes lines
    settings, arguments = recipe.read(options.recipe, overrides)
    first = arguments.process_index == 0
    store = run.feedback(settings, arguments, say=print if first else lambda line: None)
    if first:
        unanswered = int((store.answer_tokens == 0).sum())
        print(f"{len(store)} samples scored at {store.nll.shape[1]} levels, {unanswered} of them without an answer")
        print(f"Saved to {store.folder}")
    return 0

"""``tokenflex train recipe.yaml``: run one training stage."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tokenflex.cli import early


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "train",
        help="run one training stage from a YAML recipe",
        description="Run one training stage. Options of the recipe can be overridden: --num_train_epochs 2",
        add_help=False,
    )
    parser.add_argument("recipe", nargs="?", help="YAML file; 'tokenflex train --help' lists every key")
    parser.add_argument("-h", "--help", action="store_true", dest="wants_help")
    parser.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train, or list every key of a recipe."""
    if options.wants_help or options.recipe is None:
        _help()
        return 0 if options.wants_help else 2
    early.recipe(options.recipe)
    from transformers.utils import logging

    from tokenflex.training import recipe, run

    settings, arguments = recipe.read(options.recipe, overrides)
    if not sys.stderr.isatty():  # the trainer's and transformers' bars would fill a log with halves of lines
        logging.disable_progress_bar()
        arguments.disable_tqdm = True
    first = arguments.process_index == 0
    run.train(settings, arguments, say=print if first else lambda line: None)
    print(f"Saved to {arguments.output_dir}")
    return 0


def _help() -> None:
    """Print every key, this library's own first."""
    from dataclasses import fields

    from transformers import TrainingArguments

    from tokenflex.training import FlexTrainingArguments, recipe

    parser = recipe.parser()
    theirs = {field.name for field in fields(TrainingArguments)}
    shared = {field.name for field in fields(FlexTrainingArguments)} & theirs
    groups = {
        "keys of TokenFlex": [action for action in parser._actions if action.dest not in {*shared, "help"}],
        "keys of transformers' TrainingArguments": [action for action in parser._actions if action.dest in shared],
    }
    formatter = parser.formatter_class(prog=parser.prog)
    for title, actions in groups.items():
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    print("usage: tokenflex train RECIPE.yaml [--KEY VALUE ...]\n\nKeys of the recipe, and options:\n")
    print(formatter.format_help(), end="")

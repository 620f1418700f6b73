"""``tokenflex train recipe.yaml``: run one training stage."""

import argparse
from collections.abc import Sequence
from typing import Any


def register(commands: Any) -> None:
    """Add the command."""
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
    from tokenflex.training import recipe, run

    if options.wants_help or options.recipe is None:
        print("usage: tokenflex train RECIPE.yaml [--KEY VALUE ...]\n\nKeys of the recipe, and options:\n")
        recipe.parser().print_help()
        return 0 if options.wants_help else 2
    settings, arguments = recipe.read(options.recipe, overrides)
    first = arguments.process_index == 0
    run.train(settings, arguments, say=print if first else lambda line: None)
    print(f"Saved to {arguments.output_dir}")
    return 0

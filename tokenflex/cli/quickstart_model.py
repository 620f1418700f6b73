"""The model of commands that are given none: what ``tokenflex quickstart`` left here, or leaves now."""

import contextlib
import os
import sys
from pathlib import Path

from tokenflex.files import locked

TRAINED = ("quickstart/model", "runs/quickstart/model")
"""Where ``tokenflex quickstart`` and ``just quickstart`` leave their model."""


def quickstart_model() -> str:
    """The folder of the quickstart's model: trained now if there is none, or waited for if another process trains it.

    Raises:
        ConfigError: there is none, and several processes would train it.
    """
    for folder in TRAINED:
        with locked(Path(folder), waiting=_say_waiting):
            if Path(folder, "config.json").is_file():
                return folder
    from tokenflex.errors import ConfigError
    from tokenflex.quickstart.run import run as quickstart

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("no model was given, and 'tokenflex quickstart' has left none here. Run that first.")
    with locked(Path(TRAINED[0]), waiting=_say_waiting):
        if not Path(TRAINED[0], "config.json").is_file():
            print("No model was given and none is in quickstart/model: running 'tokenflex quickstart' first, five "
                  "to eight minutes.", file=sys.stderr)  # fmt: skip
            with contextlib.redirect_stdout(sys.stderr):
                quickstart(Path(TRAINED[0]).parent)
    return TRAINED[0]


def _say_waiting() -> None:
    print("Another process is making the quickstart's model; waiting for its end.", file=sys.stderr)

"""What an interrupted run leaves: its model after the last whole phase, which the same command takes up again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

import tokenflex
from tokenflex.files import sweep, whole

NAME = "unfinished.safetensors"


class Unfinished:
    """The file of a run that isn't finished, in the run's folder.

    Every phase begins with seeds of its own, so a run that goes on gives what an uninterrupted one gives.

    Args:
        asked: the settings of the run; a file of other settings, or of other versions, isn't taken up.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        versions = (tokenflex.__version__, torch.__version__, transformers.__version__)
        self.run = hashlib.sha256(repr((sorted(asked.items()), versions)).encode()).hexdigest()

    def seconds(self) -> dict[str, float]:
        """What phases took that are done, by name, in their order; empty where there is nothing to take up."""
        try:
            with safe_open(self.path, "pt") as held:
                found = held.metadata() or {}
            return json.loads(found["seconds"]) if found.get("run") == self.run else {}
        except (OSError, SafetensorError, ValueError, KeyError):
            return {}

    def load(self, model: nn.Module) -> None:
        """Give a model the weights it had after the last phase."""
        load_model(model, str(self.path))

    def keep(self, model: nn.Module, seconds: Mapping[str, float]) -> None:
        """Write what `load` reads, as a whole or not at all.

        Args:
            seconds: of the phases that are done, by name.
        """
        sweep(self.path.parent, NAME)
        with whole(self.path) as scratch:
            save_model(model, str(scratch), {"run": self.run, "seconds": json.dumps(dict(seconds))})

    def remove(self) -> None:
        """The run is finished."""
        self.path.unlink(missing_ok=True)

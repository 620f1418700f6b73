"""What an interrupted run leaves: its model after the last whole phase, which the same command takes up again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import transformers
from safetensors.torch import save_file

import tokenflex
from tokenflex import reading
from tokenflex.errors import ConfigError
from tokenflex.files import sweep, whole
from tokenflex.ops.digest import of_tensors

NAME = "unfinished.safetensors"


@runtime_checkable
class HasState(Protocol):
    """A module, or something else whose state is tensors by name."""

    def state_dict(self) -> dict[str, Any]:
        """The tensors, by name."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take them up."""
        ...


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
        """What phases took that are done, by name, in their order; empty where nothing whole is there to take up."""
        try:
            metadata, state, _ = reading.tensors_once(self.path, lambda *_: None)
            if metadata.get("run") != self.run or metadata.get("tensors") != of_tensors(state):
                return {}
            found = reading.json_text(metadata["seconds"], str(self.path))
            return {str(name): float(took) for name, took in found.items()}
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def load(self, model: HasState) -> None:
        """Give a model the weights it had after the last phase."""
        model.load_state_dict(reading.tensors(self.path))

    def keep(self, model: HasState, seconds: Mapping[str, float]) -> None:
        """Write what `load` reads, as a whole or not at all.

        Args:
            seconds: of the phases that are done, by name.
        """
        sweep(self.path.parent, NAME)
        with whole(self.path) as scratch:
            state = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
            metadata = {"run": self.run, "seconds": json.dumps(dict(seconds)), "tensors": of_tensors(state)}
            save_file(state, scratch, metadata)

    def remove(self) -> None:
        """Remove the file, once the run is finished."""
        self.path.unlink(missing_ok=True)

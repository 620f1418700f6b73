"""Safetensors shards, read tensor by tensor and never unpickled."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenflex import reading
from tokenflex.errors import ConfigError
from tokenflex.files import bare_name

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
METADATA = {"format": "pt"}
WEIGHT = re.compile(r"(weight|bias|voter|image_newline|class_embedding)$")
"""Names of tensors that are learned."""


class Shards:
    """The tensors of a folder, by name.

    Args:
        folder: holds ``model.safetensors``, or an index and its shards.

    Raises:
        ConfigError: no safetensors, an unreadable file, an index that its shards don't bear out, or one that names
            files elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX)
            self.file_of = shard_names(index.get("weight_map"), folder / INDEX)
            self._bear_out()
        elif (folder / SINGLE).is_file():
            self.file_of = dict.fromkeys(self._entries(SINGLE), SINGLE)
        else:
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            hint = f" It has {pickled}: pickles can run code, so they aren't read; save them as safetensors." * bool(
                pickled
            )
            raise ConfigError(f"{folder} has neither {SINGLE} nor {INDEX}.{hint}")

    @property
    def files(self) -> list[str]:
        """Names of the shards' files, in order."""
        return sorted(set(self.file_of.values()))

    def names(self, file: str) -> list[str]:
        """Names of the tensors in one shard's file, sorted."""
        return sorted(name for name, where in self.file_of.items() if where == file)

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), one at a time, shard after shard."""
        for file in self.files:
            wanted = [name for name in names if self.file_of[name] == file]
            if wanted:
                with self._open(file) as tensors:
                    for name in wanted:
                        yield name, tensors.get_tensor(name)

    def _open(self, file: str) -> Any:
        return reading.safetensors_file(reading.own_file(self.folder, file))

    def _entries(self, file: str) -> dict[str, reading.Entry]:
        path = reading.own_file(self.folder, file)
        entries = reading.tensor_names(path)[1]
        odd = [
            f"{name} ({entry.dtype})"
            for name, entry in entries.items()
            if entry.kind != "float" and WEIGHT.search(name)
        ]
        if odd:
            raise ConfigError(f"{path}: weights that aren't floats of 16 bits or more: {odd[:4]}. Download it again.")
        return entries

    def _bear_out(self) -> None:
        for file in self.files:
            present, listed = set(self._entries(file)), set(self.names(file))
            if present != listed:
                raise ConfigError(
                    f"{self.folder / INDEX} and {file} disagree: missing in the file {sorted(listed - present)}, "
                    f"not in the index {sorted(present - listed)}. Download the checkpoint again."
                )


def read_json(path: Path) -> dict[str, Any]:
    """What a file of JSON holds.

    Raises:
        ConfigError: it isn't an object with keys in valid JSON.
    """
    found = reading.json_file(path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no object with keys; the file is damaged. Download it again.")
    return found


def shard_names(index: Any, where: Path) -> dict[str, str]:
    """Tensor -> shard, as a file tells it; every shard is a safetensors file beside the others.

    Args:
        index: what the file holds.
        where: that file, for the message.

    Raises:
        ConfigError: it isn't that, or names a file in another folder.
    """
    if not isinstance(index, dict):
        raise ConfigError(f"{where} doesn't say which file holds each tensor; the file is damaged. Download it again.")
    for file in dict.fromkeys(map(str, index.values())):
        try:
            fits = bare_name(file).endswith(".safetensors")
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(
                f"{where} names the file {file!r}; a shard is a .safetensors file in one folder with the others, "
                "named without that folder. Mend the name, or get the files from someone you trust."
            )
    return {str(name): str(file) for name, file in index.items()}


def write(folder: Path, file: str, tensors: dict[str, Tensor]) -> None:
    """Write one shard's tensors into its file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata=METADATA)


def write_index(folder: Path, file_of: dict[str, str], size: int) -> None:
    """Write the index; a single shard named ``model.safetensors`` needs none."""
    if set(file_of.values()) == {SINGLE}:
        return
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(file_of.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def nbytes(tensor: Tensor) -> int:
    """Size of a tensor's data in bytes."""
    return tensor.numel() * tensor.element_size()


def is_recomputed(name: str, tensor: Tensor) -> bool:
    """Whether a saved buffer is what every host computes anyway.

    Raises:
        ConfigError: positions that aren't 0, 1, 2, ...
    """
    if name.endswith("position_ids") and not torch.equal(tensor.flatten().long(), torch.arange(tensor.numel())):
        raise ConfigError(f"{name!r} isn't 0, 1, 2, ...; stock CLIP can't express other positions.")
    return True

"""Checkpoints to go on from: the newest that is whole, never one whose writing was interrupted."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenflex import checkpoint, reading
from tokenflex.errors import ConfigError, TokenFlexError
from tokenflex.files import bare_name, sweep_tensors

STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer", "scheduler.pt"
WEIGHTS, INDEX, SHARDED = "model.safetensors", "model.safetensors.index.json", "pytorch_model_fsdp"
UNFINISHED = "checkpoint-is-incomplete.txt"
"""What ``enable_jit_checkpoint`` leaves in a folder until it has written everything."""


def checkpoint_to_resume(
    output_dir: str | os.PathLike[str], asked: str | os.PathLike[str] | bool | None, say: Callable[[str], None]
) -> str | None:
    """The folder to go on from, or None to start from the beginning.

    Args:
        output_dir: where a run keeps its ``checkpoint-STEP`` folders.
        asked: a folder; True for the newest whole checkpoint in ``output_dir``, if there is one.
        say: is told what was passed over, and when there is nothing to go on from.

    Raises:
        ConfigError: the folder that was asked for doesn't hold a whole checkpoint.
    """
    if asked is None or asked is False:
        return None
    if asked is not True:
        reason = fault(Path(asked))
        if reason is not None:
            raise ConfigError(
                f"resume_from_checkpoint: {os.fspath(asked)!r} can't be gone on from: {reason}. Give another "
                "checkpoint, or true for the newest whole one in output_dir."
            )
        return os.fspath(asked)
    for folder in _newest_first(Path(output_dir)):
        reason = fault(folder)
        if reason is None:
            return str(folder)
        say(f"{folder} is passed over: {reason}")
    say(f"{os.fspath(output_dir)} holds no whole checkpoint, so training starts from the beginning")
    return None


def fault(folder: Path) -> str | None:
    """Why training can't go on from a folder, as a clause; None when it holds a whole checkpoint.

    ``Trainer`` writes ``trainer_state.json`` last, but not as a whole, and processes finish at different times; so
    every file that is read on resuming is looked at.
    """
    if not folder.is_dir():
        return "it is no folder here"
    if (folder / UNFINISHED).exists():
        return f"its writing was interrupted, as {UNFINISHED} says"
    state = _json(folder / STATE)
    if not isinstance(state, dict) or type(state.get("global_step")) is not int or state["global_step"] < 0:
        return f"it has no readable {STATE}, which is written last, so its writing was interrupted"
    engine = (folder / "latest").is_file()
    return (
        _weights_fault(folder)
        or _optimizer_fault(folder, engine)
        or next((f"{path.name} is cut short" for path in _archives(folder) if not zipfile.is_zipfile(path)), None)
    )


def begin_again(folder: Path) -> None:
    """Make a folder that is written again unfinished until its last file, ``trainer_state.json``, is there again.

    What savers that were killed left in it is removed.
    """
    (folder / STATE).unlink(missing_ok=True)
    sweep_tensors(folder)


def _newest_first(folder: Path) -> list[Path]:
    found = [
        (int(step[1]), path) for path in folder.glob("*") if (step := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def _json(path: Path) -> Any:
    try:
        return reading.json_file(path)
    except ConfigError:
        return None


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin"))


def _weights_fault(folder: Path) -> str | None:
    if (folder / checkpoint.JSON_NAME).exists() or (folder / checkpoint.WEIGHTS_NAME).exists():
        try:
            checkpoint.load(folder)
        except TokenFlexError as error:
            return str(error).rstrip(".")
        return None
    if (folder / WEIGHTS).exists():
        return _tensors_fault(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return _index_fault(folder)
    if (folder / "latest").is_file():
        try:
            tag = reading.text(folder / "latest", largest=4096).strip()
            found = (folder / bare_name(tag)).is_dir()
        except (ValueError, OSError):
            tag, found = "?", False
        return None if found else f"it lacks the folder {tag!r} that its 'latest' names"
    if (folder / f"{SHARDED}.bin").exists() or (folder / f"{SHARDED}_0" / ".metadata").exists():
        return None
    return "it holds no weights"


def _index_fault(folder: Path) -> str | None:
    index = _json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict):
        return f"{INDEX} can't be read"
    try:
        names = sorted({bare_name(name) for name in shards.values()})
    except ValueError as error:
        return f"{INDEX} names a shard, but {error}"
    return next((reason for name in names if (reason := _tensors_fault(folder / name))), None)


def _tensors_fault(path: Path) -> str | None:
    """Reads the header, which must account for every byte of the file."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with reading.safetensors_file(reading.own_file(path.parent, path.name)):
            return None
    except ConfigError as error:
        return f"{path.name} can't be read: {error}"


def _optimizer_fault(folder: Path, engine: bool) -> str | None:
    if engine:
        return None
    kept = [folder / f"{OPTIMIZER}.pt", folder / f"{OPTIMIZER}.bin", folder / f"{OPTIMIZER}_0" / ".metadata"]
    if not any(path.exists() for path in kept):
        return "it holds no optimizer state, which save_only_model leaves out"
    return None if (folder / SCHEDULER).exists() else f"it lacks {SCHEDULER}"

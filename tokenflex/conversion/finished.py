"""Folders that a conversion wrote to the end, told from those of others, and what one that was killed left.

A conversion writes into a folder beside its target, hidden, whose name ends in ``.tmp``; it takes the target's place at
the end. With it goes ``.conversion.json``: digests of what was read and of what was written, so that the same
conversion, asked for again, knows that there is nothing to do.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from tokenflex import reading
from tokenflex.conversion.small import SUFFIXES
from tokenflex.errors import ConfigError
from tokenflex.files import locked, scratch_path, sweep, writing

NAME = ".conversion.json"
MADE_OF, WROTE, DONE = "made_of", "wrote", "done"
Record = dict[str, Any]


@contextmanager
def alone(target: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One conversion into a folder at a time; what killed ones left beside it is removed.

    Args:
        waiting: called once, if another process converts into it; its end is waited for.
    """
    with locked(target, "convert", waiting=waiting):
        if target.parent.is_dir():
            sweep(target.parent, f".{glob.escape(target.name)}")
        yield


def source_of(folder: Path, way: str) -> Record:
    """What a conversion is made of: digests of the files that it may read, and versions.

    Args:
        way: ``convert`` or ``reverse``.
    """
    versions = {
        "tokenflex": version("tokenflex"),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
    return {"way": way, "versions": versions, "files": _digests(folder, lambda path: path.suffix in SUFFIXES or (
        path.suffix == ".safetensors" and path.parent == folder
    ))}  # fmt: skip


def earlier(target: Path, folder: Path, source: Callable[[], Record], force: bool) -> Record | None:
    """What an earlier conversion did, if its folder is complete and is what would be written; None to go ahead.

    Args:
        folder: what is read.
        source: gives `source_of`.
        force: go ahead over the model that is there, too.

    Raises:
        ConfigError: something else is there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    record = _read(target)
    reason = _difference(target, record, source)
    if reason is None:
        return record[DONE]
    if not force:
        raise ConfigError(
            f"{target} exists already, and {reason}. Give a new folder, or say --force (force=True) to replace it."
        )
    if target.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"{target} holds the source {folder}, so it can't be replaced. Give another folder.")
    if not (target / "config.json").is_file():
        raise ConfigError(
            f"{target} exists already and isn't the folder of a model (it has no config.json), so --force doesn't "
            "replace it. Give a new folder, or remove it yourself."
        )
    return None


@contextmanager
def complete(target: Path, source: Callable[[], Record], done: Mapping[str, Any]) -> Iterator[Path]:
    """A scratch folder beside ``target`` that takes its place at the end, with its record, or vanishes.

    Args:
        source: gives `source_of`.
        done: what is told of it, JSON-ready.

    Raises:
        WriteError: it can't be written, as on a full disk.
    """
    scratch, old = scratch_path(target, hidden=True), scratch_path(target, hidden=True)
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir()
            yield scratch
            record = {DONE: dict(done), MADE_OF: source(), WROTE: _digests(scratch)}
            (scratch / NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if target.is_dir() and any(target.iterdir()):
                os.rename(target, old)
            os.replace(scratch, target)
    finally:
        for folder in (scratch, old):
            shutil.rmtree(folder, ignore_errors=True)


def _digests(folder: Path, wanted: Callable[[Path], bool] = lambda path: True) -> dict[str, str]:
    """Digests of the files below a folder, hidden ones left out, by their path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and wanted(path) and not any(name.startswith(".") for name in place.parts):
            with path.open("rb") as file:
                found[place.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _read(target: Path) -> Record:
    """The record of a folder; empty where there is none that can be read."""
    try:
        found = reading.json_file(target / NAME)
    except ConfigError:
        return {}
    shaped = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in (MADE_OF, WROTE, DONE))
    return found if shaped else {}


def _difference(target: Path, record: Record, source: Callable[[], Record]) -> str | None:
    """Why a folder isn't what would be written, as a clause."""
    if not target.is_dir():
        return "is no folder"
    if not record:
        return f"has no {NAME} that says what it was made of"
    now, then = source(), record[MADE_OF]
    if now.get("files") != then.get("files"):
        return "was made of another source" + _first(now.get("files"), then.get("files"))
    if now != then:
        return "was made by other versions of tokenflex, torch or transformers"
    wrote = _digests(target)
    return None if wrote == record[WROTE] else "was changed since" + _first(wrote, record[WROTE])


def _first(one: Any, other: Any) -> str:
    """Up to three names in which two tables differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ""
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return f" ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"

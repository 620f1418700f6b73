"""The small files of a checkpoint: its settings and tokenizer, found below its folder and nowhere else."""

import os
import shutil
from collections.abc import Container
from pathlib import Path

from tokenflex.errors import ConfigError
from tokenflex.files import inside
from tokenflex.reading import require_file

SUFFIXES = (".json", ".model", ".txt", ".md", ".jinja")


def below(folder: Path, name: str) -> Path:
    """The path that a name in a checkpoint's file means; nothing need be there.

    In the model hub's cache, files are links to ``blobs`` beside the snapshots; those count as below.

    Raises:
        ConfigError: the name leads out of the folder, from the root, by ``..`` or through a link.
    """
    path = folder / name
    try:
        base = folder.resolve()
        blobs = base.parents[1] / "blobs" if base.parent.name == "snapshots" else base
        inside(blobs if blobs in path.resolve().parents else base, str(path.resolve()))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{name!r} leads out of {folder}: {error}. Put the file itself into that folder, and name it from there."
        ) from error
    return path


def copy_small(folder: Path, target: Path, *, inside: str = ".", leave: Container[str] = ()) -> None:
    """Copy small files as they lie below a checkpoint's folder, or below a folder in it.

    Args:
        inside: path in ``folder`` of the files that are copied; links of theirs may lead to all of ``folder``.
        leave: names of files that stay behind, besides hidden ones.

    Raises:
        ConfigError: one of them is a link that leads out of the folder, or no file.
    """
    target.mkdir(parents=True, exist_ok=True)
    for where, folders, names in os.walk(folder / inside):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(where, name)
            if path.suffix in SUFFIXES and not name.startswith(".") and name not in leave:
                source, place = below(folder, str(path.relative_to(folder))), path.relative_to(folder / inside)
                require_file(source)
                (target / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / place)

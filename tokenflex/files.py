"""Files that appear as a whole or not at all, and names that stay in their folder."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name beside it, then rename; text as UTF-8. What was there stays until then."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def inside(folder: Path, name: str) -> Path:
    """The file that ``name`` means in ``folder``, with links followed; it need not exist.

    Args:
        folder: the file must lie below it.
        name: a relative path below the folder, or an absolute one.

    Raises:
        ValueError: the path leads out of the folder, by ``..``, from the root or through a link, or is no path at all.
    """
    try:
        base, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is no usable path: {error}") from error
    if base not in path.parents:
        raise ValueError(f"{name!r} doesn't lead to a file inside the folder {str(folder)!r}")
    return path


def bare_name(name: str) -> str:
    """The same name, which means a file directly in a folder on every operating system.

    Unlike `inside` it says nothing about links: the file of that name may be one, as in a cache of downloads.

    Raises:
        ValueError: it is no text, empty, ``.`` or ``..``, or has a separator, a drive's colon or a control character.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(c in "/\\:" or ord(c) < 32 for c in name):
        raise ValueError(f"{name!r} isn't the bare name of a file")
    return name

"""Files that appear as a whole or not at all, one writer at a time, and names that stay in their folder."""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name beside it, then rename; text as UTF-8. What was there stays until then."""
    with whole(path) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name beside ``path`` to write a file under; it takes the place of ``path`` at the end, or vanishes.

    The name ends in ``.tmp`` and no two callers get the same one, in whatever process or thread they are.
    """
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def sweep(folder: Path, pattern: str) -> None:
    """Remove what writers that were killed left of files whose names match; nobody else may be writing them."""
    for left in folder.glob(f"{pattern}.*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, share: str = "", *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other threads and processes of this user on this machine from the same path; they wait.

    The lock's own file lies in the folder for temporary files (``TMPDIR``), so that nothing is left beside ``path``,
    which may lie in a folder that can't be written. A process that dies gives its locks back. Taking a lock again
    that the thread already holds is allowed.

    Args:
        path: a file or folder; it needn't exist.
        share: locks of different shares of one path don't know of each other.
        waiting: called once, if another one holds the lock.
    """
    key = hashlib.sha256(f"{path.resolve()}\0{share}".encode("utf-8", "surrogateescape")).hexdigest()
    lock = FileLock(_lock_folder() / f"{key[:40]}.lock", is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_folder() -> Path:
    """This user's own, so that locks of others can't stand in the way."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"tokenflex-locks-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


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

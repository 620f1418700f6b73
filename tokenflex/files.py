"""Files that appear as a whole or not at all, one writer at a time, and names that stay in their folder."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokenflex.errors import ConfigError, TokenFlexError, WriteError

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
PLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
OF_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as safetensors, end the message of an error that the operating system told them."""
OF_TORCH = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""Words of ``torch.save`` for a file that it couldn't write to the end."""
OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""Names under which safetensors writes a file before it takes its place."""


def as_path(folder: Any) -> Path:
    """A caller's file or folder.

    Raises:
        ConfigError: it is neither a text nor a path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"{folder!r:.200} ({type(folder).__name__}) is no path; give the name of a folder as a text.")
    return Path(os.fsdecode(folder))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name beside it, then rename; text as UTF-8. What was there stays until then."""
    with whole(path) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name for ``path`` to write a file under; it takes the place of ``path`` at the end, or vanishes.

    It lies in a folder of its own beside ``path``, whose name ends in ``.tmp``: what libraries leave there under other
    names goes with it. No two callers get the same one, in whatever process or thread they are.

    Raises:
        WriteError: it can't be written, as on a full disk.
    """
    scratch = scratch_path(path)
    try:
        with writing(path):
            scratch.mkdir()
            yield scratch / path.name
            os.replace(scratch / path.name, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replaced(folder: Path, last: str, stale: str, keep: str) -> Iterator[Path]:
    """A folder to write files to that take the places of those in ``folder`` once all are there.

    If a process is killed, ``folder`` has its old files or its new ones, or lacks the file ``last``, without which it
    isn't read. A folder that doesn't have that file is written directly.

    Args:
        last: name of the file that goes first and comes last.
        stale: pattern of files that go if there is no new one of the same name.
        keep: name of a file that whoever writes is to find, if it is there.
    """
    if not (folder / last).is_file():
        yield folder
        return
    scratch = scratch_path(folder / "save", hidden=True)
    scratch.mkdir()
    try:
        if (folder / keep).is_file():
            shutil.copy2(folder / keep, scratch)
        yield scratch
        names = sorted((path.name for path in scratch.iterdir()), key=lambda name: name == last)
        (folder / last).unlink()
        for path in folder.glob(stale):
            if path.name not in names:
                path.unlink()
        for name in names:
            os.replace(scratch / name, folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scratch_path(path: Path, hidden: bool = False) -> Path:
    """A name beside ``path`` that nobody else has, and that `sweep` knows; nothing is made.

    Args:
        hidden: with a dot in front.
    """
    return path.with_name(f"{'.' * hidden}{path.name}.{uuid.uuid4().hex}.tmp")


def sweep(folder: Path, pattern: str) -> None:
    """Remove what writers that were killed left of files whose names match; nobody else may be writing them."""
    for left in folder.glob(f"{pattern}.*.tmp"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sweep_tensors(folder: Path) -> None:
    """Remove what savers of safetensors that were killed left in a folder; nobody else may be writing there."""
    for left in folder.glob(".tmp*"):
        if OF_SAFETENSORS.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what keeps files from being written is told in our own words.

    Args:
        path: file or folder that is written, for the message.

    Raises:
        WriteError: the disk is full, the folder is read-only or isn't there, or the like.
    """
    try:
        yield
    except TokenFlexError:
        raise
    except Exception as error:
        found = unwritten(error)
        if found is None:
            raise
        raise WriteError(f"{path} can't be written: {found}") from error


def unwritten(error: BaseException) -> str | None:
    """Why something can't be written, and what to do; None for an error of another kind."""
    text = str(error)
    if isinstance(error, RuntimeError) and any(phrase in text for phrase in OF_TORCH):
        return "torch couldn't write it to the end. Make sure that the disk has space left, and run it again."
    status = OF_RUST.search(text)
    code = int(status[1]) if status else error.errno if isinstance(error, OSError) else None
    if code is None:
        return None
    reason = os.strerror(code)
    if code in FULL:
        return f"{reason}. Free some space on that disk (or of your quota there), or choose another folder."
    if code in REFUSED:
        return f"{reason}. Choose a folder that you may write to, or change its permissions."
    if code in PLACED:
        return f"{reason}. A file lies where a folder is wanted, or the name is none here. Choose another one."
    return f"{reason}. Look at that disk and folder, or choose another one."


@contextmanager
def locked(path: Path, share: str = "", *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other threads and processes of this user on this machine from the same path; they wait.

    The lock's own file lies in the folder for temporary files (``TMPDIR``), so that nothing is left beside ``path``,
    which may lie in a folder that can't be written. A process that dies gives its locks back. Taking a lock again
    that the thread already holds is allowed.

    Args:
        path: a file or folder; it needn't exist.
        share: locks of different shares of one path don't know of each other.
        waiting: called once, if another one holds the lock; what it raises is raised, and the lock isn't waited for.

    Raises:
        WriteError: the folder for temporary files can't be written.
    """
    key = hashlib.sha256(f"{path.resolve()}\0{share}".encode("utf-8", "surrogateescape")).hexdigest()
    with writing(Path(tempfile.gettempdir())):
        lock = FileLock(_lock_folder() / f"{key[:40]}.lock", is_singleton=True)
        try:
            lock.acquire(blocking=False)
            held = True
        except Timeout:
            held = False
    if not held:
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

"""Disks that are full or read-only, places that are none, and data, readers and ranks that vanish."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.torture.commands import ROWS, Command
from tests.torture.kills import Process

WHOLE = "64M"
RANKS_END = 60.0
"""Seconds within which a rank must have ended after another one was killed."""


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path | None]:
    """A file system of its own in memory; None where none can be mounted."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(options, capture_output=True, check=False)
    if not mounted or mounted.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def remount(folder: Path, option: str) -> None:
    """Change a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def disks(ground: Any, command: Command, times: int, make: Callable[..., Any]) -> list[Any]:
    """A full disk, a read-only one, and a place below a file: one line and status 1; afterwards to the end."""
    told = "one line and status 1"
    full, closed, below = (make(f"{what}: {command.name}", told) for what in (
        "disk full", "read-only disk", "folder below a file"))  # fmt: skip
    took, _ = ground.undisturbed(command)
    for number in range(times):
        where = ground.folder / f"disk-{command.name.replace(' ', '')}-{number}"
        with disk(where, f"{max(ground.chance.randint(8, max(took.size * 3 // 1024, 12)), 8)}k") as mounted:
            if mounted is None:
                full.note = "no file system could be mounted here"
                break
            out = where / "try" / "out"
            out.parent.mkdir()
            refused(full, ground, command, out)
            remount(where, f"size={WHOLE}")
            if number % 3 == 0:
                remount(where, "ro")
                refused(closed, ground, command, out)
                remount(where, "rw")
            full.again(ground, command, out)
    file = ground.folder / f"file-{command.name.replace(' ', '')}"
    file.write_text("a file")
    refused(below, ground, command, file / "out")
    return [tally.row("Disks and folders") for tally in (full, closed, below) if tally.times]


def refused(tally: Any, ground: Any, command: Command, out: Path) -> None:
    """Run a command that can't write, or has just enough room."""
    ended = Process(lambda: command.run(out), ground.log()).end()
    tally.times += 1
    saver = command.name.startswith("save_")
    if ended.refused or (saver and "tokenflex.errors.WriteError: " in ended.said):
        tally.refused += 1
    elif ended.code != 0:
        tally.trouble("crashed", f"{ended.code} {ended.said}")


def vanishing(ground: Any, times: int, make: Callable[..., Any]) -> list[Any]:
    """Images, readers of data and ranks that go in the middle of a run."""
    shop = ground.shop
    readers = {"dataloader_num_workers": 1}
    return [
        image_gone(ground, shop.feedback(), times, make("an image vanishes: feedback", "one line names its row")),
        image_gone(ground, shop.train(4), times, make("an image vanishes: train", "one line names its row")),
        image_gone(ground, shop.evaluate(), times, make("an image vanishes: evaluate", "one line names its row")),
        reader_gone(ground, shop.feedback(**readers), times, make("a reader of data is killed: feedback")),
        reader_gone(ground, shop.train(4, **readers), times, make("a reader of data is killed: train")),
        rank_gone(ground, times, make("one of two ranks is killed: feedback")),
    ]


def opened(number: int, then: Callable[[], None], wanted: Callable[[], bool] = lambda: True) -> Callable[[], None]:
    """Makes a process do something when an image of the data is opened for the n-th time."""

    def arm() -> None:
        seen = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open" and str(args[0]).endswith(".png") and wanted():
                seen += 1
                if seen == number:
                    then()

        sys.addaudithook(hook)

    return arm


def image_gone(ground: Any, command: Command, times: int, tally: Any) -> Any:
    """An image is removed while the command is at its data."""
    ground.undisturbed(command)
    for _ in range(times):
        out, number = ground.fresh(command), ground.chance.randint(2, ROWS)
        gone = ground.shop.folder / f"{ground.chance.randrange(ROWS)}.png"
        kept = gone.read_bytes()
        ended = Process(
            lambda out=out: command.run(out), ground.log(), before=opened(number, lambda gone=gone: gone.unlink())
        ).end()
        gone.write_bytes(kept)
        tally.end(ended, "row ")
        tally.again(ground, command, out)
    return tally.row("Data, readers and ranks")


def in_reader() -> bool:
    """Whether this process reads data for another one."""
    return torch.utils.data.get_worker_info() is not None


def reader_gone(ground: Any, command: Command, times: int, tally: Any) -> Any:
    """A process that reads data kills itself."""
    for _ in range(times):
        out, number = ground.fresh(command), ground.chance.randint(1, 4)
        kill = opened(number, lambda: os.kill(os.getpid(), signal.SIGKILL), in_reader)
        ended = Process(lambda out=out: command.run(out), ground.log(), before=kill).end()
        tally.end(ended, "process that reads data is gone")
        tally.again(ground, command, out)
    return tally.row("Data, readers and ranks")


def rank_gone(ground: Any, times: int, tally: Any) -> Any:
    """One of two ranks is killed; the other one ends by itself, with an error."""
    command, slowest = ground.shop.feedback(), 0.0
    took, _ = ground.undisturbed(command)
    for _ in range(times):
        out = ground.fresh(command)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])

        def rank(number: int, port: str = port) -> Callable[[], None]:
            told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
            return lambda: os.environ.update({name: str(value) for name, value in told.items()})

        both = [Process(lambda out=out: command.run(out), ground.log(), before=rank(number)) for number in (0, 1)]
        both[0].wait(ground.chance.uniform(0.3, 1.0) * took.seconds)
        victim = ground.chance.randrange(2)
        both[victim].send(signal.SIGKILL)
        began = time.monotonic()
        ended = both[1 - victim].end(RANKS_END)
        both[victim].end()
        slowest = max(slowest, time.monotonic() - began)
        tally.times += 1
        if ended.code == 1 and ended.plain:
            tally.refused += 1
        elif ended.code != 0:
            tally.trouble("crashed", f"{ended.code} {ended.said}")
        tally.again(ground, command, out)
    tally.note = f"the other ended after {slowest:.0f} s at the latest (at most {RANKS_END:.0f} allowed)"
    return tally.row("Data, readers and ranks")

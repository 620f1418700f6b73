"""Processes that are made by fork from one that has imported everything, and killed at a moment drawn by chance.

A moment is a time, the n-th change of a file (a name opened for writing, a folder made, a name changed or removed), or
the first byte behind a size of a file: the first says nothing of what is being done, the second and third lie where
files are written.
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenflex

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
LIBRARY = Path(tokenflex.__file__).parent
LIMIT = 120.0
"""Seconds after which a process counts as hanging."""


@dataclass(frozen=True)
class Moment:
    """When a process gets its signal.

    Attributes:
        kind: ``time``, ``change`` or ``size``.
        at: seconds, number of changes, or bytes of a file.
        signal: what it gets; of the kind ``size`` always ``SIGXFSZ``, which kills as well.
    """

    kind: str
    at: float
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit status; below 0 the signal that killed it; None if it had to be killed for hanging.
        said: what it wrote on standard output and standard error.
    """

    code: int | None
    said: str

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.code is not None and self.code < 0

    @property
    def plain(self) -> bool:
        """Whether it said nothing of a traceback."""
        return "Traceback (most recent call last)" not in self.said

    @property
    def refused(self) -> bool:
        """Whether it ended with status 1 and one line of this library's."""
        lines = [line for line in self.said.splitlines() if line.startswith("tokenflex ")]
        return self.code == 1 and self.plain and len(lines) == 1


class Process:
    """A child that runs a function.

    Args:
        call: gives the exit status.
        log: file of what it says.
        moment: when it gets its signal, if it does.
        before: run in the child first.
    """

    def __init__(
        self,
        call: Callable[[], int],
        log: Path,
        moment: Moment | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.log, self.moment, self.began = log, moment, time.monotonic()
        log.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Python's own work after a fork can't be stopped
        self.pid = os.fork()
        if self.pid == 0:
            self._child(call, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _child(self, call: Callable[[], int], before: Callable[[], None]) -> None:
        code = 70
        try:
            held = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(held, 1)
            os.dup2(held, 2)
            _arm(self.moment)
            before()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            code = call()
        except KeyboardInterrupt as stop:
            files = [frame.filename for frame in traceback.extract_tb(stop.__traceback__)]
            if any(Path(file).is_relative_to(LIBRARY) for file in files):
                traceback.print_exc()
            else:  # it came before the library was called
                code = 130
        except BaseException:  # a child must never come back into the parent's code
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    code = code or 1
            os._exit(code)

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for its end; one that takes too long is killed."""
        moment = self.moment
        if moment is not None and moment.kind == "time":
            self.wait(max(moment.at - (time.monotonic() - self.began), 0.0))
            self.send(moment.signal)
        code = self.wait(limit)
        if code is None:
            self.send(signal.SIGKILL)
            self.wait(LIMIT)
        return Ended(code, self.log.read_text(errors="replace"))

    def send(self, number: int) -> None:
        """A signal, unless it has ended."""
        if self.wait(0.0) is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its exit status, or None if it hasn't ended by then."""
        end = time.monotonic() + seconds
        while not hasattr(self, "_code"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return None
            else:
                time.sleep(0.002)
        return self._code


def changes(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an event of ``sys.addaudithook`` is a change of a file."""
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & WRITES) and args[0] != os.devnull
    return event in CHANGES


def _arm(moment: Moment | None) -> None:
    if moment is None or moment.kind == "time":
        return
    if moment.kind == "size":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment.at), int(moment.at)))
        return
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes(event, args):
            seen += 1
            if seen == int(moment.at):
                os.kill(os.getpid(), moment.signal)

    sys.addaudithook(hook)


@dataclass(frozen=True)
class Course:
    """What an undisturbed run took: seconds, changes of files, and bytes of its largest file."""

    seconds: float
    changes: int
    size: int

    def moment(self, number: int, chance: random.Random, signal_: int = signal.SIGKILL) -> Moment:
        """One of the run's moments; kinds take turns, and a signal that isn't fatal has no ``size``."""
        kinds = ("time", "change", "change", "size") if signal_ == signal.SIGKILL else ("time", "change")
        kind = kinds[number % len(kinds)]
        if kind == "time":
            return Moment(kind, chance.uniform(0.0, self.seconds), signal_)
        if kind == "change":
            return Moment(kind, chance.randint(1, max(self.changes, 1)), signal_)
        return Moment(kind, chance.randint(1, max(self.size - 1, 1)))


def course(call: Callable[[], int], folder: Path, log: Path) -> tuple[Course, Ended]:
    """Run undisturbed, and see what it took.

    Args:
        folder: that it writes.
    """
    told = log.with_suffix(".json")

    def counted() -> int:
        seen, began = 0, time.monotonic()

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += changes(event, args)

        sys.addaudithook(hook)
        code = call()
        held = {"seconds": time.monotonic() - began, "changes": seen}
        told.write_text(json.dumps(held))
        return code

    ended = Process(counted, log).end()
    found = json.loads(told.read_text()) if told.is_file() else {"seconds": 1.0, "changes": 1}
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return Course(found["seconds"], found["changes"], max(sizes, default=1)), ended

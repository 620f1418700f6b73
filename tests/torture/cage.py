"""Damaged files, each loaded in a process of its own kind: limited memory, a limit of time, and nothing gets out."""

import contextlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from tests.torture.damage import damage
from tests.torture.outcome import Outcome
from tokenflex.errors import TokenFlexError

MORE_MEMORY = 1536 * 2**20
"""Bytes of address space that loading may take beyond what the process has."""
SECONDS = 5
"""Of processor time that loading one file may take."""
BATCH = 250
ANY = "(?#any)"
"""In a pattern of the list: values of other types are legitimate, too."""
WAIT = 60
"""Seconds without a word after which a process counts as hanging: it does so outside Python, or waits."""


class HangError(BaseException):
    """A file took too long."""


@dataclass(frozen=True)
class Subject:
    """Small valid files, and how they are loaded.

    Attributes:
        name: of the kind of file.
        folder: the valid files.
        files: names, relative to the folder, of those that are damaged.
        load: what a user gets from a folder, as plain data; whatever isn't seen there doesn't count.
        allowed: patterns of places in that data -> why another value of the same type there is legitimate.
    """

    name: str
    folder: Path
    files: Sequence[str]
    load: Callable[[Path], Any]
    allowed: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """What came of one subject."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, found: str, number: int, text: str) -> None:
        """Count one file; what isn't refused or harmless is kept for people."""
        self.counts[found] += 1
        if found not in ("same", "refused"):
            self.examples.append(f"{found} {number} {text}")

    def row(self, area: str, subject: Subject) -> Outcome:
        """For the table."""
        told = [f"{self.counts[name]} {words}" for name, words in (
            ("same", "harmless"), ("allowed", "another legitimate value"))]  # fmt: skip
        return Outcome(
            area, f"damaged: {subject.name}", sum(self.counts.values()), refused=self.counts["refused"],
            wrong=self.counts["wrong"], crashed=self.counts["crashed"], note=", ".join(told),
        )  # fmt: skip


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by their dotted places."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    found = {path: type(value).__name__} if not len(value) else {}
    for key, inner in items:
        found |= flat(inner, f"{path}.{key}" if path else str(key))
    return found


def verdict(subject: Subject, seen: Any, original: Mapping[str, Any]) -> tuple[str, str]:
    """``same``, ``allowed`` or ``wrong``, and what differs."""
    found = flat(seen)
    differ = [n for n in sorted(original.keys() | found) if repr(original.get(n)) != repr(found.get(n))]
    if not differ:
        return "same", ""
    bad = [name for name in differ if not _may(subject, name, original.get(name), found.get(name))]
    told = "; ".join(f"{n}: {original.get(n)!r:.60} -> {found.get(n)!r:.60}" for n in (bad or differ)[:3])
    return ("wrong" if bad else "allowed"), told


def _may(subject: Subject, name: str, one: Any, other: Any) -> bool:
    """Whether the list has the place, for another value of the same type, or for none."""
    alike = type(one) is type(other) or None in (one, other) or {type(one), type(other)} == {int, float}
    return any(re.fullmatch(pattern, name) and (alike or ANY in pattern) for pattern in subject.allowed)


def attempt(subject: Subject, folder: Path, original: Mapping[str, Any]) -> tuple[str, str]:
    """Load once, under the limit of time."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        seen = subject.load(folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return verdict(subject, seen, original)
    except TokenFlexError as error:
        return "refused", f"{type(error).__name__}: {error!s:.300}"
    except (Exception, HangError) as error:
        where = traceback.extract_tb(error.__traceback__)
        told = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(where[-7:]))
        return "crashed", f"{type(error).__name__}: {error!s:.200} [{told}]"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def restored(subject: Subject, folder: Path, name: str) -> None:
    """Put the valid file back under a new inode: tensors of the damaged one may still be mapped."""
    path = folder / name
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        path.rmdir()
    shutil.copyfile(subject.folder / name, path)


def _child(subject: Subject, seed: int, numbers: Sequence[int], scratch: Path, pipe: Any) -> None:
    def late(*_: Any) -> None:
        raise HangError(f"over {SECONDS} s")

    signal.signal(signal.SIGPROF, late)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    folder = scratch / str(numbers[0]) / "files"
    shutil.copytree(subject.folder, folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        original = flat(subject.load(folder))
        for number in numbers:
            rng = random.Random(f"{seed}/{subject.name}/{number}")
            name = rng.choice(subject.files)
            how = damage(rng, folder / name)
            found, told = attempt(subject, folder, original)
            pipe.send((number, found, f"{name}, {how}: {told}"))
            restored(subject, folder, name)
    pipe.send(None)


def fuzz(subject: Subject, times: int, seed: int) -> Tally:
    """Damage a subject's files so many times, one file at a time."""
    tally, context = Tally(), multiprocessing.get_context("fork")
    todo = list(range(times))
    with tempfile.TemporaryDirectory() as scratch:
        while todo:
            here, there = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(subject, seed, todo[:BATCH], Path(scratch), there))
            child.start()
            there.close()
            done, ended = _listen(here, tally)
            if not ended:  # it died, or says nothing: what it was at counts, and the rest is tried in another one
                tally.note("crashed", todo[done], "the process ended, or hung outside Python")
                done += 1
                child.kill()
            child.join()
            shutil.rmtree(Path(scratch, str(todo[0])), ignore_errors=True)
            todo = todo[done:]
    return tally


def _listen(pipe: Any, tally: Tally) -> tuple[int, bool]:
    """How many files a process reported, and whether it came to its end."""
    done = 0
    while pipe.poll(WAIT):
        try:
            told = pipe.recv()
        except EOFError:
            return done, False
        if told is None:
            return done, True
        number, found, text = told
        tally.note(found, number, text)
        done += 1
    return done, False

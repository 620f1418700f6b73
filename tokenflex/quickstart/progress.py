"""One bar for everything that is done, and how long each phase took."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

TRUST = 60.0
"""Expected seconds that count as much as a minute of this machine's own pace: the first moments say little of it."""


def left(elapsed: float, done: float, total: float) -> float:
    """Seconds to go: those expected, at the pace that this machine has shown so far.

    Args:
        elapsed: seconds since the beginning.
        done, total: expected seconds of what is done, and of everything.
    """
    return max(total - done, 0.0) * (elapsed + TRUST) / (done + TRUST)


class Overall:
    """One bar over all phases, in expected seconds; plain lines where there is no terminal.

    Attributes:
        seconds: that each phase took, by name.
    """

    def __init__(self, console: Console, bar: Progress, total: float) -> None:
        self.console, self.bar, self.seconds = console, bar, dict[str, float]()
        self.task = bar.add_task("", total=total)
        self.total, self.done, self.started = total, 0.0, time.perf_counter()

    @contextmanager
    def phase(self, name: str, expected: float, ticks: int) -> Iterator[Callable[[], None]]:
        """Announce a phase; yields what to call after each of its ``ticks`` steps."""
        started, before = time.perf_counter(), self.done
        self.bar.update(self.task, description=name)
        yield lambda: self._advance(expected / ticks)
        self._advance(before + expected - self.done)
        self.seconds[name] = time.perf_counter() - started
        if not self.console.is_terminal:
            to_go = left(time.perf_counter() - self.started, self.done, self.total)
            self.console.print(f"{name}: {self.seconds[name]:.0f} s, about {to_go:.0f} s left")

    def skip(self, took: Mapping[str, float], expected: Mapping[str, float]) -> None:
        """Take phases as done that an earlier run did.

        Args:
            took: seconds, by name.
            expected: seconds, by name; these and more.
        """
        self.seconds |= took
        self.total -= sum(expected[name] for name in took)
        self.bar.update(self.task, total=self.total)
        if took:
            self.console.print(f"taken up after {list(took)[-1]!r}, which an earlier run finished")

    def _advance(self, expected: float) -> None:
        self.done += expected
        self.bar.update(self.task, completed=self.done)


class _Left(ProgressColumn):
    """Time to go, by `left`."""

    def render(self, task: Task) -> Text:
        """As hours, minutes and seconds."""
        to_go = left(task.elapsed or 0.0, task.completed, task.total or 0.0)
        return Text(str(timedelta(seconds=round(to_go))), style="progress.remaining")


@contextmanager
def shown(console: Console, total: float) -> Iterator[Overall]:
    """The bar, on the screen while the block runs.

    Args:
        total: expected seconds of all phases.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), _Left())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield Overall(console, bar, total)

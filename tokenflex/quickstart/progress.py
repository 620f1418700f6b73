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


def of_task(task: Task) -> float:
    """The time to go, see `left`, of a bar's task, in seconds."""
    return left(task.elapsed or 0.0, task.completed, task.total or 0.0)


class Overall:
    """One bar over all phases, in expected seconds; plain lines where there is no terminal.

    Attributes:
        seconds: that each phase took, by name.
    """

    def __init__(self, console: Console, bar: Progress, total: float) -> None:
        self.console, self.bar, self.seconds = console, bar, dict[str, float]()
        self.task = bar.add_task("", total=total)

    @contextmanager
    def phase(self, name: str, expected: float, ticks: int) -> Iterator[Callable[[], None]]:
        """Announce a phase; yields what to call after each of its ``ticks`` steps."""
        task = self.bar.tasks[0]
        started, before = time.perf_counter(), task.completed
        self.bar.update(self.task, description=name)
        yield lambda: self.bar.advance(self.task, expected / ticks)
        self.bar.update(self.task, completed=before + expected)
        self.seconds[name] = time.perf_counter() - started
        if not self.console.is_terminal:
            self.console.print(f"{name}: {self.seconds[name]:.0f} s, about {of_task(task):.0f} s left")

    def skip(self, took: Mapping[str, float], expected: Mapping[str, float]) -> None:
        """Take phases as done that an earlier run did.

        Args:
            took: seconds, by name.
            expected: seconds, by name; these and more.
        """
        self.seconds |= took
        total = self.bar.tasks[0].total or 0.0
        self.bar.update(self.task, total=total - sum(expected[name] for name in took))
        if took:
            self.console.print(f"taken up after {list(took)[-1]!r}, which an earlier run finished")


class _Left(ProgressColumn):
    """A column with the time to go, see `left`."""

    def render(self, task: Task) -> Text:
        """The time to go as hours, minutes and seconds."""
        return Text(str(timedelta(seconds=round(of_task(task)))), style="progress.remaining")


@contextmanager
def shown(console: Console, total: float) -> Iterator[Overall]:
    """The bar, on the screen while the block runs.

    Args:
        total: expected seconds of all phases.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), _Left())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield Overall(console, bar, total)

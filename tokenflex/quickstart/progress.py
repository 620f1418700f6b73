"""One bar for everything that is done, and how long each phase took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
        started = time.perf_counter()
        self.bar.update(self.task, description=name)
        yield lambda: self.bar.advance(self.task, expected / ticks)
        self.seconds[name] = time.perf_counter() - started
        task = self.bar.tasks[0]
        left = (task.elapsed or 0.0) * ((task.total or 0.0) / max(task.completed, 1e-9) - 1)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {self.seconds[name]:.0f} s, about {max(left, 0.0):.0f} s left")


@contextmanager
def shown(console: Console, total: float) -> Iterator[Overall]:
    """The bar, on the screen while the block runs.

    Args:
        total: expected seconds of all phases.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=120.0) as bar:
        yield Overall(console, bar, total)

"""Progress: a bar on a terminal, whole lines everywhere else, so that logs and pipes hold no half-drawn bars."""

import sys
from typing import Any

from tqdm.std import tqdm

APART = 30.0
"""Seconds between two lines."""


def bar(total: int | None = None, *, what: str, unit: str = "step", initial: int = 0, hidden: bool = False) -> Any:
    """A `tqdm` bar on standard error; where that is no terminal, one that writes lines.

    Args:
        total: how many there are; None until ``reset(total)``.
        what: is done, in a word or two.
        unit: of what is counted, in the singular.
        initial: how many are done already.
        hidden: nothing is shown.
    """
    drawn = tqdm if sys.stderr.isatty() else Lines
    return drawn(total=total, initial=initial, desc=what, unit=unit, file=sys.stderr, disable=hidden)


class Lines(tqdm):
    """A bar whose every state is a line of its own: at the beginning, at the end, and in between from time to time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.said: tuple[int, int | None] | None = None
        super().__init__(*args, **{"mininterval": APART, "maxinterval": APART, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line, unless the last one said the same."""
        now = (self.n, self.total)
        if self.total and now != self.said:
            self.said = now
            elapsed = self.format_dict["elapsed"]
            pace = (self.n - self.initial) / elapsed if elapsed else 0.0
            left = f", about {(self.total - self.n) / pace:.0f} s left" if pace and self.n < self.total else ""
            self.fp.write(f"{self.desc}: {self.n} of {self.total} {self.unit}s{left}\n")
        return True

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: lines that were written stay."""

    def close(self) -> None:
        """Write the last state as a line."""
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]

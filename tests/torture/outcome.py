"""What came of one kind of fault, tried many times."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """One row of docs/reliability.md.

    Attributes:
        area: heading of the table it belongs to.
        fault: what was done, as a short phrase.
        times: how often.
        refused: how often one of the library's own errors was the answer, where that is an answer.
        lost: rows, files or answers that were gone afterwards.
        doubled: rows, files or answers that stood twice.
        wrong: results that differ from those without the fault, and damage that was taken in silence.
        crashed: exceptions of other libraries, killed or hanging processes, where none may be.
        note: limits that held, or what is allowed and why; plain Markdown.
    """

    area: str
    fault: str
    times: int
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    crashed: int = 0
    note: str = ""

    @property
    def fine(self) -> bool:
        """Whether nothing was lost, doubled, wrong or crashed."""
        return not (self.lost or self.doubled or self.wrong or self.crashed)


@dataclass
class Counts:
    """What came of one kind of fault so far."""

    times: int = 0
    refused: int = 0
    wrong: int = 0
    crashed: int = 0
    seen: list[str] = field(default_factory=list)

    def outcome(self, area: str, fault: str, note: str) -> Outcome:
        """The row of it; what went wrong is named in the note."""
        told = "; ".join(dict.fromkeys(self.seen))
        counts = {"times": self.times, "refused": self.refused, "wrong": self.wrong, "crashed": self.crashed}
        return Outcome(area, fault, **counts, note=told[:600] or note)


Section = Callable[[float, int], list[Outcome]]
"""``run(scale, seed)``: scale 1 is the full table, 0.05 is what the tests run; same seed, same faults."""

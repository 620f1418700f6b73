"""What a conformance run found: n of m, every failure with its law, every exception with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped", "expected failure", "unexpected pass"]


class ConformanceError(AssertionError):
    """A part breaks its contract; the message is the whole report."""


@dataclass(frozen=True)
class Result:
    """One check's outcome.

    Attributes:
        check: the check's name.
        outcome: an ``unexpected pass`` counts as a failure: the reason given for it is out of date.
        detail: what went wrong, or the reason it was skipped or expected to fail.
    """

    check: str
    outcome: Outcome
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether the part can't be called conforming."""
        return self.outcome in ("failed", "unexpected pass")


@dataclass(frozen=True)
class Report:
    """The results of all checks of one part."""

    part: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """True when nothing failed and nothing passed unexpectedly."""
        return not any(result.bad for result in self.results)

    def named(self, outcome: Outcome) -> Sequence[str]:
        """The names of the checks with this outcome."""
        return [result.check for result in self.results if result.outcome == outcome]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``part``, ``passed``, ``total``, and reasons by check: ``skipped``, ``expected_failures``,
        ``failures`` (unexpected passes among them).
        """

        def reasons(*outcomes: Outcome) -> dict[str, str]:
            return {result.check: result.detail for result in self.results if result.outcome in outcomes}

        return {
            "part": self.part,
            "passed": len(self.named("passed")),
            "total": len(self.results),
            "skipped": reasons("skipped"),
            "expected_failures": reasons("expected failure"),
            "failures": reasons("failed", "unexpected pass"),
        }

    def __str__(self) -> str:
        lines = [f"{self.part}: {len(self.named('passed'))} of {len(self.results)} checks passed"]
        lines += [f"  {r.outcome}: {r.check}: {r.detail}" for r in self.results if r.outcome != "passed"]
        return "\n".join(lines)

    def raise_if_bad(self) -> None:
        """Do nothing when `ok`.

        Raises:
            ConformanceError: with the whole report.
        """
        if not self.ok:
            raise ConformanceError(str(self))

"""Host and FlexModel side by side, as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.hf_suite.explained import reason_for

Outcomes = Mapping[str, Mapping[str, str]]
"""Test -> ``outcome`` (passed, failed or skipped) and ``reason``."""
KINDS = ("passed", "failed", "skipped")


@dataclass(frozen=True)
class Compared:
    """What became of transformers' tests for one host.

    Attributes:
        name: ``model_type`` of the host.
        host, flex: numbers of tests that passed, failed and were skipped.
        lost: tests that the host passes and a `FlexModel` doesn't, and how: ``failed`` or ``skipped``.
        reasons: what these tests say.
    """

    name: str
    host: tuple[int, ...]
    flex: tuple[int, ...]
    lost: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def unexplained(self) -> list[str]:
        """Those of the lost tests without a reason in `tests.hf_suite.explained`."""
        return [test for test in self.lost if reason_for(test) is None]


def compare(name: str, host: Outcomes, flex: Outcomes) -> Compared:
    """Compare the outcomes of host and `FlexModel`; a test that didn't run on the latter counts as failed."""
    lost = {
        test: flex.get(test, {}).get("outcome", "failed")
        for test, told in host.items()
        if told["outcome"] == "passed" and flex.get(test, {}).get("outcome") != "passed"
    }
    reasons = {test: flex.get(test, {}).get("reason", "it didn't run") for test in lost}
    return Compared(name, _counts(host), _counts(flex), lost, reasons)


def _counts(outcomes: Outcomes) -> tuple[int, ...]:
    return tuple(sum(told["outcome"] == kind for told in outcomes.values()) for kind in KINDS)


def written(found: Sequence[Compared], header: Sequence[str]) -> str:
    """The page: a table, the tests that were lost with their reasons, and those without one with what they say.

    Args:
        header: lines above the table, on what was run.
    """
    lines = [*header, "", "| host | passed, host / FlexModel | failed | skipped | lost | unexplained |"]
    lines += ["|---|---|---|---|---|---|"]
    for one in found:
        cells = " | ".join(f"{a} / {b}" for a, b in zip(one.host, one.flex, strict=True))
        lines.append(f"| {one.name} | {cells} | {len(one.lost)} | {len(one.unexplained)} |")
    lines += ["", "Lost: passed by the host, not by FlexModel.", ""]
    for test in sorted({test for one in found for test in one.lost}):
        where = ", ".join(f"{one.name} ({one.lost[test]})" for one in found if test in one.lost)
        lines.append(f"- `{test}`: {where}. {reason_for(test) or '**No reason is known.**'}")
    for one in found:
        lines += [f"- {one.name}, `{test}`: {one.reasons[test]}" for test in one.unexplained]
    return "\n".join(lines) + "\n"

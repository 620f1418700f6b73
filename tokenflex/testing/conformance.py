"""Running the checks: all at once with a report, or case by case under pytest."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenflex.contracts import Component, ComponentConfig, Confidence, Policy, Router, Scaler, Voter
from tokenflex.testing import (
    component_checks,
    confidence_checks,
    policy_checks,
    router_checks,
    scaler_checks,
    voter_checks,
)
from tokenflex.testing.bench import Bench, Check, Skip
from tokenflex.testing.report import Report, Result

CHECKS: Mapping[type[Component], tuple[Check, ...]] = {
    Scaler: (*component_checks.CHECKS, *scaler_checks.CHECKS),
    Router: (*component_checks.CHECKS, *router_checks.CHECKS),
    Voter: (*component_checks.CHECKS, *voter_checks.CHECKS),
    Policy: (*component_checks.CHECKS, *policy_checks.CHECKS),
    Confidence: (*component_checks.CHECKS, *confidence_checks.CHECKS),
}


@dataclass(frozen=True)
class Case:
    """One check bound to one part; call it to run it. Its text is a readable test id."""

    check: Check
    bench: Bench

    def __call__(self) -> None:
        """Run.

        Raises:
            AssertionError: the law is broken.
        """
        try:
            self.check.run(self.bench)
        except Skip:
            return

    def __str__(self) -> str:
        return f"{type(self.bench.config).owner.__name__}-{self.check.name}"


def cases(config: ComponentConfig, *, levels: int = 5) -> list[Case]:
    """All checks for a part, for ``pytest.mark.parametrize("case", cases(MyScaler.Config()), ids=str)``.

    Args:
        config: settings of the part.
        levels: number of granularities that a router, voter or policy is built for, 1 to 5.

    Raises:
        TypeError: the config belongs to no scaler, router, voter, policy or confidence.
    """
    owner = type(config).owner
    for kind, checks in CHECKS.items():
        if issubclass(owner, kind):
            return [Case(check, Bench(config, levels)) for check in checks]
    raise TypeError(f"{owner.__name__} is no {', '.join(kind.__name__ for kind in CHECKS)}; there are no checks for it")


def check_component(
    config: ComponentConfig, *, levels: int = 5, expected_failures: Mapping[str, str] | None = None
) -> Report:
    """Run all checks for a part.

    Args:
        config: settings of the part.
        levels: number of granularities that a router, voter or policy is built for, 1 to 5.
        expected_failures: check -> reason why this part breaks it; should it pass, that is a failure too.

    Raises:
        TypeError: the config belongs to no scaler, router, voter, policy or confidence.
        ValueError: an expected failure names no check, or gives no reason.
    """
    expected = dict(expected_failures or {})
    found = cases(config, levels=levels)
    names = [case.check.name for case in found]
    wrong = [name for name, reason in expected.items() if name not in names or not reason.strip()]
    if wrong:
        raise ValueError(f"expected failure(s) {wrong} name no check or give no reason; checks: {', '.join(names)}.")
    results = tuple(_result(case, expected.get(case.check.name)) for case in found)
    return Report(type(config).owner.__name__, results)


def _result(case: Case, expected: str | None) -> Result:
    name = case.check.name
    try:
        case.check.run(case.bench)
    except Skip as reason:
        return Result(name, "skipped", str(reason))
    except Exception as error:
        if expected is not None:
            return Result(name, "expected failure", expected)
        text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return Result(name, "failed", f"{case.check.law}; {text}")
    if expected is not None:
        return Result(name, "unexpected pass", f"it was expected to fail ({expected}), and it passes")
    return Result(name, "passed")

"""transformers' tests for one model, in a process of their own: ``python -m tests.hf_suite.one``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hf_suite.sources import PACKAGE

MODULE = """from tests.hf_suite.cases import make

TestSuite = make({name!r}, {variant!r})
"""


class Recorder:
    """Collects what became of every test, as a plugin of pytest."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the worst outcome of a test's phases, and why."""
        name = report.nodeid.rpartition("::")[2]
        if report.when != "call" and report.passed:
            return
        said = report.longrepr
        reason = said[2] if isinstance(said, tuple) else str(getattr(said, "reprcrash", said) or "")
        known = self.outcomes.get(name, {}).get("outcome")
        if known != "failed":
            self.outcomes[name] = {"outcome": report.outcome, "reason": reason[-600:]}


def run(folder: Path, name: str, variant: str, only: str = "", verbose: bool = False) -> dict[str, dict[str, str]]:
    """Outcome and reason per test.

    Args:
        folder: that holds the package of tests.
        name: ``model_type`` of the host.
        variant: ``host`` or ``flex``.
        only: an expression of ``pytest -k``; empty: all tests.
        verbose: print the tracebacks.
    """
    sys.path.insert(0, str(folder))
    (folder / PACKAGE / f"test_{name}_{variant}.py").write_text(MODULE.format(name=name, variant=variant))
    recorder = Recorder()
    options = ["-c", "/dev/null", "--rootdir", str(folder), "-p", "no:cacheprovider", "-q"]
    options += ["--tb=long" if verbose else "--tb=no", "-p", "no:warnings", "--no-header"]
    options += ["-k", only] if only else []
    pytest.main([str(folder / PACKAGE / f"test_{name}_{variant}.py"), *options], plugins=[recorder])
    return recorder.outcomes


def main() -> None:
    """Run the tests of the model that the command line names and write their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("variant")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    outcomes = run(given.folder, given.name, given.variant, given.only, given.verbose)
    given.out.write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()

"""Every test the parity page names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_tests_that_exist():
    page = (ROOT / "docs" / "parity.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| quirk")]
    assert len(rows) >= 24
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / "parity" / file).read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], f"{file}::{name}"

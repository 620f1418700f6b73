"""The offline example of ``docs/compose.md`` runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "compose.md"


def test_the_page_runs(tmp_path, capsys):
    pytest.importorskip("timm")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {"folder": tmp_path})
    assert "[(1, 16)]" in capsys.readouterr().out

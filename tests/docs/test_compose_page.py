"""The offline example of ``docs/compose.md`` runs as it stands."""

import re
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from tokenflex.catalog import HOSTS_SINCE

PAGE = Path(__file__).parents[2] / "docs" / "compose.md"


@pytest.mark.skipif(
    Version(transformers.__version__) < Version(HOSTS_SINCE["tokenflex_composed"]),
    reason="composed models are served from that release on",
)
def test_the_page_runs(tmp_path, capsys):
    pytest.importorskip("timm")
    (block,) = re.findall(r"(?<!-->\n)```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {"folder": tmp_path})
    assert "[(1, 16)]" in capsys.readouterr().out

"""The offline example of ``docs/compose.md`` runs as it stands."""

import pytest
import transformers
from packaging.version import Version

from tests.docs.fences import blocks
from tokenflex.catalog import HOSTS_SINCE


@pytest.mark.skipif(
    Version(transformers.__version__) < Version(HOSTS_SINCE["tokenflex_composed"]),
    reason="composed models are served from that release on",
)
def test_the_page_runs(tmp_path, capsys):
    pytest.importorskip("timm")
    (block,) = [one for one in blocks("docs/compose.md") if one.language == "python" and one.reason is None]
    exec(compile(block.text, block.page, "exec"), {"folder": tmp_path})
    assert "[(1, 16)]" in capsys.readouterr().out

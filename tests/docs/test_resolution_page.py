"""The table of ``docs/resolution.md`` is made from the code, and its figures of processors are those of the code."""

from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from tokenflex.hosts.architectures import ARCHITECTURES, levels_of, resizing_of
from tokenflex.hosts.resized_views import GEMMA_BUDGETS
from tokenflex.tables import hosts as hosts_table

PAGE = (Path(__file__).parents[2] / "docs" / "resolution.md").read_text(encoding="utf-8")
OF_PAGE = PAGE.partition("\ntransformers ")[2].split(":")[0]


@pytest.mark.skipif(Version(transformers.__version__) < Version(OF_PAGE), reason=f"the page is of {OF_PAGE} or newer")
def test_the_table_is_the_codes():
    assert hosts_table.sizes() in PAGE, "docs/resolution.md is stale; run: tokenflex hosts --write docs/hosts.md"
    assert sum(line.count(",") + 1 for line in hosts_table.sizes().splitlines()[2:] if line) >= 40


def test_every_setting_is_explained():
    found = [levels_of(model_type) for model_type in ARCHITECTURES]
    for name in {setting for _, setting in filter(None, found)} - {None}:
        assert f"`{name}=" in PAGE
    assert all(str(budget) in PAGE for budget in GEMMA_BUDGETS)


def test_an_architecture_of_no_table_is_refused():
    config = type("Config", (), {"model_type": "new"})
    assert "isn't known here" in resizing_of(config.model_type)

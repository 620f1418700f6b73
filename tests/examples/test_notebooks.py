"""Notebooks were run from top to bottom, show nothing of where, and run again in small."""

import json
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
SMALL = {"train_a_router.ipynb": "SHARE, OUT = 0.001, 'runs/notebook'"}
"""What the cell tagged ``parameters`` is replaced with."""
LARGEST = 400_000
"""Bytes of a notebook with its outputs."""


def cells(name):
    read = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return [cell for cell in read["cells"] if cell["cell_type"] == "code"]


def test_there_are_some():
    assert len(NOTEBOOKS) >= 1
    assert set(SMALL) <= set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_were_run_from_top_to_bottom(name):
    found = cells(name)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.get("name") == "stdout" for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "/tmp/" not in text
    assert len(text) < LARGEST


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_run_again(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    known = {}
    for cell in cells(name):
        replaced = SMALL.get(name) if "parameters" in cell["metadata"].get("tags", ()) else None
        source = replaced or "".join(cell["source"])
        exec(compile(source, name, "exec"), known)
    said = capsys.readouterr().out
    if name not in SMALL:
        stored = "".join(
            "".join(o["text"]) for cell in cells(name) for o in cell["outputs"] if o.get("name") == "stdout"
        )
        assert said.splitlines()[:5] == stored.splitlines()[:5]  # counts; generated ids may differ between versions

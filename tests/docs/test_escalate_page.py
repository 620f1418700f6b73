"""The code of ``docs/escalate.md``, run from top to bottom on a tiny model."""

import os
import re
from pathlib import Path

import torch

import tokenflex
from tests.conftest import TEXTS
from tokenflex import confidences
from tokenflex.ops.risk import rows_needed

PAGE = (Path(__file__).parents[2] / "docs" / "escalate.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_code_runs(host, processor, batch, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    flex = tokenflex.wrap(host).eval()
    batches = [batch(*TEXTS, *TEXTS, first=i) for i in range(10)]
    targets = [["w1"] * len(TEXTS) * 2 for _ in batches]
    names = {"flex": flex, "processor": processor, "batches": batches, "inputs": batches[0]}
    names["pairs"] = list(zip(batches, targets, strict=True))
    assert len(BLOCKS) == 3
    exec(BLOCKS[0], names)
    assert os.listdir("my-parts")
    assert flex.escalate.calibrated.rows == 60
    assert re.search(r"\d+ \d+ (confidence|there is no finer)", capsys.readouterr().out)
    # Random weights get nothing right.
    loss = BLOCKS[1].replace("risk=0.6", "risk=0.999").replace("float(text.strip() != target)", "0.5")
    exec(loss, names)
    assert names["by_score"].calibrated.of == "own"
    before = set(confidences.names())
    try:
        exec(BLOCKS[2], names)
    finally:
        for name in set(confidences.names()) - before:
            tokenflex.registry.confidences._added.pop(name)
    out = capsys.readouterr().out
    assert "LastProbability: 13 of 13 checks passed" in out


def test_what_the_page_says_of_numbers():
    assert f"({rows_needed(0.05, 0.95)} for 0.05 and 0.95)" in PAGE
    for name in confidences.names():
        assert f"`{name}`" in PAGE

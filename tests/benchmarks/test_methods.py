"""Scalers beside other code: who is called with what, and the table."""

import pytest

from benchmarks import methods
from tokenflex.errors import ConfigError

OTHER = """
def random(features, attention, keys, words, kept):
    assert features.shape[:2] == attention.shape == keys.shape[:2]
    return features[:, :kept]

def average_pool(features, attention, keys, words, kept):
    raise AssertionError

def nothing(): ...
"""


def test_the_table(tmp_path, capsys):
    code = tmp_path / "other.py"
    code.write_text(OTHER.split("def average_pool")[0])
    methods.main([*f"--beside {code} --tokens 16 --batch 1 2 --width 8 --pairs 3".split()])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert [line.split(" | ")[:4] for line in lines[2:]] == [["| `random`", batch, "16", "4"] for batch in "12"]
    assert all(line.endswith("| 3 |") for line in lines[2:])


def test_ratios_are_taken_pair_by_pair():
    row = methods.Row("norm", (1, 16, 4), [0.001, 0.002, 0.009], [0.002, 0.002, 0.003])
    assert str(row) == "| `norm` | 1 | 16 | 4 | 2.0 | 2.0 | 1.00 (0.50-3.00) | 3 |"


def test_functions_are_those_called_like_a_scaler(tmp_path):
    code = tmp_path / "other.py"
    code.write_text(OTHER)
    assert set(methods.beside(str(code))) == {"random", "average-pool"}
    code.write_text("def nothing(): ...")
    with pytest.raises(ConfigError, match="has no function called like a scaler; use one of"):
        methods.beside(str(code))

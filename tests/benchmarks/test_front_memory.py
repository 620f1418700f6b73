"""The front's memory is measured against the whole model's, and both make the same requests."""

import json

from benchmarks import front_memory, sizes


def test_it_runs_and_a_front_holds_less(tmp_path, capsys):
    out = tmp_path / "page.md"
    assert front_memory.main(["--size", "tiny", "--runs", "1", "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    whole, front = (told["measured"][name][0] for name in front_memory.SETTINGS)
    assert whole["keys"] == front["keys"]
    flex = sizes.flex_model(sizes.TINY, 0)
    layers = (
        sum(p.numel() for p in flex.host.model.language_model.layers.parameters()) + flex.host.lm_head.weight.numel()
    )
    assert whole["parameters"] - front["parameters"] == 4 * layers
    assert "| front |" in out.read_text()


def test_a_7b_model_is_counted():
    told = front_memory.counted(sizes.SIZES["7b"])
    assert 14.0e9 < told["whole"] - told["parts"] < 14.3e9  # 7.06 billion parameters in bf16
    assert told["front"] - told["parts"] < 1.0e9

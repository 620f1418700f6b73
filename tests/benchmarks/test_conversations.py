"""Turns of a conversation: what is read is what changed, and the page says what was measured."""

import json

from benchmarks import conversations


def test_the_whole_in_small(tmp_path, capsys):
    out, svg = tmp_path / "page.md", tmp_path / "curve.svg"
    words = ["--size", "tiny", "--images", "3", "--side", "112", "--rounds", "2", "--out", str(out), "--svg", str(svg)]
    assert conversations.main(words) == 0
    written, told = out.read_text(), json.loads(out.with_suffix(".json").read_text())
    assert written in capsys.readouterr().out
    fine, fade = told["rows"]["fine"], told["rows"]["fade"]
    assert len(fine) == len(fade) == 6
    assert [row["visual"] for row in fine] == [16, 16, 32, 32, 48, 48]
    assert all(row["visual"] <= other["visual"] for row, other in zip(fade, fine, strict=True))
    for row, before in zip(fine[1:], fine, strict=False):
        assert row["kept read"] == row["prompt"] - before["prompt"], "the last answer's token, and the new turn"
        assert row["limit"] < 1
    assert all(len(row["kept"]) == 2 for row in fine)
    assert f"| 6 | 48 | {fine[-1]['prompt']} | {fine[-1]['kept read']} |" in written
    assert svg.read_text().count("fine, kept") == 1

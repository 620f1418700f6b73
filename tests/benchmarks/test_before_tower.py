"""Levels before the tower: the arithmetic is torch's count, the table's ratios are right, and the whole runs."""

import json

import pytest
import torch

import tokenflex
from benchmarks import before_tower, paper_speed, qwen
from benchmarks.measure import Flops
from tokenflex.policies.constant import ConstantPolicy

ANSWERS, WORDS = 5, 32
"""Words that the avg router reads."""


@pytest.fixture(scope="module")
def geometry():
    return before_tower.of_qwen(qwen.TINY, 0)


def counted(call):
    flops = Flops()
    flops(call)
    return flops.counts[0]


@torch.no_grad()
def test_both_ways_have_the_same_tokens(geometry):
    counts = geometry.counts
    made = qwen.Arithmetic(qwen.TINY, ANSWERS)
    assert counts["before"] == counts["after"] == [made.visual(share) for share in before_tower.SHARES]


@torch.no_grad()
def test_arithmetic_is_what_torch_counts(geometry):
    """Exactly where nobody chooses; the router's sums of words by tokens are left out of the arithmetic."""
    made, calls = qwen.Arithmetic(qwen.TINY, ANSWERS), before_tower.runs(geometry, ANSWERS)
    assert counted(calls["vanilla"]) == made.after(2, before_tower.SHARES, None).total
    for name, way in (("after", made.after), ("before", made.before)):
        for level in range(3):
            assert counted(calls[f"{name} forced {level}"]) == way(level, before_tower.SHARES, None).total
            routed = counted(calls[f"{name} routed {level}"])
            assert routed == pytest.approx(way(level, before_tower.SHARES, WORDS).total, rel=1e-3)


def test_a_look_that_is_enough_is_no_extra_work():
    made = qwen.Arithmetic(qwen.QWEN_7B, ANSWERS)
    coarsest, next_one = (made.before(level, before_tower.SHARES, WORDS) for level in (0, 1))
    assert next_one.decision - coarsest.decision == made.tower(before_tower.SHARES[0]) == coarsest.tower


def test_the_small_size_has_the_shares_of_the_7b_model():
    """By FLOPs: the tower's part of the plain host's request, the router's, and what levels before the tower gain."""
    shares = {}
    for name in ("small", "7b"):
        made = qwen.Arithmetic(qwen.SIZES[name], ANSWERS)
        whole, after, before = (
            made.after(2, before_tower.SHARES, None),
            made.after(1, before_tower.SHARES, WORDS),
            made.before(1, before_tower.SHARES, WORDS),
        )
        shares[name] = (whole.tower / whole.total, after.decision / whole.total, after.total / before.total)
    assert shares["small"] == pytest.approx(shares["7b"], abs=0.03)
    assert shares["7b"][2] > 1.3


def test_rows():
    """A level before the tower with 40 tokens, met by one third of 30 and two thirds of 45 after it."""
    counts = {"before": [40, 100], "after": [30, 45, 100]}
    times = {"vanilla": [10.0, 10.0], "before forced 0": [2.0, 2.0], "before routed 0": [2.5, 5.0]}
    times |= {"before forced 1": [9.0, 9.0], "before routed 1": [10.0, 10.0]}
    for way, added in (("forced", 0.0), ("routed", 1.0)):
        times |= {f"after {way} {level}": [n + added] * 2 for level, n in enumerate((3.0, 6.0, 9.0))}
    first, last = before_tower.rows("one", counts, times, {name: some[:1] for name, some in times.items()})
    assert (first.tokens, first.of) == (40, 100)
    assert first.speedups["after forced"] == pytest.approx(10 / 5)
    assert first.gain_spread == pytest.approx((6 / 5, 6 / 2.5))
    assert first.gain == pytest.approx((6 / 5 + 6 / 2.5) / 2)
    assert first.gain_limit == pytest.approx(6 / 2.5)
    assert first.strict_limit == pytest.approx(5 / 2.5)
    assert last.gain == pytest.approx(1.0)


@torch.no_grad()
def test_a_forced_mix_is_the_router_replaced(geometry):
    flex = geometry.models["before"]
    asked = {**geometry.inputs, "max_new_tokens": 3, "min_new_tokens": 3}
    chosen = flex.generate(**asked, budget=ConstantPolicy.Config(level=1))
    assert torch.equal(chosen, flex.generate(**asked, level=1))
    assert isinstance(flex, tokenflex.FlexModel)


@pytest.mark.slow
def test_it_runs_in_its_smallest_size(capsys, tmp_path):
    page = tmp_path / "before.md"
    command = ["--size", "tiny", "--tables", "before-tower", "--json", "--rounds", "1", "--threads", "1"]
    paper_speed.main([*command, "--out", str(page)])
    found = json.loads(capsys.readouterr().out)["before_tower"]
    assert [one["geometry"] for one in found["geometries"]] == ["LLaVA-NeXT", "Qwen2.5-VL"]
    for one in found["geometries"]:
        assert len(one["rows"]) == 3
        for row in one["rows"]:
            assert row["gain"] > 0
            assert row["gain_limit"] > 0
    qwen_rows = found["geometries"][1]["rows"]
    assert [row["tokens"] for row in qwen_rows] == [4, 16, 64]
    assert qwen_rows[1]["strict_limit"] > 1.3
    text = page.read_text()
    assert text.startswith("# Levels before the vision tower")
    assert "| Qwen2.5-VL | 16 (25.0 %) |" in text
    assert "| before 1 | 400 | 2,123.5 | 539.2 | 6,200.3 | 8,863.0 | 27.7 % |" in text

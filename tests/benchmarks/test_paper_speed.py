"""The arithmetic of the speed table, and the whole in its smallest size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import arithmetic, paper_speed

SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)


def test_a_share_is_met_by_the_levels_next_to_it():
    assert paper_speed.mix(0.25, SHARES) == pytest.approx({1: 0.0, 2: 1.0})
    assert paper_speed.mix(0.4, SHARES) == pytest.approx({2: 0.4, 3: 0.6})
    assert paper_speed.mix(0.01, SHARES) == {0: 1.0}
    assert paper_speed.mix(1.0, SHARES) == pytest.approx({3: 0.0, 4: 1.0})


@given(st.floats(0.0625, 1.0))
def test_the_mix_has_the_share(kept):
    weights = paper_speed.mix(kept, SHARES)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert all(-1e-9 <= weight <= 1 + 1e-9 for weight in weights.values())
    assert sum(weight * SHARES[level] for level, weight in weights.items()) == pytest.approx(kept)


def test_speedups_round_by_round():
    seconds = {f"{r} {i}": [2.0 * i + 1, 2.0 * i + 2] for r in ("routed", "pooled", "forced") for i in range(5)}
    seconds["vanilla"] = [10.0, 12.0]
    assert paper_speed.speedups(seconds, "routed", {0: 0.5, 1: 0.5}) == pytest.approx([10 / 2, 12 / 3])
    found = paper_speed.rows(seconds, SHARES)
    assert [row.benchmark for row in found] == [name for name, _, _ in paper_speed.PUBLISHED]
    both = paper_speed.speedups(seconds, "routed", {1: 0.824, 2: 0.176})
    assert found[0].measured_speedup == pytest.approx(sum(both) / 2)
    assert found[0].spread[0] <= found[0].measured_speedup <= found[0].spread[1]
    assert paper_speed.overheads(seconds)["routed"]["ratio"] == 1.0


def test_the_small_size_has_the_shares_of_the_7b_model_and_the_protocol_names_them():
    """By FLOPs, at the coarsest level: what the router adds, and what the tower takes."""
    shares = {}
    for name in ("small", "7b"):
        made = arithmetic.Arithmetic(paper_speed.SIZES[name])
        forced = made.request(0, None, 5)
        added = [made.request(0, router, 5) / forced - 1 for router in ("routed", "pooled")]
        shares[name] = (*added, made.tower.forward / forced)
    assert shares["small"] == pytest.approx(shares["7b"], abs=0.01)
    routed, pooled, _ = shares["7b"]
    told = " ".join(paper_speed.PROTOCOL.split())
    assert f"a router adds {100 * routed:.0f} %" in told
    assert f"`pooled` {100 * pooled:.0f} %" in told


@pytest.mark.slow
def test_it_runs_in_its_smallest_size(capsys, tmp_path):
    page = tmp_path / "speed.md"
    paper_speed.main(["--size", "tiny", "--json", "--rounds", "1", "--threads", "1", "--out", str(page)])
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 7
    for row in found["rows"]:
        assert row["kept"] > 0
        assert row["published_speedup"] > 0
        assert row["measured_speedup"] > 0
    assert set(found["router_overhead"]) == {"routed", "pooled"}
    assert found["flops"]["routed 0"] > found["flops"]["pooled 0"] > found["flops"]["forced 0"]
    text = page.read_text()
    assert "| AI2D | 14.7 % | 2.53x |" in text
    assert "threads" in text

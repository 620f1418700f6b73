"""Which comparison has which name, and arithmetic beside what is counted."""

import json

import pytest
import torch

from benchmarks import arithmetic, memory, rglf, sizes, step_time, steps
from benchmarks.measure import Flops
from tokenflex.profiling.break_even import fit


def counted(stage, *, frozen_tower):
    flex, batch = sizes.flex_model(sizes.TINY, 0), sizes.batch(sizes.TINY, 0)
    steps.prepare(flex, stage, frozen_tower=frozen_tower)
    found = {}
    for name in (f"stage{stage}/published", step_time.OURS[stage][0]):
        flops = Flops()
        flops(lambda name=name: steps.run(flex, batch, name))
        (found[name],) = flops.counts
    return tuple(found.values())


@pytest.fixture(scope="module")
def tiny():
    return arithmetic.Arithmetic(sizes.TINY)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_arithmetic_of_stage_3_is_what_torch_counts(tiny, frozen):
    published, ours = counted(3, frozen_tower=frozen)
    assert tiny.stage3(published=True, frozen_tower=frozen) == pytest.approx(published, rel=0.01)
    assert tiny.stage3(published=False, frozen_tower=frozen) == pytest.approx(ours, rel=0.01)


def test_the_arithmetic_of_stage_4_is_what_torch_counts(tiny):
    published, ours = counted(4, frozen_tower=True)
    assert tiny.stage4(published=True) == pytest.approx(published, rel=0.01)
    assert tiny.stage4(published=False) == pytest.approx(ours, rel=0.01)


def test_a_request_s_table_says_where_routing_pays(tiny, capsys):
    arithmetic.main(["--requests", "tiny", "--answers", "2"])
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines()[2:] if line.startswith("| ")]
    assert [int(row[1]) for row in rows] == tiny.visual
    router, forced = tiny.router().forward, [tiny.request(level, None, 2) for level in range(len(rows))]
    assert [float(row[2]) for row in rows] == pytest.approx([cost / 1e12 for cost in forced], rel=0.01)
    assert [float(row[3]) for row in rows] == pytest.approx([(cost + router) / 1e12 for cost in forced], rel=0.01)
    saved = fit(tiny.visual, forced).slope
    assert f"routing pays when it drops more than {router / saved:.0f} of {tiny.visual[-1]} visual tokens." in out


def test_the_headline_of_stage_3_leaves_the_tower_without_gradients_as_the_published_code_does(monkeypatch):
    """And what trains it has a name that says so."""
    size = sizes.TINY
    flex, batch = sizes.flex_model(size, 0), sizes.batch(size, 0)
    seen = []

    def once(size, flex, batch, rounds):
        trained = any(p.requires_grad for p in flex.adapter.parameter_groups()["vision_tower"])
        seen.append((trained, *rounds))
        return {name: [1.0] * count for name, count in rounds.items()}

    monkeypatch.setattr(step_time, "_alternated", once)
    rows = {row.key: row for row in step_time.rows(size, flex, batch, 0, 3) if row.key}
    assert [trained for trained, *_ in seen] == [False, True]
    assert set(rows) == {
        f"{name}_{what}_ratio" for name in ("stage3", "stage3_tower_trained") for what in ("time", "flop")
    }
    assert rows["stage3_flop_ratio"].baseline[0] < rows["stage3_tower_trained_flop_ratio"].baseline[0]
    assert "vision tower trained" in rows["stage3_tower_trained_time_ratio"].what


def test_memory_has_the_same_names():
    keys = {one.key: one for one in memory.COMPARISONS["stage3"] if one.key}
    assert set(keys) == {"stage3_memory_ratio", "stage3_tower_trained_memory_ratio"}
    for key, one in keys.items():
        assert one.ours.frozen_tower == one.baseline.frozen_tower == (key == "stage3_memory_ratio")


def test_the_json_line_and_the_page_have_the_7b_arithmetic(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sizes.SIZES, "7b", sizes.TINY)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    page = tmp_path / "page.md"
    rglf.main(["--size", "tiny", "--only", "router", "--pairs", "1", "--json", "--out", str(page)])
    told = json.loads(capsys.readouterr().out)
    assert told["stage3_flop_ratio_7b"] == told["arithmetic"]["stage3"]["7b"] < 1
    assert told["stage4_flop_ratio_7b"] == told["arithmetic"]["stage4"]["7b"] < 1
    assert f"| stage 3 | {told['arithmetic']['stage3']['tiny']:.3f} |" in page.read_text()

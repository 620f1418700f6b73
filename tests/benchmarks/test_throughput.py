"""The arithmetic of the throughput table, and the whole in its smallest size."""

import json
import re
from types import SimpleNamespace

import pytest

from benchmarks import arithmetic, throughput
from benchmarks.throughput import AGAIN, HOST, Case, Run

SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)


def test_a_batch_mixes_levels_and_single_requests_mix_over_time():
    mixes = {"AI2D": 0.147, "all": 1.0}
    (one,) = throughput.cases(1, {"AI2D": 0.147}, SHARES, ["routed", "padded"])[1:]
    assert one.runs == {Run("routed", (1,)): pytest.approx(0.824), Run("routed", (2,)): pytest.approx(0.176)}
    plain, finest, coarsest, routed, padded, whole = throughput.cases(8, mixes, SHARES, throughput.SETTINGS)
    assert plain == Case("plain host", None, {AGAIN: 1.0})
    assert (finest.runs, coarsest.runs) == ({Run("forced", (4,) * 8): 1.0}, {Run("forced", (0,) * 8): 1.0})
    assert (routed.setting, routed.mix, routed.runs) == ("routed", "AI2D", {Run("routed", (1,) * 7 + (2,)): 1.0})
    assert (padded.setting, padded.runs) == ("routed, padded", {Run("padded", (1,) * 7 + (2,)): 1.0})
    assert whole.setting == "routed", "nothing is padded where all levels are the same"


def test_the_mixes_are_the_published_ones():
    published = {name: kept for name, kept, _ in throughput.paper_speed.PUBLISHED}
    assert throughput.MIXES.items() <= published.items()


def test_the_small_size_has_the_shares_of_paper_speeds_which_are_those_of_the_7b_model():
    """By FLOPs, at the coarsest level: what the router adds, and what the tower takes."""
    shares = []
    for size in (throughput.SCALES["small"].size, throughput.paper_speed.SIZES["small"]):
        made = arithmetic.Arithmetic(size)
        forced = made.request(0, None, 1)
        shares.append((made.request(0, "routed", 1) / forced - 1, made.tower.forward / forced))
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_a_row_is_compared_with_the_host_round_by_round():
    case = Case("routed", "x", {Run("routed", (0,)): 0.25, Run("routed", (2,)): 0.75})
    seconds = {HOST: [10.0, 12.0, 20.0], Run("routed", (0,)): [2.0, 2.0, 2.0], Run("routed", (2,)): [6.0, 6.0, 6.0]}
    flops = {("host", 4): 100, ("routed", 0): 10, ("routed", 2): 30}
    row = throughput.row(case, 1, 16, SHARES, seconds, lambda *key: flops[key])
    assert (row.ratio, row.spread, row.n) == (12 / 5, (2.0, 4.0), 3)
    assert row.flop_limit == pytest.approx(100 / 25)
    assert row.of_limit == pytest.approx(12 / 5 / 4)
    assert row.kept == pytest.approx(0.25 * 0.0625 + 0.75 * 0.25)
    assert row.images_per_second == 1 / 5


def test_the_limit_of_a_batch_pads_nothing():
    case = Case("routed, padded", "x", {Run("padded", (0, 0, 0, 4)): 1.0})
    seconds = {HOST: [10.0], Run("padded", (0, 0, 0, 4)): [8.0]}
    flops = {("host", 4): 100, ("padded", 0): 10, ("padded", 4): 110}
    row = throughput.row(case, 4, 1, SHARES, seconds, lambda *key: flops[key])
    assert row.flop_limit == pytest.approx(100 / 35)
    assert row.of_limit == pytest.approx(1.25 / (100 / 35))
    assert row.kept == pytest.approx((3 * 0.0625 + 1) / 4)


def test_padding_is_asked_for_and_taken_back():
    flex = SimpleNamespace(batching="auto", generate=lambda **given: (flex.batching, given["budget"].levels))
    run = throughput.call(flex, {}, 1, Run("padded", (0, 4)))
    assert run() == ("padded", (0, 4))
    assert flex.batching == "auto"
    assert throughput.call(flex, {}, 1, Run("routed", (0, 4)))() == ("auto", (0, 4))


def test_it_runs_in_its_smallest_size(capsys, tmp_path):
    page = tmp_path / "throughput.md"
    sizes = ("--batches", "1", "4", "--answers", "2", "--mixes", "AI2D", "0.4", "--rounds", "2", "1")
    throughput.main(["--size", "tiny", "--json", "--threads", "1", "--out", str(page), *sizes])
    told = capsys.readouterr()
    found = json.loads(told.out)
    keys = {"batch", "answer", "mix", "setting", "ratio", "spread", "n", "flop_limit", "of_limit", "kept"}
    for row in found["rows"]:
        assert keys < set(row)
        assert row["n"] == {1: 2, 4: 1}[row["batch"]]
        assert row["spread"][0] <= row["ratio"] <= row["spread"][1]
        assert row["of_limit"] == pytest.approx(row["ratio"] / row["flop_limit"])
    assert {(row["batch"], row["answer"]) for row in found["rows"]} == {(1, 2), (4, 2)}
    assert {"protocol", "hardware", "torch", "threads", "tokens"} < set(found)
    assert len(re.findall(r"^batch [14], answer 2, .*% of .*x$", told.err, re.MULTILINE)) == len(found["rows"])
    first = {row["setting"] + (row["mix"] or ""): row["flop_limit"] for row in found["rows"] if row["batch"] == 1}
    assert first["plain host"] == 1.0
    assert first["forced finest"] == 1.0, "the finest level computes what the host computes"
    assert first["forced coarsest"] > first["routedAI2D"] > first["routed0.4"], "the router is counted"
    text = page.read_text()
    assert "| batch | answer | mix | setting | kept |" in text
    assert "| 4 | 2 | AI2D | routed | 15.4 % |" in text
    assert "AI2D 14.7 %, 0.4 40.0 %" in text


def test_flops_of_a_batch_are_those_of_its_images():
    """What the limit takes for granted: without padding nothing but the number of images matters."""
    size = throughput.SCALES["tiny"].size
    flex = throughput.paper_speed.built(size, 0)[0]["routed"]
    counter = throughput.Flops()
    for rows in (1, 3):
        inputs = throughput.requests(size, 0, rows)
        for run in (HOST, Run("forced", (1,) * rows), Run("routed", (1,) * rows)):
            counter(throughput.call(flex, inputs, 2, run))
    alone, batch = counter.counts[:3], counter.counts[3:]
    assert batch == [3 * count for count in alone]


def test_padding_computes_more_than_groups_do():
    size = throughput.SCALES["tiny"].size
    flex = throughput.paper_speed.built(size, 0)[0]["routed"]
    flex.batching = "grouped"
    inputs, counter, levels = throughput.requests(size, 0, 3), throughput.Flops(), (0, 0, 4)
    answers = [counter(throughput.call(flex, inputs, 1, Run(kind, levels))).tolist() for kind in ("routed", "padded")]
    assert answers[0] == answers[1]
    work = throughput.Work(flex, throughput.requests(size, 0, 1))
    exact, (grouped, padded) = sum(work(1, "routed", level) for level in levels), counter.counts
    assert exact <= grouped < 1.05 * exact < padded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batches", "0"], "--batches, --answers and --rounds are 1 or more"),
        (["--mixes", "AI2E"], "--mixes: mix AI2E: name AI2D, ScienceQA, ChartQA, or a share"),
    ],
)
def test_refusals(words, message):
    with pytest.raises(SystemExit, match=message):
        throughput.main(["--size", "tiny", *words])

"""A made-up profile on paper."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tokenflex.profiling import lines, report
from tokenflex.profiling.break_even import break_even, compare_times
from tokenflex.profiling.flops import Work
from tokenflex.profiling.memory import Memory
from tokenflex.profiling.result import AnswerProfile, BatchProfile, Profile, SettingProfile
from tokenflex.profiling.surroundings import Surroundings
from tokenflex.profiling.timing import Times

WHERE = Surroundings(
    host="SomeHost", parameters=7_000_000_000, parts={"scaler": "S", "router": "R", "voter": "V", "policy": "P"},
    device="cuda:0", device_name="a GPU", dtype=("bfloat16",), parts_dtype=("float32",), attention=("sdpa",),
    threads=4, torch="2.9", transformers="5.18", tokenflex="0.1", python="3.11", date="2026-01-02",
)  # fmt: skip


def setting(name, kind, levels, tokens, seconds, stages):
    both = Times((seconds,) * 20)
    answers = tuple(
        AnswerProfile(
            n, Times((seconds * n,) * 20), both if n > 1 else None, Memory(3 * 2**20, 2**20, 2**19), Work(10**12, ())
        )
        for n in (1, 64)
    )
    taken = {stage: Times((0.001,) * 20) for stage in stages}
    return SettingProfile(name, kind, levels, tokens, 620, taken, Work(10**9, ("flash",)), both, answers)


def made(slower=1.0):
    forced = ("vision_tower", "scaler", "splice", "prefill")
    settings = (
        setting("vanilla", "vanilla", (), 576.0, 0.1, ("prefill",)),
        setting("level 0", "level", (0, 0), 36.0, 0.04, forced),
        setting("level 1", "level", (1, 1), 576.0, 0.1, forced),
        setting("routed", "routed", (0, 1), 306.0, 0.08 * slower, ("vision_tower", "decision", *forced[1:])),
    )
    level = [[0.04] * 20, [0.1] * 20]
    evens = tuple(break_even(n, [36, 576], level, 0.001, 0.1) for n in (1, 64))
    pairs = tuple(compare_times("routed", n, [0.08 * slower] * 20, [0.1] * 20) for n in (1, 64))
    batch = BatchProfile(2, 2, 620, settings, evens, pairs)
    return Profile(WHERE, "a cat; 'what?'", 20, 3, (batch,), ("Mind the gap.",))


def test_the_tables_have_a_cell_for_every_column():
    (batch,) = made().batches
    for rows in (lines.times(batch), lines.costs(batch)):
        assert all(len(cells) == len(rows.head) for cells in rows.body)
        assert [cells[0] for cells in rows.body] == ["vanilla", "level 0", "level 1", "routed"]
    times = {cells[0]: dict(zip(lines.times(batch).head, cells, strict=True)) for cells in lines.times(batch).body}
    assert times["vanilla"]["prefill"] == "1*"
    assert times["vanilla"]["tower"] == times["level 0"]["decision"] == "-"
    assert times["routed"]["decision"] == "1"
    assert times["level 0"]["first token"] == "40 / 40"
    assert times["level 0"]["rest"] == "36"
    assert times["level 0"]["per token"] == "40"
    assert times["level 0"]["64 tokens"] == "2560 / 2560"
    costs = {cells[0]: dict(zip(lines.costs(batch).head, cells, strict=True)) for cells in lines.costs(batch).body}
    assert costs["routed"]["levels"] == "1x0 1x1"
    assert costs["level 1"]["levels"] == "1"
    assert costs["vanilla"]["levels"] == "-"
    assert costs["routed"]["peak MiB, 64 tokens"] == "3"
    assert costs["routed"]["working MiB"] == "2"
    assert costs["routed"]["KV cache MiB, 64 tokens"] == "0.5"
    assert costs["vanilla"]["GFLOP, prefill"] == "1*"
    assert costs["vanilla"]["GFLOP, 64 tokens"] == "1000"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234567.0, "1230000"), (999.6, "1000"), (12.345, "12.3"), (0.012345, "0.0123"), (1.2e-5, "0.000012")],
)
def test_three_digits_without_exponents(value, shown):
    assert lines.digits(value) == shown


def test_gains_losses_and_warnings_are_said():
    console = Console(file=io.StringIO(), width=200)
    report.show(console, made())
    text = " ".join(console.file.getvalue().split())
    assert "Batch of 2 (2 images), prompts of 620 tokens" in text
    assert "1 token per answer: Routing pays when it drops more than 9 of 576 visual tokens" in text
    assert "64 tokens per answer, routed is faster than the vanilla host: 0.80 times its time" in text
    assert "WARNING: Mind the gap." in text
    assert "n = 20 runs per setting after 3 for warming up" in text
    assert "bfloat16 (parts float32), attention sdpa" in text
    assert "Asked: a cat; 'what?'." in text
    assert "routed is SLOWER than the vanilla host: 1.60 times its time" in report.profile_markdown(made(slower=2.0))


def test_both_files_are_written_and_agree(tmp_path):
    profile = made()
    report.write(tmp_path / "new", profile)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["profile.html", "profile.json", "profile.md"]
    assert json.loads((tmp_path / "new" / "profile.json").read_text()) == profile.to_dict()
    page = (tmp_path / "new" / "profile.md").read_text()
    assert "| setting | visual tokens | tower |" in page
    assert "**Mind the gap.**" in page
    report.write(tmp_path / "new", replace(profile, warnings=()))
    assert "**" not in (tmp_path / "new" / "profile.md").read_text()


def test_the_docs_name_every_column():
    page = (Path(__file__).parents[2] / "docs" / "profile.md").read_text()
    (batch,) = made().batches
    for head in (*lines.times(batch).head[1:], *lines.costs(batch).head[1:]):
        name = "N tokens" if head == "64 tokens" else head.split(",")[0]
        assert f"| {name} |" in page, head


def test_parts_without_weights_have_no_type():
    profile = replace(made(), surroundings=replace(WHERE, parts_dtype=()))
    assert "bfloat16, attention sdpa" in lines.protocol(profile)

"""Escalation in evaluations: its names, its answers, and its passes in records, summary and report."""

import math

import pyarrow.parquet as pq
import pytest

from tests.evaluation.conftest import ROWS
from tests.evaluation.tables import made, unsealed
from tokenflex import Escalate
from tokenflex.errors import ConfigError
from tokenflex.evaluation import records
from tokenflex.evaluation.questions import Questions
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.report import report
from tokenflex.evaluation.run import evaluate
from tokenflex.evaluation.settings import group_of, parse


def test_names(still):
    (one,) = parse(still, ["escalate@threshold=0.9, measure=min-margin, levels=[0,4]"])
    assert one.escalate == Escalate(threshold=0.9, measure="min-margin", levels=(0, 4))
    assert one.group == group_of(one.name) == "escalate"
    (two,) = parse(still, ["router+escalate@threshold=1"])
    assert two.escalate == Escalate(threshold=1, start="router")
    assert group_of(two.name) == "escalate"
    names = ["random", "escalate@threshold=0.9", "router@ratio=0.3", "router", "level:0"]
    assert [group_of(setting.name) for setting in parse(still, names)] == [
        "level", "router", "budget", "escalate", "random"
    ]  # fmt: skip


def test_what_was_calibrated_is_named_in_full(still):
    still.escalate = Escalate(threshold=0.25, levels=(0,))
    try:
        (found,) = parse(still, ["escalate"])
        assert found.name == "escalate@threshold=0.25,measure=first-margin,levels=[0,4]"
        assert found.escalate is still.escalate
        (again,) = parse(still, [found.name])
        assert again.escalate.ladder(5) == found.escalate.ladder(5)
        with pytest.raises(ConfigError, match="from that start"):
            parse(still, ["router+escalate"])
    finally:
        still.escalate = None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("escalate", "nothing was calibrated"),
        ("router+escalate", "nothing was calibrated"),
        ("escalate@measure=min-margin", "give a threshold"),
        ("escalate@threshold=0.5,start=router", "the start by the name"),
        ("escalate@threshold=high", "threshold='high'"),
        ("escalate@threshold=0.5,measure=firs-margin", "Did you mean 'first-margin'"),
        ("escalate@threshold=0.5,levels=[9]", "out of range"),
        ("escalate@threshold=0.5,levels=3", "levels=3"),
        ("escalate@treshold=0.5", "treshold"),
        ("escalate:1@threshold=0.5", "isn't known"),
    ],
)
def test_refusals(still, name, message):
    with pytest.raises(ConfigError, match=message):
        parse(still, [name])


def test_records_count_every_pass(still, processor, tmp_path):
    settings = [
        "levels",
        "escalate@threshold=1e9,levels=[0,2]",
        "escalate@threshold=-1.0",
        "router+escalate@threshold=-1",
    ]
    found = evaluate(
        still,
        processor,
        Questions(ROWS),
        "exact-match",
        parse(still, settings),
        tmp_path,
        batch_size=3,
        max_new_tokens=2,
    )
    at_level = [found.records[f"level:{level}"] for level in range(5)]
    for place in range(len(ROWS)):
        tokens = [records[place].tokens for records in at_level]
        high = found.records["escalate@threshold=1e9,levels=[0,2]"][place]
        assert (high.levels, high.passes) == ([4], 3)
        assert high.tokens == tokens[0] + tokens[2] + tokens[4]
        assert high.wasted == tokens[0] + tokens[2]
        assert high.answer == at_level[4][place].answer
        low = found.records["escalate@threshold=-1.0"][place]
        assert (low.levels, low.passes, low.tokens, low.wasted) == ([0], 1, tokens[0], 0)
        assert low.answer == at_level[0][place].answer
    summary = report(tmp_path, resamples=10)
    entry = summary["settings"]["escalate@threshold=1e9,levels=[0,2]"]
    assert entry["passes"] == 3
    mean = sum(at_level[level][place].tokens for level in (0, 2) for place in range(len(ROWS))) / len(ROWS)
    assert math.isclose(entry["wasted"], mean, abs_tol=1e-5)
    assert entry["chosen"] == [0, 0, 0, 0, len(ROWS)]
    assert "regret" in entry
    assert "passes" not in summary["settings"]["level:4"]
    text = (tmp_path / "report.md").read_text()
    assert "| passes | tokens wasted |" in text
    assert f"| 3.00 | {mean:.1f} |" in text
    assert "Passes: of the language model" in text
    assert "escalated, all passes" in (tmp_path / "report.html").read_text()


def test_reports_without_escalation_stay_as_they_were(tmp_path):
    made(tmp_path, {"level:0": ([1, 0], [2, 2]), "level:1": ([1, 1], [8, 8])})
    report(tmp_path, resamples=10)
    assert "passes" not in (tmp_path / "report.md").read_text()


def test_files_of_older_versions(tmp_path):
    folder = made(tmp_path, {"level:0": ([1, 0], [2, 2]), "level:1": ([1, 1], [8, 8])})
    path = next(folder.glob("part-*.parquet"))
    unsealed(folder)
    old = pq.read_table(path).drop_columns(["passes", "wasted"]).replace_schema_metadata(None)
    pq.write_table(old, path)
    assert [row.passes for row in Evaluation(folder).records["level:0"].values()] == [None, None]
    assert records.ANSWERS.get_field_index("passes") > 0
    report(folder, resamples=10)

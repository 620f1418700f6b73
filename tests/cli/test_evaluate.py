"""``tokenflex evaluate``: one command from data to report."""

import json
import subprocess
import sys

import pytest
import torch

import tokenflex
from tests.evaluation.conftest import ROWS
from tests.evaluation.test_questions import as_file
from tokenflex.cli.main import main
from tokenflex.evaluation.summary import METHOD
from tokenflex.quickstart import run as quickstart
from tokenflex.quickstart.host import seeded
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

ANSWERS = len(ROWS)


def saved(folder, host, processor):
    torch.manual_seed(0)
    flex = tokenflex.wrap(host)
    for save in (flex.save_pretrained, flex.save_parts, processor.save_pretrained):
        save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), tiny_llava_next(), tiny_llava_next_processor())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The quickstart's host, untrained, in the folder its command would leave it in."""
    folder = tmp_path_factory.mktemp("home")
    saved(folder / "quickstart" / "model", *seeded(0))
    return folder


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["evaluate", "--device", "cpu", "--resamples", "20", "--max-new-tokens", "2", *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_json_is_all_there_is_on_standard_output(call, model, tmp_path):
    data = str(as_file("json", tmp_path))
    code, out, _ = call(model, "--data", data, "--metric", "anls", "--out", "o", "--json")
    assert code == 0
    summary = json.loads(out)
    assert list(summary["settings"]) == [*(f"level:{i}" for i in range(5)), "router"]
    assert summary["samples"] == ANSWERS
    assert summary["metric"] == "anls"
    assert summary["data"] == data
    assert summary["model"] == model
    assert summary["bootstrap"] == {"resamples": 20, "seed": 0, "interval": 0.95, "method": METHOD}
    assert json.loads((tmp_path / "o" / "summary.json").read_text()) == summary
    assert (tmp_path / "o" / "report.md").exists()
    code, again, _ = call("--report-only", "o", "--json")
    assert (code, json.loads(again)) == (0, summary)


def test_the_table_names_every_setting(call, model, tmp_path):
    data, asked = str(as_file("jsonl", tmp_path)), ("router", "router@ratio=0.5", "scaler:stride:0", "random")
    code, out, _ = call(model, "--data", data, "--metric", "exact-match", "--limit", "3", "--settings", *asked)
    assert code == 0
    for name in asked:
        assert name in out
    assert "on 3 questions of" in out.replace("\n", " ")
    assert "Wrote summary.json, report.md and report.html to evaluation" in out.replace("\n", " ")


def test_out_of_the_box_on_the_quickstart(call, small, monkeypatch):
    monkeypatch.chdir(small)
    code, out, _ = call("--json", "--data", "quickstart:0:6", "--batch-size", "4", "--out", "a")
    assert code == 0
    summary = json.loads(out)
    assert (summary["data"], summary["samples"], summary["metric"]) == ("quickstart:0:6", 6, "exact-match")
    assert summary["model"] == "quickstart/model"
    assert set(summary["kinds"]) <= {"digit", "ink", "photo", "wash", "count"}
    asked = ["quickstart/model", "--json", "--limit", "2", "--settings", "level:0", "--out", "b"]
    monkeypatch.setattr("tokenflex.cli.evaluate.QUESTIONS", 5)
    summary = json.loads(call(*asked)[1])
    assert (summary["data"], summary["samples"]) == ("quickstart:0:5", 2)


def test_without_any_model_the_quickstart_is_trained_first(call, tmp_path, monkeypatch):
    def train(out):
        sys.stdout.write("a table")
        saved(out / "model", *seeded(0))

    monkeypatch.setattr(quickstart, "run", train)
    code, out, err = call("--json", "--data", "quickstart:0:3", "--settings", "level:0")
    assert code == 0
    assert json.loads(out)["model"] == "quickstart/model"
    assert "running 'tokenflex quickstart' first" in err
    assert "a table" in err
    code, out, err = call("--json", "--data", "quickstart:0:3", "--settings", "level:0")
    assert "running" not in err


def test_two_shards_and_one_report(call, model, tmp_path, monkeypatch):
    words = (model, "--data", str(as_file("json", tmp_path)), "--metric", "exact-match", "--batch-size", "2", "--json")
    whole = json.loads(call(*words, "--out", "whole")[1])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, out, err = call(*words, "--out", "s")
    assert (code, out) == (0, "")
    assert "answers of others are still missing (level:0: 4, " in err
    assert "--report-only s" in err
    code, _, err = call("--report-only", "s")
    assert code == 1
    assert "level:0 lacks 4 of 7" in err
    monkeypatch.setenv("RANK", "0")
    assert json.loads(call(*words, "--out", "s")[1]) == whole


def test_another_model_in_the_same_folder_is_refused(call, model, small, tmp_path):
    data = ("--data", str(as_file("json", tmp_path)), "--settings", "level:0")
    assert call(model, *data, "--metric", "exact-match")[0] == 0
    code, _, err = call(model, *data, "--metric", "relaxed")
    assert code == 1
    assert "metric: 'exact-match' stored, 'relaxed' now" in err


def test_a_host_with_parts_and_without(call, model, tmp_path):
    data = ("--data", str(as_file("json", tmp_path)), "--metric", "exact-match", "--json", "--limit", "2")
    host = tmp_path / "host"
    tiny_llava_next().save_pretrained(host)
    tiny_llava_next_processor().save_pretrained(host)
    with_parts = json.loads(call("--host", str(host), "--parts", model, *data, "--out", "a")[1])
    assert "router" in with_parts["settings"]
    assert with_parts["model"] == f"{host} with {model}"
    same = json.loads(call(model, *data, "--out", "b")[1])
    assert with_parts["settings"] == same["settings"]
    alone = json.loads(call("--host", str(host), *data, "--out", "c")[1])
    assert list(alone["settings"]) == [f"level:{i}" for i in range(5)]
    code, _, err = call("--host", str(host), *data, "--settings", "router@ratio=0.5")
    assert code == 1
    assert "--host without --parts has no trained router" in err
    code, _, err = call(str(host), *data)
    assert code == 1
    assert "is a plain LlavaNextForConditionalGeneration without parts. Give it as --host" in err


def test_a_metric_of_one_s_own(call, model, tmp_path):
    (tmp_path / "lengths.py").write_text(
        "def short(answer, references):\n    return 1.0 if len(answer) < 4 else 0.25\n"
    )
    data = str(as_file("json", tmp_path))
    code, out, _ = call(model, "--data", data, "--metric", "lengths:short", "--settings", "level:0", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["metric"] == "lengths:short"
    assert 0.25 <= summary["settings"]["level:0"]["score"] <= 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "no.json", "--metric", "anls"], "no model was given"),
        (["MODEL"], "doesn't know 37 of its words (such as '0'). Give other --data"),
        (["MODEL", "--data", "rows.json"], "--metric is missing"),
        (["MODEL", "--data", "no.json", "--metric", "anls"], "data 'no.json' doesn't exist"),
        (["MODEL", "--data", "no.json", "--metric", "blue"], "no metric is called 'blue'"),
        (["MODEL", "--host", "x", "--data", "no.json", "--metric", "anls"], "give either a saved FlexModel, or a host"),
        (["no/where", "--data", "no.json", "--metric", "anls"], "'no/where' can't be loaded"),
        (["--report-only", "nothing"], "has no manifest.json"),
        (["--report-only", "nothing", "--resamples", "0"], "--resamples 0: use 1 or more"),
    ],
)
def test_refusals_say_how_to_mend_it(call, model, words, message):
    code, _, err = call(*(model if word == "MODEL" else word for word in words))
    assert code == 1
    assert message in err


@pytest.mark.parametrize("data", ["quickstart:x", "quickstart:0:0", "quickstart:0:1:2", "quickstart:-1"])
def test_the_exam_s_name_is_checked(call, small, monkeypatch, data):
    monkeypatch.chdir(small)
    code, _, err = call("--data", data)
    assert code == 1
    assert "write quickstart, quickstart:SEED or quickstart:SEED:N" in err


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom tokenflex.cli.main import build_parser\n"
        "try:\n    build_parser().parse_args(['evaluate', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "scaler:NAME" in done.stdout

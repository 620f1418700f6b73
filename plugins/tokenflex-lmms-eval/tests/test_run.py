"""Real runs of lmms-eval, offline, on a task of its own: answers and tokens are those that ``generate`` gives."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval isn't installed")

import datasets
import pyarrow.parquet as pq

from tokenflex import Budget

IMAGES = (1, 1, 2, 0, 1)
TASK = """
task: local_task
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function reader.images
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
READER = """
def images(document):
    return [image.convert("RGB") for image in document["images"]]
"""


def by_hand(flex, processor, images, question, **asked):
    """What ``generate`` answers to one question, as records have it."""
    text = f"user : {'<image> ' * len(images)}{question} assistant : "
    inputs = processor(text=[text], images=images or None, return_tensors="pt")
    output = flex.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, **asked)
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    return {
        "answer": processor.decode(new, skip_special_tokens=True).strip(),
        "levels": [decision.level for decision in output.decisions],
        "visual_tokens": sum(decision.tokens for decision in output.decisions),
        "finest_tokens": sum(decision.of for decision in output.decisions),
        "output_tokens": len(new),
    }


@pytest.fixture(scope="module")
def documents(image):
    return [
        {
            "images": [image(10 * place + number) for number in range(count)],
            "question": " ".join(f"w{word}" for word in range(2 + (5 * place) % 7)),
        }
        for place, count in enumerate(IMAGES)
    ]


@pytest.fixture(scope="module")
def expected(flex, processor, documents):
    """Answers by what decides: the model itself, or a budget."""
    return {
        "router": [by_hand(flex, processor, *row.values()) for row in documents],
        "router@ratio=0.3": [by_hand(flex, processor, *row.values(), budget=Budget(ratio=0.3)) for row in documents],
    }


@pytest.fixture(scope="module")
def task(documents, expected, tmp_path_factory):
    """Folder of the task; the model is right about every other document."""
    folder = tmp_path_factory.mktemp("task")
    rows = [
        {**row, "answer": said["answer"] if place % 2 else "w1"}
        for place, (row, said) in enumerate(zip(documents, expected["router"], strict=True))
    ]
    text = datasets.Value("string")
    features = datasets.Features({"images": datasets.List(datasets.Image()), "question": text, "answer": text})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data.parquet")
    (folder / "local.yaml").write_text(TASK.format(data=folder / "data.parquet"))
    (folder / "reader.py").write_text(READER)
    return folder


@pytest.fixture
def run(tmp_path):
    """Run a module in a process of its own."""

    def start(module, *arguments, **environment):
        own = {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", *module.split(), *map(str, arguments)]
        return subprocess.run(command, env=os.environ | own | environment, capture_output=True, text=True)

    return start


@pytest.fixture
def lmms(run, task, tmp_path):
    """Run lmms-eval on the task; gives lmms-eval's samples by document, its score, and the log's records."""

    def start(arguments, *options, module="lmms_eval", **environment):
        out = tmp_path / "out"
        found = run(
            module, "--model", "tokenflex", "--model_args", f"{arguments},log={out / 'log.jsonl'}",
            "--tasks", "local_task", "--include_path", task, "--log_samples", "--output_path", out,
            "--verbosity", "DEBUG", *options, **environment,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr
        (samples,) = out.rglob("*_samples_local_task.jsonl")
        (results,) = out.rglob("*_results.json")
        by_document = {sample["doc_id"]: sample for sample in map(json.loads, samples.read_text().splitlines())}
        score = json.loads(results.read_text())["results"]["local_task"]["exact_match,none"]
        logs = {path.name: [json.loads(line) for line in path.open()] for path in out.glob("log*.jsonl")}
        return by_document, score, logs

    return start


def check(samples, records, expected):
    """Samples and records agree with each other and with what was expected."""
    assert sorted(samples) == sorted(record["doc_id"] for record in records) == list(range(len(expected)))
    for record in records:
        wanted, sample = expected[record["doc_id"]], samples[record["doc_id"]]
        assert {key: record[key] for key in wanted} == wanted
        assert (record["task"], record["repeat"], record["stopped"]) == ("local_task", 0, "length")
        assert sample["filtered_resps"] == wanted["answer"]
        assert sample["token_counts"] == [{key: record[key] for key in sample["token_counts"][0]}]
        assert {"levels", "visual_tokens", "finest_tokens", "input_tokens", "output_tokens"} == {
            *sample["token_counts"][0]
        }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_answers_what_generate_answers(lmms, saved, expected, batch_size):
    samples, score, logs = lmms(f"model={saved / 'model'}", "--batch_size", batch_size)
    assert list(logs) == ["log.jsonl"]
    check(samples, logs["log.jsonl"], expected["router"])
    assert [samples[place]["exact_match"] for place in range(len(IMAGES))] == [0, 1, 0, 1, 0]
    assert score == pytest.approx(2 / 5)


def test_two_processes_within_a_budget(lmms, saved, expected):
    samples, _, logs = lmms(
        f"host={saved / 'host'},parts={saved / 'parts'},budget=ratio:0.3",
        "--batch_size", 2, module="torch.distributed.run --standalone --nproc-per-node 2 -m lmms_eval",
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    parts = [logs[f"log.{rank}-of-2.jsonl"] for rank in (0, 1)]
    assert [[record["doc_id"] for record in part] for part in parts] == [[0, 2, 4], [1, 3]]
    check(samples, [*parts[0], *parts[1]], expected["router@ratio=0.3"])


def test_a_run_that_fails_leaves_no_result(run, task, saved, tmp_path):
    found = run(
        "lmms_eval", "--model", "tokenflex", "--model_args", f"model={saved / 'model'},log={tmp_path / 'log.jsonl'}",
        "--tasks", "local_task", "--include_path", task, "--output_path", tmp_path / "out",
        "--gen_kwargs", "speed=2", "--verbosity", "DEBUG",
    )  # fmt: skip
    assert found.returncode != 0
    assert "ConfigError: generation setting(s) speed can't be honoured" in found.stderr
    assert not (tmp_path / "log.jsonl").exists()
    assert not list(tmp_path.rglob("*_results.json"))


def test_tokenflex_evaluate_finds_the_same(run, task, saved, expected, tmp_path):
    settings = ["router", "router@ratio=0.3"]
    found = run(
        "tokenflex.cli.main", "evaluate", saved / "model", "--data", task / "data.parquet", "--metric", "exact-match",
        "--settings", *settings, "--out", tmp_path / "out", "--batch-size", 2, "--max-new-tokens", 6, "--device", "cpu",
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [row for part in (tmp_path / "out").glob("part-*.parquet") for row in pq.read_table(part).to_pylist()]
    assert len(rows) == len(settings) * len(IMAGES)
    for row in rows:
        wanted = expected[row["setting"]][row["place"]]
        assert [row["answer"], row["levels"], row["tokens"], row["of"]] == list(wanted.values())[:4]
    scores = {row["place"]: row["score"] for row in rows if row["setting"] == "router"}
    assert [scores[place] for place in range(len(IMAGES))] == [0, 1, 0, 1, 0]

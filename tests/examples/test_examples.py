"""Every example runs on its tiny model, and prints what it says."""

import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

import tokenflex
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

FOLDER = Path(__file__).parents[2] / "examples"
OWN_TESTS = {"ray_batch.py": "tests/serving/test_ray.py", "study.py": "tests/study/test_run.py"}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example in this process; its output by lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))

    def example(name: str, *words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    yield example
    sys.modules.pop("start", None)


@pytest.fixture
def saved(tmp_path):
    """A folder with the tiny model and its processor, and one with fresh parts for it."""
    host = tiny_llava_next()
    host.save_pretrained(tmp_path / "model")
    tiny_llava_next_processor().save_pretrained(tmp_path / "model")
    tokenflex.wrap(host).save_parts(tmp_path / "parts")
    return str(tmp_path / "model"), str(tmp_path / "parts")


def test_screens(run):
    lines = run("screens.py", "--steps", "5")
    assert len(lines) == 7
    found = [
        re.findall(r"(\d+) of (\d+) tokens, levels ([\d ]+); read (\d+), reused (\d+)", line) for line in lines[:-1]
    ]
    spent, full, levels, _, reused = zip(*(one[0] for one in found), strict=True)
    assert max(map(int, spent[:5])) <= 400 < int(full[-1])
    assert [int(one) for one in levels[4].split()] == sorted(int(one) for one in levels[4].split())
    assert int(reused[0]) == 0 < int(reused[1])
    assert int(reused[5]) > int(reused[4]), "no new image, so nothing fades"


def tokens(lines):
    return [int(found[1]) for line in lines if (found := re.search(r"(\d+) of \d+ tokens", line))]


def test_force_level(run, saved):
    lines = run("force_level.py")
    assert len(lines) == 5
    assert tokens(lines) == sorted(set(tokens(lines)))
    assert run("force_level.py", "--model", saved[0]) == lines


def test_budget_dial(run):
    lines = run("budget_dial.py")
    assert tokens(lines) == sorted(tokens(lines), reverse=True)
    assert re.search(r"weight \S+ spends \d+% on average", lines[-1])


def test_escalate(run):
    lines = run("escalate.py", "--rows", "30")
    assert lines[0].endswith("found on 30 questions")
    assert lines[1].startswith("level 0: ")


def test_custom_scaler(run):
    try:
        lines = run("custom_scaler.py")
    finally:
        tokenflex.registry.scalers._added.pop("standing-out", None)
    assert "StandingOut: 20 of 20 checks passed" in lines[0]
    assert len(tokens(lines)) == 5


def test_compare_scalers(run):
    rows = {
        line.split()[0]: [float(value) for value in line.split()[1:]]
        for line in run("compare_scalers.py", "--images", "1")
    }
    assert {"average-pool", "stride", "random"} <= set(rows)
    assert all(abs(row[-1]) < 1e-6 for row in rows.values())
    assert all(value >= -1e-6 for row in rows.values() for value in row)


def test_chat(run):
    lines = run("chat.py", "--turns", "w1 w2", "w3", "w4 w5")
    sizes = [int(re.search(r"\((\d+) tokens so far\)", line)[1]) for line in lines]
    assert len(sizes) == 3
    assert sizes == sorted(set(sizes))


def test_qwen_vl(run):
    lines = run("qwen_vl.py")
    assert tokens(lines) == sorted(tokens(lines))
    assert len(lines) == 6
    assert all("'size'" in line for line in lines[:-1])


def test_train_router(run):
    (line,) = run("train_router.py", "--out", "made", "--steps", "2")[-1:]
    assert line.startswith("made: 8 conversations, last loss ")
    assert tokenflex.load_parts("made", host=tiny_llava_next()).compressor.num_levels == 5


def test_custom_host(run):
    rows = [line.split() for line in run("custom_host.py")]
    assert [int(row[0]) for row in rows] == sorted({int(row[0]) for row in rows})
    assert int(rows[-1][0]) == 16


def test_serve_vllm(run, saved, monkeypatch):
    """With an engine that only looks at what it is given; tokenflex-vllm's tests run the real one."""
    seen = []

    class LLM:
        def __init__(self, model, enable_mm_embeds):
            assert enable_mm_embeds

        def generate(self, prompts, settings):
            seen.extend(prompts)
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text="so")]) for _ in prompts]

    engine = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "vllm", engine)
    lines = run("serve_vllm.py", "--model", saved[0], "--parts", saved[1])
    assert tokens(lines) == sorted(tokens(lines), reverse=True)
    assert len(seen) == len(lines) == 3
    assert all(torch.is_tensor(one) or one for one in seen)


def test_each_is_short_and_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    for path in sorted(FOLDER.glob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path.name
        assert path.name == "start.py" or f'"{path.name}"' in source, path.name
    assert all((FOLDER.parent / test).is_file() for test in OWN_TESTS.values())

"""The whole study on a tiny host: every stage, stopped in between, and what it leaves."""

import json
import runpy
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

import tokenflex
from tests.study.conftest import WORDS
from tokenflex.cli.main import main
from tokenflex.errors import ConfigError
from tokenflex.study import host, recipe, run, tower
from tokenflex.study.images import READING_KINDS, SCENE_KINDS
from tokenflex.study.recipe import StudyPlan
from tokenflex.testing.tiny_hosts import tiny_tokenizer

PLAN = StudyPlan().smaller(0.0)
PLAN = replace(PLAN, routing=replace(PLAN.routing, steps=2))
PLAN = replace(PLAN, tower_steps=1, rank=2, exam=5, calibration=10, risk=0.2, confidence=0.5)


def tiny(seed):
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(("What", "is", "the", "chart", "page", *"0123456789"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    made = tokenflex.compose(
        "timm/tf_efficientnet_lite0",
        LlamaForCausalLM(config),
        tokenizer=tokenizer,
        pretrained=False,
        image_size=192,
        layer=host.LAYERS,
    )
    made.model.language_model.to(torch.bfloat16)
    return made


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(host, "build", tiny)
    monkeypatch.setattr(host, "short_words", lambda tokenizer: list(WORDS))
    monkeypatch.setattr(tower, "BATCH", 5)


def test_everything_runs_and_is_kept(small, emoji, tmp_path, monkeypatch):
    stages, train = [], recipe.train

    def stopped(flex, processor, phase, *rest):
        if phase.stage.number == 3 and not stages.count(3):
            stages.append(3)
            raise KeyboardInterrupt
        stages.append(phase.stage.number)
        return train(flex, processor, phase, *rest)

    monkeypatch.setattr(recipe, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run(tmp_path / "out", emoji=emoji, plan=PLAN)
    result = run.run(tmp_path / "out", emoji=emoji, plan=PLAN)
    assert stages == [1, 2, 3, 3]
    assert result["seconds"].keys() == PLAN.seconds.keys()
    whole = run.run(tmp_path / "whole", emoji=emoji, plan=PLAN)
    assert result["evaluation"]["settings"] == whole["evaluation"]["settings"]
    assert set(result["evaluation"]["kinds"]) <= {*SCENE_KINDS, *READING_KINDS}
    assert sum(result["evaluation"]["kinds"].values()) == 2 * PLAN.exam
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == result
    assert set(result["others"]) == {"router_without_image", "router_without_question"}
    assert "| level:4 | 144.0 |" in (tmp_path / "out" / "study.md").read_text()
    assert not (tmp_path / "out" / "unfinished.safetensors").exists()
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "model")
    assert {parameter.dtype for parameter in saved.host.parameters()} == {torch.bfloat16}


def test_what_was_learned_goes_into_the_merged_host(small):
    made = tiny(0)
    settings = recipe.router_settings(PLAN)
    flex = recipe.model(host.with_lora(made.model, 2), settings, processor=made.processor)
    with torch.no_grad():
        for name, parameter in flex.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    learned = recipe.Learned(flex)
    state = learned.state_dict()
    assert any("lora_" in name for name in state)
    assert not any(".language_model." in name and "lora_" not in name for name in state)
    ids = torch.arange(5, 15).view(1, 10)
    with torch.no_grad():
        before = flex.host(input_ids=ids).logits.float()
        merged = learned.merge(made.processor)
        after = merged.host(input_ids=ids).logits.float()
        plain = tiny(0).model(input_ids=ids).logits.float()
    assert torch.allclose(before, after, atol=0.05)
    assert not torch.allclose(plain, after, atol=0.05)
    assert learned.state_dict().keys() == state.keys()


def test_state_of_another_model_is_refused(small):
    flex = recipe.model(host.with_lora(tiny(0).model, 2), recipe.router_settings(PLAN))
    with pytest.raises(KeyError, match="has no place"):
        recipe.Learned(flex).load_state_dict({"elsewhere.weight": torch.zeros(1)})


def test_emoji_that_cant_be_had_say_how(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"none\.tgz isn't there"):
        run.obtained(tmp_path, tmp_path / "none.tgz")

    def failing(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "npm", stderr="no network")

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(ConfigError, match=r"(?s)no network.*--emoji"):
        run.obtained(tmp_path, None)
    assert not [*tmp_path.iterdir()]


def test_emoji_are_got_once(tmp_path, monkeypatch):
    calls = []

    def packing(told, cwd, **kwargs):
        calls.append(told)
        (run.Path(cwd) / run.EMOJI_NAME).write_bytes(b"archive")

    monkeypatch.setattr(subprocess, "run", packing)
    assert run.obtained(tmp_path, None) == run.obtained(tmp_path, None) == tmp_path / run.EMOJI_NAME
    assert calls == [["npm", "pack", "--silent", "emoji-datasource-google@16.0.0"]]


def test_the_command(small, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(run, "run", lambda out, **told: asked.update(out=out, **told))
    assert main(["study", "--out", str(tmp_path), "--seed", "3", "--quick", "--emoji", "e.tgz"]) == 0
    assert (asked["out"], asked["seed"], asked["emoji"]) == (str(tmp_path), 3, "e.tgz")
    assert asked["plan"].phases[0].steps < StudyPlan().phases[0].steps
    assert asked["command"].startswith("tokenflex study")


def test_the_example(small, emoji, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "StudyPlan", lambda: replace(PLAN, rank=2))
    monkeypatch.setattr("sys.argv", ["study.py", str(emoji)])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "study.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[:5]] == ["drawing", "photo", "chart", "page", "sign"]
    assert [line for line in lines if line.endswith("done")] == [f"{phase.name} done" for phase in PLAN.phases]
    assert [line.endswith("of 144 tokens") for line in lines[-2:]] == [True, True]

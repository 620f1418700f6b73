"""``tokenflex train``: recipes are checked key by key, and every stage runs from one."""

import json
import re

import pytest
import torch
import transformers
import yaml

import tokenflex
from tests.conftest import image
from tests.training.conftest import turns
from tokenflex.cli.main import main
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import recipe, run


@pytest.fixture(scope="session")
def saved_host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    tiny_llava_next().save_pretrained(folder)
    tiny_llava_next_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def written(tmp_path, saved_host):
    """Write a recipe over two rows of LLaVA data; returns its path."""
    image(0).save(tmp_path / "0.png")
    talk = [{"from": "human", "value": "<image>\nw1"}, {"from": "gpt", "value": "w2 w3"}]
    rows = [{"id": i, "image": "0.png", "conversations": talk} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def write(**entries):
        base = {
            "stage": 4, "host": str(saved_host), "data": str(tmp_path / "rows.json"), "image_folder": str(tmp_path),
            "output_dir": str(tmp_path / "out"), "max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        }  # fmt: skip
        merged = {key: value for key, value in (base | entries).items() if value is not None}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(merged))
        return str(tmp_path / "recipe.yaml")

    return write


def test_a_recipe_runs_and_its_result_loads(written, tmp_path, capsys, left, saved_host):
    assert main(["train", written(router_config={"text_tokens": 3})]) == 0
    assert "Saved to" in capsys.readouterr().out
    host = tiny_llava_next()
    flex = tokenflex.load_parts(tmp_path / "out", host=host)
    assert flex.compressor.router.config.text_tokens == 3
    assert len(flex.decide(**left)) == 3
    again = {"host": str(saved_host), "parts": str(tmp_path / "out"), "output_dir": str(tmp_path / "more")}
    assert main(["train", written(**again), "--router_rate=0.5", "--warmup_steps", "0"]) == 0
    more = tokenflex.load_parts(tmp_path / "more", host=host).compressor.state_dict()
    assert any(not torch.equal(value, more[key]) for key, value in flex.compressor.state_dict().items())


def test_stage_three_saves_a_model_that_a_later_stage_takes_up(written, tmp_path):
    assert main(["train", written(stage=3)]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    settings, _ = recipe.read(written(host=str(tmp_path / "out")))
    flex, _ = run.load(settings)
    assert flex.compressor.num_levels == 5
    assert main(["train", written(host=str(tmp_path / "out"), output_dir=str(tmp_path / "four"))]) == 0


def test_where_parts_come_from_is_said(written, tmp_path, capsys):
    assert main(["train", written(stage=3, router_config={"text_tokens": 3})]) == 0
    assert "scaler: fresh average-pool\nrouter: fresh avg\nvoter: fresh position-weighted\n" in capsys.readouterr().out
    four = {"host": str(tmp_path / "out"), "output_dir": str(tmp_path / "four")}
    assert main(["train", written(**four)]) == 0
    assert f"router: from {tmp_path / 'out'}\n" in capsys.readouterr().out
    assert main(["train", written(**four, router_config={"text_tokens": 8})]) == 1
    assert "start anew with fresh: [router]" in capsys.readouterr().err
    assert main(["train", written(**four, router_config={"text_tokens": 8}, fresh=["router", "voter"])]) == 0
    assert f"scaler: from {tmp_path / 'out'}\nrouter: fresh avg\n" in capsys.readouterr().out
    spec = json.loads((tmp_path / "four" / "tokenflex.json").read_text())
    assert spec["parts"]["router"]["config"]["text_tokens"] == 8


def test_going_on_from_the_newest_checkpoint(written, tmp_path, capsys):
    saved = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True}
    assert main(["train", written(**saved, max_steps=2)]) == 0
    assert (
        f"{tmp_path / 'out'} holds no whole checkpoint, so training starts from the beginning"
        in capsys.readouterr().out
    )
    (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").write_text("{")
    assert main(["train", written(**saved), "--max_steps", "3", "--num_train_epochs=4"]) == 0
    assert "checkpoint-2 is passed over: it has no readable trainer_state.json" in capsys.readouterr().out
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    assert recipe.read(written(resume_from_checkpoint=False))[1].resume_from_checkpoint is None
    assert recipe.read(written(), ["--resume_from_checkpoint", "True"])[1].resume_from_checkpoint is True


def test_overrides_win(written):
    settings, arguments = recipe.read(written(margin=2.0), ["--margin", "0.5", "--max_steps=7"])
    assert settings.margin == 0.5
    assert arguments.max_steps == 7
    assert settings.preset().rates == {"router": 1e-3}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"marginn": 1}, "unknown key 'marginn'. Did you mean 'margin'"),
        ({"per_device_batch_size": 1}, "Did you mean 'per_device_"),
        ({"learning_rate": 1e-3}, "set vision_tower_rate, projector_rate"),
        ({"host": None}, "lacks host"),
        ({"stage": 7}, "invalid choice: '?7"),
        ({"margin": "wide"}, r"margin: 'wide' \(str\) isn't what the key takes: a finite number"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample"),
        ({"router": "avgg"}, "Did you mean 'avg'"),
        ({"router_config": {"depth": 3}}, r"unknown setting\(s\) \['depth'\]"),
        ({"data": "gone.json"}, "doesn't exist"),
        ({"projector_rate": -1.0}, "projector_rate: -1.0 must be a number, 0 or more"),
        ({"host": "no/such-host"}, "'no/such-host' can't be loaded"),
        ({"memory": "low"}, "memory: only for stage 3, and this is stage 4. Leave it out"),
        ({"stage": 3, "margin": 2.0, "guard": True}, "guard, margin: only for stage 4, and this is stage 3"),
        ({"do_predict": True}, "do_predict asks for evaluation, and a recipe has no data for that"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy, do_eval asks for evaluation"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end asks for evaluation"),
        ({"load_best_model_at_end": True, "save_strategy": "steps"}, "requires the save and eval strategy to match"),
        ({"fresh": ["policy"]}, "invalid choice: '?policy"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 doesn't work here: the stage's objective is"),
        ({"resume_from_checkpoint": "gone"}, "'gone' can't be gone on from: it is no folder here"),
    ],
)
def test_mistakes_are_named_in_one_message(written, capsys, entries, message):
    assert main(["train", written(**entries)]) == 1
    assert re.search(message, capsys.readouterr().err)


NO_ANSWER = [{"conversations": [{"from": "human", "value": "w1"}]}]
LONG = [
    {"conversations": [{"from": "human", "value": "<image>\nw1"}, {"from": "gpt", "value": "w2"}], "image": "0.png"}
]


@pytest.mark.parametrize("command", ["train", "feedback"])
@pytest.mark.parametrize(
    ("entries", "rows", "message"),
    [
        ({"data": "gone.json"}, None, "data 'gone.json' doesn't exist"),
        ({"image_folder": "gone"}, None, "image_folder 'gone' is no folder"),
        ({"parts": "gone"}, None, "gone"),
        ({}, [{**LONG[0], "image": "1.png"}], r"row 0: .*1\.png"),
        ({}, NO_ANSWER, "row 0 has no answer"),
        ({"max_length": 8}, LONG, "row 0: an image's placeholders reach beyond max_length=8"),
    ],
)
def test_paths_and_data_are_tried_before_a_host_is_loaded(
    written, capsys, tmp_path, monkeypatch, command, entries, rows, message
):
    monkeypatch.setattr(
        transformers.AutoModelForImageTextToText, "from_pretrained", lambda *a, **k: pytest.fail("the host is loaded")
    )
    path = written(feedback=str(tmp_path / "fb") if command == "feedback" else None, **entries)
    if rows is not None:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main([command, path]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n- b", "holds a list"), ("a: [", "isn't valid YAML"), (None, "doesn't exist")]
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        recipe.read(path)


def test_help_lists_every_key(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("--stage", "--router_rate", "--tolerance", "--on_bad_sample", "--num_train_epochs", "--bf16"):
        assert key in text
    assert "in nats per token" in " ".join(text.split())
    assert main(["train"]) == 2


def test_commands_refuse_what_they_do_not_know(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["quickstart", "--sead", "1"])
    assert "--sead" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"tokenflex {tokenflex.__version__}"


def test_rows_that_cannot_be_used_stop_the_run_with_their_name(written, tmp_path, capsys):
    path = written()
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    assert main(["train", path]) == 1
    assert "0.png" in capsys.readouterr().err
    rows = [{"messages": turns("w1", "w2")}, *json.loads((tmp_path / "rows.json").read_text())]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main(["train", path, "--on_bad_sample", "skip"]) == 0


def test_feedback_is_scored_and_trained_from(written, tmp_path, capsys, monkeypatch):
    """Score, then train with the host's tower alone, then without the host."""
    stored = {"feedback": str(tmp_path / "store")}
    assert main(["feedback", written(**stored)]) == 0
    assert "2 samples scored at 5 levels, 0 of them without an answer" in capsys.readouterr().out
    assert main(["train", written(**stored)]) == 0
    cached = {"feedback": str(tmp_path / "cached")}
    assert main(["feedback", written(**cached), "--levels-cache"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"router inputs: about 0\.00 GiB for 2 samples \(0\.\d\d MiB each\); [\d.]+ GiB are free", said)
    monkeypatch.setattr(run, "load", lambda *args: pytest.fail("the host was loaded"))
    assert main(["train", written(**cached, output_dir=str(tmp_path / "alone")), "--margin", "0.5", "--seed", "3"]) == 0
    assert f"data: from {tmp_path / 'cached'}, 2 rows" in capsys.readouterr().out
    assert (tmp_path / "alone" / "processor_config.json").exists()
    assert sorted(p.name for p in (tmp_path / "alone").glob("tokenflex.*")) == [
        "tokenflex.json",
        "tokenflex.safetensors",
    ]
    assert main(["train", written(**cached, parts=str(tmp_path / "alone"), output_dir=str(tmp_path / "on"))]) == 0


@pytest.mark.parametrize(
    ("command", "entries", "message"),
    [
        ("feedback", {}, "names no folder for the feedback. Add e.g. 'feedback: runs/feedback'"),
        ("train", {"feedback": "gone"}, "gone has no manifest.json, so no feedback"),
        ("train", {"feedback": "gone", "stage": 3}, "feedback='gone' is for stage 4, and this is stage 3"),
        ("train", {"memory": "tiny"}, "argument --memory: invalid choice: 'tiny'"),
        ("train", {"levels": "two"}, "argument --levels: invalid choice: 'two'"),
        ("feedback", {"part_size": 0, "feedback": "new"}, "part_size: 0 must be 1 or more"),
    ],
)
def test_mistakes_about_feedback(written, capsys, command, entries, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([command, written(**entries)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_feedback_help(capsys):
    assert main(["feedback", "--help"]) == 0
    assert "--levels-cache" in capsys.readouterr().out

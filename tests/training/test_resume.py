"""Training goes on from the newest whole checkpoint, and never from one whose writing was interrupted."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.conftest import ROWS
from tokenflex.errors import ConfigError
from tokenflex.training import ChatDataset, FlexTrainer, RGLFTrainer
from tokenflex.training.resume import checkpoint_to_resume, fault


@pytest.fixture(scope="module", params=[1, 4])
def written(request, tmp_path_factory):
    """A run of two checkpoints, whole or of the parts only."""
    import tokenflex
    from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
    from tokenflex.training import FlexCollator, FlexTrainingArguments

    folder = tmp_path_factory.mktemp("run")
    args = FlexTrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=2, per_device_train_batch_size=1, save_strategy="steps",
        save_steps=1, logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    collator = FlexCollator(tiny_llava_next_processor())
    flex = tokenflex.wrap(tiny_llava_next()).train()
    FlexTrainer(flex, args, stage=request.param, train_dataset=ChatDataset(ROWS), data_collator=collator).train()
    return folder


@pytest.fixture
def runs(written, tmp_path):
    return shutil.copytree(written, tmp_path / "runs")


def weights_of(folder):
    return next(folder.glob("*.safetensors"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


DAMAGE = {
    "no state": (lambda folder: (folder / "trainer_state.json").unlink(), "no readable trainer_state.json"),
    "half a state": (lambda folder: cut(folder / "trainer_state.json"), "no readable trainer_state.json"),
    "no weights": (lambda folder: weights_of(folder).unlink(), "holds no weights|has no tokenflex.safetensors"),
    "half the weights": (lambda folder: cut(weights_of(folder)), "safetensors can't be read"),
    "no optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "no optimizer state, which save_only_model"),
    "half an optimizer": (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt is cut short"),
    "no schedule": (lambda folder: (folder / "scheduler.pt").unlink(), "lacks scheduler.pt"),
    "half a generator": (lambda folder: cut(folder / "rng_state.pth"), "rng_state.pth is cut short"),
    "unfinished": (lambda folder: (folder / "checkpoint-is-incomplete.txt").touch(), "its writing was interrupted"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(runs, name):
    damage, message = DAMAGE[name]
    newest, older = runs / "checkpoint-2", runs / "checkpoint-1"
    assert fault(newest) is None
    assert checkpoint_to_resume(runs, True, pytest.fail) == str(newest)
    damage(newest)
    said = []
    assert checkpoint_to_resume(runs, True, said.append) == str(older)
    assert len(said) == 1
    with pytest.raises(ConfigError, match=f"checkpoint-2' can't be gone on from: .*({message})"):
        checkpoint_to_resume(runs, str(newest), pytest.fail)
    assert checkpoint_to_resume(runs, str(older), pytest.fail) == str(older)


def test_steps_are_numbers(runs):
    shutil.copytree(runs / "checkpoint-2", runs / "checkpoint-10")
    shutil.copytree(runs / "checkpoint-2", runs / "checkpoint-99-old")
    assert checkpoint_to_resume(runs, True, pytest.fail) == str(runs / "checkpoint-10")


def test_without_any_training_starts_from_the_beginning(tmp_path):
    for folder in (tmp_path, tmp_path / "not-made-yet"):
        said = []
        assert checkpoint_to_resume(folder, True, said.append) is None
        assert said == [f"{folder} holds no whole checkpoint, so training starts from the beginning"]
    assert (
        checkpoint_to_resume(tmp_path, None, pytest.fail) is checkpoint_to_resume(tmp_path, False, pytest.fail) is None
    )
    with pytest.raises(ConfigError, match="gone' can't be gone on from: it is no folder here"):
        checkpoint_to_resume(tmp_path, str(tmp_path / "gone"), pytest.fail)


@pytest.mark.parametrize("written", [1], indirect=True)
def test_every_shard_counts(runs):
    folder = runs / "checkpoint-2"
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for file, mine in shards.items():
        save_file({name: state[name] for name in mine}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, mine in shards.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fault(folder) is None
    (folder / "two.safetensors").unlink()
    assert fault(folder) == "two.safetensors is missing"
    index["weight_map"][names[0]] = "../outside.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "isn't the bare name of a file" in fault(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert fault(folder) == "model.safetensors.index.json can't be read"


def test_checkpoints_of_engines(tmp_path):
    """As FSDP2 and DeepSpeed write them."""
    state = json.dumps({"global_step": 1})
    sharded, zero = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for folder, names in ((sharded, ["pytorch_model_fsdp_0", "optimizer_0"]), (zero, ["global_step1"])):
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / ".metadata").touch()
        (folder / "trainer_state.json").write_text(state)
    torch.save({}, sharded / "scheduler.pt")
    (zero / "latest").write_text("global_step1")
    assert fault(sharded) is fault(zero) is None
    (sharded / "pytorch_model_fsdp_0" / ".metadata").unlink()
    shutil.rmtree(zero / "global_step1")
    assert fault(sharded) == "it holds no weights"
    assert fault(zero) == "it lacks the folder 'global_step1' that its 'latest' names"


def test_a_trainer_goes_on_from_the_newest(fresh, arguments, collator, tmp_path, caplog):
    def trainer(steps, folder="o"):
        settings = {"output_dir": str(tmp_path / folder), "max_steps": steps, "save_strategy": "steps", "save_steps": 1}
        return RGLFTrainer(fresh(), arguments(**settings), train_dataset=ChatDataset(ROWS), data_collator=collator)

    with caplog.at_level(logging.WARNING):
        trainer(2).train(resume_from_checkpoint=True)
    assert "holds no whole checkpoint, so training starts from the beginning" in caplog.text
    cut(tmp_path / "o" / "checkpoint-2" / "optimizer.pt")
    again = trainer(3)
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-2 is passed over: optimizer.pt is cut short" in caplog.text
    assert again.state.global_step == 3
    whole = trainer(3, "w")
    whole.train()
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[name]), name

"""Stages train exactly their parameters, and a run that was stopped goes on as if it hadn't been."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tokenflex
from tests.hosts.snapshots import require_same, snapshot
from tests.training.conftest import ROWS, Forgetful
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.training import (
    STAGES,
    ChatDataset,
    FlexCollator,
    FlexTrainer,
    MultiGranularityTrainer,
    RGLFTrainer,
    RouterModel,
    score,
)
from tokenflex.training.stages import parameter_groups, select

PROJECTOR = "multi_modal_projector"
TRAINED = {
    1: {"projector"},
    2: {"vision_tower", "projector", "language_model"},
    3: {"vision_tower", "projector", "language_model"},
    4: {"router"},
}


def trainer_for(flex, arguments, collator, stage, cls=FlexTrainer, rows=ROWS, **others):
    return cls(flex, arguments, stage=stage, train_dataset=ChatDataset(rows), data_collator=collator, **others)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_stage_trains_exactly_its_parameters(fresh, arguments, collator, stage):
    flex = fresh()
    before = {name: p.detach().clone() for name, p in flex.named_parameters()}
    trainer = trainer_for(flex, arguments(max_steps=3, warmup_steps=0.0), collator, stage)
    groups = parameter_groups(flex)
    for group, parameters in groups.items():
        assert all(p.requires_grad == (group in TRAINED[stage]) for p in parameters)
    trainer.train()
    names = {id(p): name for name, p in flex.named_parameters()}
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(names)
    for group, parameters in groups.items():
        changed = [names[id(p)] for p in parameters if not torch.equal(p, before[names[id(p)]])]
        assert bool(changed) == (group in TRAINED[stage]), group


def test_training_the_parts_leaves_the_host_as_it_was(fresh, arguments, collator):
    """Bit for bit, modes and other flags included; also when it is trained twice."""
    flex = fresh()
    flex.host.eval()
    flex.host.model.vision_tower.requires_grad_(False)
    flex.host.model.multi_modal_projector.train()
    before, settings = snapshot(flex.host), flex.host.config.to_dict()
    trainer = trainer_for(flex, arguments(warmup_steps=0.0), collator, 4)
    for _ in range(2):
        trainer.train()
        require_same(before, snapshot(flex.host), but=("hooks", "marks"))  # transformers installs its recording hooks
        assert flex.host.config.to_dict() == settings


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_gradients_reach_every_trained_parameter(fresh, training_batch, arguments, collator, stage):
    flex = fresh(router=tokenflex.routers.get("avg").Config(dropout=0.0))
    trainer = trainer_for(flex, arguments(), collator, stage)
    trainer.compute_loss(flex, training_batch).backward()
    groups = parameter_groups(flex)
    unused = {id(p) for p in unused_parameters(flex)}
    for group, parameters in groups.items():
        for parameter in parameters:
            if id(parameter) in unused:
                continue
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            assert reached == (group in TRAINED[stage])


class NormedOverBatches(torch.nn.Module):
    """A layer normalisation with a batch normalisation behind it."""

    def __init__(self, first):
        super().__init__()
        self.first, self.second = first, torch.nn.BatchNorm1d(first.weight.shape[0])

    def forward(self, hidden):
        return self.second(self.first(hidden).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("stage", [1, 2, 4])
def test_statistics_of_what_is_frozen_stay(fresh, arguments, collator, stage):
    """A tower with batch normalisation gives the features of evaluation, unless it is trained."""
    flex = fresh()
    tower = next(m for m in flex.host.modules() if hasattr(m, "pre_layrnorm"))
    tower.pre_layrnorm = NormedOverBatches(tower.pre_layrnorm)
    norm = tower.pre_layrnorm.second
    trainer_for(flex, arguments(max_steps=2, warmup_steps=0.0), collator, stage).train()
    assert bool(norm.num_batches_tracked == 0) == ("vision_tower" not in TRAINED[stage])
    assert torch.equal(norm.running_var, torch.ones_like(norm.running_var)) == ("vision_tower" not in TRAINED[stage])


def unused_parameters(flex):
    """The tower's last layers, which `vision_feature_layer` = -2 skips, and rows without words get no image."""
    tower = flex.host.model.vision_tower
    yield from tower.post_layernorm.parameters()
    yield from tower.encoder.layers[-1].parameters()
    for name, parameter in tower.named_parameters():
        if name.endswith("k_proj.bias"):
            yield parameter
    for name, parameter in flex.named_parameters():
        if name.endswith("k_proj.bias"):
            yield parameter


def test_rates_and_groups(fresh, arguments, collator):
    stage = STAGES[3].with_rates(vision_tower=0.0, projector=3e-4)
    trainer = trainer_for(fresh(), arguments(), collator, stage)
    optimizer = trainer.create_optimizer()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [1e-5, 3e-4]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert trainer.args.learning_rate == 3e-4


def test_published_presets():
    assert {n: (s.loss, dict(s.rates), s.global_batch) for n, s in STAGES.items()} == {
        1: ("language", {"projector": 1e-3}, 256),
        2: ("language", {"vision_tower": 2e-6, "projector": 2e-5, "language_model": 2e-5}, 128),
        3: (
            "multi-granularity",
            {"vision_tower": 2e-5, "projector": 1e-5, "language_model": 1e-5, "scaler": 1e-5},
            128,
        ),
        4: ("rglf", {"router": 1e-3}, 128),
    }


def test_bad_stages_are_refused(fresh, arguments, collator):
    with pytest.raises(ConfigError, match=r"stage 5 doesn't exist; choose from \[1, 2, 3, 4\]"):
        trainer_for(fresh(), arguments(), collator, 5)
    with pytest.raises(ConfigError, match="groups are vision_tower"):
        STAGES[1].with_rates(tower=1e-3)
    with pytest.raises(ConfigError, match="rates are >= 0"):
        STAGES[1].with_rates(projector=-1.0)
    with pytest.raises(ConfigError, match="stage 4 trains router, and this model has no trainable"):
        select(fresh(router="constant", voter="mean"), STAGES[4])


def state_after(trainer, **options):
    trainer.train(**options)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("stage", [3, 4])
def test_resuming_is_bit_exact(fresh, arguments, collator, tmp_path, stage):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "warmup_steps": 0.0, "seed": 3}
    rates = {3: {}, 4: {}}[stage]
    chosen = STAGES[stage].with_rates(**rates)
    rows = ROWS * 3
    whole = arguments(**settings, output_dir=str(tmp_path / "whole"))
    expected = state_after(trainer_for(fresh(), whole, collator, chosen, rows=rows))
    stopped = arguments(**settings, output_dir=str(tmp_path / "stopped"))
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    state_after(trainer_for(fresh(), stopped, collator, chosen, rows=rows, callbacks=[Stop()]))
    checkpoint = tmp_path / "stopped" / "checkpoint-2"
    assert (checkpoint / "tokenflex.json").exists() == (stage == 4)
    assert (checkpoint / "model.safetensors").exists() == (stage == 3)
    again = trainer_for(fresh(), stopped, collator, chosen, rows=rows)
    found = state_after(again, resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 4
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_samples_without_answers_are_counted(fresh, arguments, processor):
    flex = fresh()
    trainer = trainer_for(flex, arguments(max_steps=2, logging_strategy="steps", logging_steps=1),
                          Forgetful(processor), 3)  # fmt: skip
    trainer.train()
    assert trainer.samples_without_answers == 1
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["loss"] == entry["loss"] for entry in logged)
    assert logged[-1]["samples_without_answers"] == 1.0


def test_accumulation_equals_one_big_batch(fresh, arguments, collator):
    """The loss is a mean over all answer tokens of a step, however the step is cut into batches."""
    results = []
    for size, accumulate in ((4, 1), (1, 4)):
        settings = {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
        flex = fresh()
        trainer = trainer_for(
            flex, arguments(**settings, warmup_steps=0.0, optim="sgd", max_grad_norm=0.0), collator,
            STAGES[2].with_rates(vision_tower=1e-2, projector=1e-2, language_model=1e-2),
        )  # fmt: skip
        results.append(state_after(trainer))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("source", ["live", "feedback", "alone"])
def test_a_step_of_stage_four_is_a_mean_over_all_its_images(fresh, arguments, processor, tmp_path, source, guard):
    """However it is cut: a row without an image, one with two, and with ``guard`` one without an answer."""
    collator = Forgetful(processor) if guard else FlexCollator(processor)
    config = tokenflex.routers.get("avg").Config(dropout=0.0)
    given = {"train_dataset": ChatDataset(ROWS), "data_collator": collator, "guard": guard}
    if source != "live":
        store = score(fresh(), ChatDataset(ROWS), collator, tmp_path / "s", router_inputs="auto", progress=False)
        given = {"feedback": store, "guard": guard} | (given if source == "feedback" else {})
    results, losses = [], []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        flex = fresh(router=config) if source != "alone" else RouterModel.from_store(store, router=config)
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate, "logging_steps": 1}
        plain = {"warmup_steps": 0.0, "optim": "sgd", "max_grad_norm": 0.0, "logging_strategy": "steps"}
        trainer = RGLFTrainer(flex, arguments(max_steps=1, **cut, **plain), **given)
        results.append(state_after(trainer))
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, msg=name, rtol=1e-5, atol=1e-6)


def test_a_step_is_a_mean_over_its_tokens_whatever_the_hosts_own_loss_takes(fresh, arguments, collator):
    results = []
    for size, accumulate in ((4, 1), (1, 4)):
        flex = fresh()
        flex.accepts_loss_kwargs = False
        cut = {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
        plain = {"warmup_steps": 0.0, "optim": "sgd", "max_grad_norm": 0.0}
        stage = STAGES[2].with_rates(vision_tower=1e-2, projector=1e-2, language_model=1e-2)
        results.append(state_after(trainer_for(flex, arguments(**cut, **plain), collator, stage)))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


def test_named_trainers(fresh, arguments, training_batch):
    for cls, stage in ((MultiGranularityTrainer, 3), (RGLFTrainer, 4)):
        trainer = cls(fresh(), arguments())
        assert trainer.stage.number == stage
        assert bool(trainer.compute_loss(trainer.model, training_batch).isfinite())
    assert RGLFTrainer(fresh(), arguments(), margin=0.5).objective.margin == 0.5


def test_evaluation_reports_the_objective(fresh, arguments, collator):
    trainer = trainer_for(fresh(), arguments(), collator, 3, eval_dataset=ChatDataset(ROWS))
    assert trainer.evaluate()["eval_loss"] > 0


def test_lora_is_trained_inside_a_wrapped_host(arguments, collator):
    lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    torch.manual_seed(0)
    flex = tokenflex.wrap(get_peft_model(tiny_llava_next(), lora)).train()
    stage = STAGES[3].with_rates(vision_tower=0.0, projector=0.0, language_model=1e-2)
    trainer = trainer_for(flex, arguments(warmup_steps=0.0), collator, stage)
    before = {name: p.detach().clone() for name, p in flex.named_parameters()}
    trainer.train()
    changed = {name for name, p in flex.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_adapters_are_trained_after_a_stage_without_them(arguments, collator):
    """A stage that freezes the language model says nothing about the next one; what PEFT froze stays frozen."""
    host = get_peft_model(tiny_llava_next(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[PROJECTOR]))
    flex = tokenflex.wrap(host)
    for stage, adapters in ((1, False), (2, True), (1, False), (4, False), (3, True)):
        select(flex, STAGES[stage])
        trained = {name for name, parameter in flex.host.named_parameters() if parameter.requires_grad}
        assert any("lora_" in name for name in trained) == adapters, stage
        assert any(f"{PROJECTOR}.modules_to_save" in name for name in trained) == (stage != 4)
        assert not any("lora_" not in name and "modules_to_save" not in name for name in trained)


def test_training_teaches(fresh, arguments, collator):
    """A few steps on four rows lower the loss they minimise."""
    flex = fresh()
    stage = STAGES[2].with_rates(vision_tower=1e-3, projector=1e-2, language_model=1e-2)
    trainer = trainer_for(flex, arguments(max_steps=12, per_device_train_batch_size=4), collator, stage)
    batch = collator([ChatDataset(ROWS)[i] for i in range(4)])
    before = trainer.compute_loss(flex, dict(batch)).item()
    trainer.train()
    assert trainer.compute_loss(flex, dict(batch)).item() < 0.5 * before


def test_gathered_parts_are_what_is_saved(fresh, arguments, tmp_path):
    """Where parameters are sharded, the state comes from all processes, and the model's own isn't whole."""
    flex = fresh()
    trainer = RGLFTrainer(flex, arguments())
    gathered = {name: value + 1 for name, value in flex.state_dict().items() if value.is_floating_point()}
    trainer._save(str(tmp_path), state_dict=gathered)
    loaded = tokenflex.load_parts(tmp_path, host=tiny_llava_next()).compressor.state_dict()
    assert loaded
    for name, value in loaded.items():
        assert torch.equal(value, flex.compressor.state_dict()[name] + 1)
    trainer.save_parts(tmp_path / "whole")
    again = tokenflex.load_parts(tmp_path / "whole", host=tiny_llava_next()).compressor.state_dict()
    assert all(torch.equal(value, flex.compressor.state_dict()[name]) for name, value in again.items())

"""Whatever ``Trainer`` takes works with these trainers, or is refused, by name, when the trainer is made."""

import dataclasses
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import tokenflex
from tests.training.conftest import ROWS, turns
from tokenflex import checkpoint
from tokenflex.errors import ConfigError
from tokenflex.training import (
    ChatDataset,
    ChatStream,
    FeedbackStore,
    FlexTrainer,
    FlexTrainingArguments,
    RGLFTrainer,
    RouterModel,
    score,
)
from tokenflex.training.router_only import StoredRows

checkpoints = pytest.mark.skipif(
    not hasattr(TrainingArguments, "activation_checkpointing"),
    reason="this transformers has no setting activation_checkpointing",
)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def store(fresh, collator, tmp_path):
    return score(fresh(), ChatDataset(ROWS), collator, tmp_path / "store", router_inputs="auto", progress=False)


@pytest.fixture
def made(fresh, arguments, collator, tmp_path):
    """A trainer of each kind: a stage with its host, or a router alone."""

    def make(kind, settings=None, **others):
        args = arguments(**(settings or {}))
        if kind == "alone":
            folder = tmp_path / "store"
            score(fresh(), ChatDataset(ROWS), collator, folder, router_inputs="auto", progress=False)
            store = FeedbackStore(folder)
            return RGLFTrainer(RouterModel.from_store(store), args, feedback=store, **{"eval_dataset": store} | others)
        data = {"train_dataset": ChatDataset(ROWS), "data_collator": collator, "eval_dataset": ChatDataset(ROWS)}
        return FlexTrainer(fresh(), args, stage=kind, **(data | others))

    return make


WORKS = {
    "evaluation": EVALUATED
    | {
        "eval_on_start": True,
        "eval_accumulation_steps": 1,
        "eval_do_concat_batches": False,
        "eval_use_gather_object": True,
    }
    | {"lr_scheduler_type": "reduce_lr_on_plateau", "average_tokens_across_devices": False},
    "numbers": {"bf16": True, "bf16_full_eval": True, "debug": "underflow_overflow", "torch_empty_cache_steps": 1},
    "order": {"train_sampling_strategy": "sequential", "full_determinism": True, "optim": "adafactor"}
    | {"accelerator_config": {"split_batches": True}},
}


@pytest.mark.parametrize("kind", [3, "alone"])
@pytest.mark.parametrize("name", WORKS)
def test_works(made, kind, name):
    trainer = made(kind, WORKS[name])
    before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    try:
        trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)
    after = [p for p in trainer.model.parameters() if p.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adagrad", "rmsprop", "sgd"])
def test_optimizers_get_a_rate_per_group(made, optim):
    optimizer = made(3, {"optim": optim}).create_optimizer()
    assert {group["lr"] for group in optimizer.param_groups} == {2e-5, 1e-5}


@checkpoints
def test_activations_are_recomputed_and_tokens_counted(made):
    trainer = made(3, {"activation_checkpointing": True, "include_num_input_tokens_seen": "non_padding"})
    trainer.train()
    assert trainer.model.is_activation_checkpointing
    assert trainer.state.num_input_tokens_seen > 0


REFUSED = {
    "prediction_loss_only": False,
    "include_for_metrics": ["loss"],
    "label_names": ["targets"],
    "label_smoothing_factor": 0.1,
    "remove_unused_columns": True,
    "neftune_noise_alpha": 5.0,
    "torch_compile": True,
    "use_cache": True,
    "learning_rate": 3e-4,
    "batch_eval_metrics": True,
    "use_liger_kernel": True,
}


@pytest.mark.parametrize("kind", [1, "alone"])
@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_would_do_nothing_are_refused(made, arguments, kind, name):
    settings = {} if name in ("torch_compile", "use_liger_kernel") else {name: REFUSED[name]}
    with pytest.MonkeyPatch.context() as patch:
        if not settings:  # as set, without what TrainingArguments itself does then
            patch.setattr(TrainingArguments, name, REFUSED[name], raising=False)
            init = TrainingArguments.__post_init__
            patch.setattr(TrainingArguments, "__post_init__", lambda self: (init(self), setattr(self, name, True))[0])
        with pytest.raises(ConfigError, match=name):
            made(kind, settings)


@pytest.mark.parametrize("kind", [1, "alone"])
@pytest.mark.parametrize(
    "name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func", "model_init"]
)
def test_functions_that_would_never_be_called_are_refused(made, kind, name):
    with pytest.raises(ConfigError, match=f"{name} would never be called here"):
        made(kind, **{name: lambda *args: {}})


@pytest.mark.parametrize("optim", ["lomo", "galore_adamw", "apollo_adamw_layerwise"])
def test_optimizers_that_choose_parameters_are_refused(made, optim):
    with pytest.raises(ConfigError, match=f"optim='{optim}' chooses parameters"):
        made(3, {"optim": optim})
    with pytest.raises(ConfigError, match=r"no class of torch\.optim\.Optimizer"):
        made(3, optimizer_cls_and_kwargs=(lambda: None, {}))


@pytest.mark.parametrize(
    ("settings", "others", "message"),
    [
        ({"eval_strategy": "steps", "eval_steps": 1}, {"eval_dataset": None}, "there is no eval_dataset"),
        ({"eval_on_start": True}, {"eval_dataset": None}, "there is no eval_dataset"),
        (EVALUATED | {"metric_for_best_model": "accuracy"}, {}, "'accuracy' is nothing that.* use one of eval_loss"),
        ({"train_sampling_strategy": "group_by_length"}, {}, "'group_by_length' needs every row's length"),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches cuts batches"),
        ({}, {"data_collator": None}, r"pass data_collator=FlexCollator\(processor\)"),
    ],
)
def test_what_would_end_the_run_later_is_refused(made, settings, others, message):
    with pytest.raises(ConfigError, match=message):
        made(3, settings, **others)


def test_sets_of_several_names_have_a_best_metric_each(made):
    sets = {"one": ChatDataset(ROWS), "two": ChatDataset(ROWS[:2])}
    best = EVALUATED | {"load_best_model_at_end": True}
    with pytest.raises(ConfigError, match="use one of eval_one_loss, eval_two_loss"):
        made(4, best, eval_dataset=sets)
    trainer = made(4, best | {"metric_for_best_model": "two_loss"}, eval_dataset=sets)
    trainer.train()
    assert trainer.state.best_metric == min(
        e["eval_two_loss"] for e in trainer.state.log_history if "eval_two_loss" in e
    )


def test_rows_are_not_cut_apart(fresh, arguments):
    args = arguments()
    args.parallelism_config = SimpleNamespace(tp_size=1, cp_size=2, sp_size=1)
    with pytest.raises(ConfigError, match="parallelism_config with tp_size=1, cp_size=2, sp_size=1 would cut rows"):
        FlexTrainer(fresh(), args, stage=3)


def test_pushing_parts(made):
    with pytest.raises(ConfigError, match="push_to_hub=True doesn't work here: checkpoints hold the parts only"):
        made(4, {"push_to_hub": True})


@pytest.mark.parametrize(
    "name", [pytest.param("activation_checkpointing", marks=checkpoints), "include_num_input_tokens_seen"]
)
def test_a_router_alone_has_no_host_for(made, name):
    with pytest.raises(ConfigError, match=f"{name}=.*a RouterModel has no host"):
        made("alone", {name: True})


def test_data_of_a_router_alone(made, arguments, store, fresh, collator):
    with pytest.raises(ConfigError, match="no host to encode a ChatDataset with"):
        made("alone", eval_dataset=ChatDataset(ROWS))
    with pytest.raises(ConfigError, match="no train_dataset and no data_collator"):
        RGLFTrainer(RouterModel.from_store(store), arguments(), feedback=store, data_collator=collator)
    with pytest.raises(ConfigError, match="pass the train_dataset and data_collator it is of"):
        RGLFTrainer(fresh(), arguments(), feedback=store)
    both = made("alone", eval_dataset={"one": store, "two": StoredRows(store)}).evaluate()
    assert both["eval_one_loss"] == both["eval_two_loss"] > 0


def test_plain_arguments_are_refused_and_ours_are_not_changed(fresh, arguments, tmp_path):
    with pytest.raises(ConfigError, match="Leave it as FlexTrainingArguments has it"):
        FlexTrainer(fresh(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), stage=3)  # pyright: ignore
    args = arguments()
    before = dataclasses.asdict(args)
    for stage, rate in ((1, 1e-3), (3, 2e-5)):
        assert FlexTrainer(fresh(), args, stage=stage).args.learning_rate == rate
    assert dataclasses.asdict(args) == before


def test_an_optimizer_class_is_used_at_the_stages_rates(made):
    trainer = made(3, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 7.0, "momentum": 0.5}))
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert {(group["lr"], group["momentum"]) for group in optimizer.param_groups} == {(2e-5, 0.5), (1e-5, 0.5)}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in trainer.model.parameters() if p.requires_grad}


def test_decay_spares_biases_and_norms(made):
    trainer = made(3, {"weight_decay": 0.1})
    optimizer = trainer.create_optimizer()
    told = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert told == {(2e-5, 0.1), (2e-5, 0.0), (1e-5, 0.1), (1e-5, 0.0)}
    names = {p: name for name, p in trainer.model.named_parameters()}
    for group in optimizer.param_groups:
        spared = ["bias" in names[p] or "norm" in names[p] for p in group["params"]]
        assert not any(spared) if group["weight_decay"] else all(spared)


def test_an_optimizer_of_ones_own_is_used_as_it_is(fresh, arguments, collator):
    flex = fresh()
    own = torch.optim.SGD(flex.compressor.router.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda step: 1.0)
    trainer = RGLFTrainer(flex, arguments(), train_dataset=ChatDataset(ROWS), data_collator=collator,
                          optimizers=(own, schedule))  # fmt: skip
    voter = [p.detach().clone() for p in flex.compressor.voter.parameters()]
    router = [p.detach().clone() for p in flex.compressor.router.parameters()]
    trainer.train()
    assert [group["lr"] for group in own.param_groups] == [0.5]
    assert all(torch.equal(p, q) for p, q in zip(flex.compressor.voter.parameters(), voter, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(flex.compressor.router.parameters(), router, strict=True))


@pytest.mark.parametrize(("kind", "only_model"), [(3, True), (4, True), (4, False), ("alone", False)])
def test_the_best_weights_are_kept(made, kind, only_model):
    """Not the last: the best is made to be the step of highest loss, as losses fall."""
    best = {"load_best_model_at_end": True, "greater_is_better": True, "save_only_model": only_model}
    held = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            held[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}

    trainer = made(kind, EVALUATED | best | {"warmup_steps": 0.0, "seed": 1}, callbacks=[Watch()])
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert any(not torch.equal(value, held[2][name]) for name, value in held[1].items())
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, held[1][name]), name


def test_a_batch_size_that_fits_is_found(made, monkeypatch):
    trainer = made(3, {"auto_find_batch_size": True, "per_device_train_batch_size": 4, "max_steps": 3})
    sizes, compute = [], trainer.compute_loss

    def scarce(model, inputs, *args, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if model.training and sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", scarce)
    trainer.train()
    assert sizes[0] == 4
    assert sizes[-3:] == [1, 1, 1]
    assert trainer.state.global_step == 3


def test_the_processor_is_saved_with_parts(made, processor, tmp_path):
    made(4, {"output_dir": str(tmp_path / "o")}, processing_class=processor).save_model()
    assert (tmp_path / "o" / "processor_config.json").exists()


def test_checkpoints_of_other_parts_are_refused(fresh, arguments, collator, tmp_path):
    config = tokenflex.routers.get("avg").Config
    fresh(router=config(text_tokens=3)).save_parts(tmp_path / "other")
    trainer = RGLFTrainer(fresh(), arguments(), train_dataset=ChatDataset(ROWS), data_collator=collator)
    with pytest.raises(ConfigError, match=r"holds the router .*text_tokens=3.* and this run trains"):
        trainer._load_from_checkpoint(str(tmp_path / "other"))


def test_sharded_parameters_are_read_from_the_engines_files(fresh, arguments, tmp_path, monkeypatch):
    trainer, seen = RGLFTrainer(fresh(), arguments()), []
    trainer.save_parts(tmp_path)
    trainer.is_fsdp_enabled = True
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda self, folder, model=None: seen.append(folder))
    monkeypatch.setattr(checkpoint, "load", lambda folder: pytest.fail("plain tensors don't go into shards"))
    trainer._load_from_checkpoint(str(tmp_path))
    assert seen == [str(tmp_path)]


class Plain(Dataset):
    """Rows that are batches already, with their lengths."""

    column_names = ("length",)

    def __len__(self):
        return 1

    def __getitem__(self, name):
        return [1]


def test_rows_with_lengths_may_be_grouped(made):
    assert made(3, {"train_sampling_strategy": "group_by_length"}, train_dataset=Plain()).train_dataset.column_names


def test_a_refusal_leaves_the_model_as_it_was(fresh, arguments):
    flex = fresh()
    wanted = [p.requires_grad for p in flex.parameters()]
    with pytest.raises(ConfigError, match="label_smoothing_factor"):
        RGLFTrainer(flex, arguments(label_smoothing_factor=0.1))
    assert [p.requires_grad for p in flex.parameters()] == wanted


def test_early_stopping(made):
    """Works with evaluations to compare, and is refused without."""
    with pytest.raises(ConfigError, match="EarlyStoppingCallback compares evaluations; set eval_strategy"):
        made(4, callbacks=[EarlyStoppingCallback()])
    best = EVALUATED | {"load_best_model_at_end": True, "max_steps": 4, "warmup_steps": 0}
    trainer = made(4, best, callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=1e9)])
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("settings", "others", "message"),
    [
        ({"report_to": "nowhere"}, {}, "nowhere"),
        ({}, {"optimizers": (None, None), "optimizer_cls_and_kwargs": (torch.optim.SGD, {}), "unknown": 1}, "unknown"),
        ({}, {"data_collator": 7}, "data_collator is a int, which can't be called"),
        ({}, {"train_dataset": {"train": [], "test": []}}, "train_dataset has splits, train, test"),
        (
            {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
            {"processing_class": 3, "what": 1},
            "what",
        ),
    ],
)
def test_what_trainer_refuses_is_our_error(made, settings, others, message):
    with pytest.raises(ConfigError, match=message):
        made(3, settings, **others)


def test_what_trainer_refuses_leaves_the_model_as_it_was(fresh, arguments):
    flex = fresh()
    wanted = [p.requires_grad for p in flex.parameters()]
    with pytest.raises(ConfigError, match="transformers' Trainer refuses its arguments"):
        FlexTrainer(flex, arguments(), stage=1, unknown=True)
    assert [p.requires_grad for p in flex.parameters()] == wanted


def test_settings_of_the_sequence_to_sequence_trainer_are_refused(fresh, tmp_path):
    class Arguments(FlexTrainingArguments):
        predict_with_generate = True

    with pytest.raises(ConfigError, match="predict_with_generate=True doesn't work here: evaluation gives losses"):
        FlexTrainer(fresh(), Arguments(output_dir=str(tmp_path), use_cpu=True), stage=2)


def test_rows_need_a_collator(made):
    rows = datasets.Dataset.from_list([{"messages": turns("w1", "w2")}])
    for data in (rows, rows.to_iterable_dataset(), ChatStream([{"messages": turns("w1", "w2")}])):
        with pytest.raises(ConfigError, match=r"pass data_collator=FlexCollator\(processor\)"):
            made(2, train_dataset=data, data_collator=None, eval_dataset=None)

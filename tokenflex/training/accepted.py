"""What of ``Trainer``'s arguments works with these trainers; what doesn't is refused when the trainer is made."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from tokenflex.errors import ConfigError, TokenFlexError
from tokenflex.training.data import ChatDataset
from tokenflex.training.stages import Stage
from tokenflex.training.stream import ChatStream

Arguments = TypeVar("Arguments", bound=TrainingArguments)
NO_METRICS = (
    "batches have images at several levels, so there are no predictions of one shape. Evaluation gives eval_loss; "
    "add figures of your own in a callback's on_evaluate, or measure accuracy with 'tokenflex evaluate'"
)
OWN_LOSS = "the stage's objective is the loss; pass objective= to minimise something else"
CALLABLES = {
    "compute_metrics": NO_METRICS,
    "preprocess_logits_for_metrics": NO_METRICS,
    "compute_loss_func": OWN_LOSS,
    "model_init": "stages freeze and train parameters of the model they are given; make one trainer per model",
}
SETTINGS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "prediction_loss_only": ((True,), NO_METRICS),
    "include_for_metrics": (([], None), NO_METRICS),
    "batch_eval_metrics": ((False,), NO_METRICS),
    "label_names": ((None, ["labels"]), "the collator's 'labels' are what is supervised"),
    "label_smoothing_factor": ((0, 0.0), OWN_LOSS),
    "remove_unused_columns": ((False,), "rows go to the collator as they are"),
    "predict_with_generate": (
        (False, None),
        "evaluation gives losses; score answers with 'tokenflex evaluate', or in a callback's on_evaluate",
    ),
    "sortish_sampler": ((False, None), "batches aren't sorted by length here"),
    "neftune_noise_alpha": ((None,), "routers read the embeddings that the noise would be added to"),
    "torch_compile": (
        (False,),
        "the whole model with its objective can't be compiled; compile the host's language model in Python",
    ),
    "use_liger_kernel": ((False,), "the kernels must be put into the host before it is wrapped"),
    "use_cache": ((False,), "losses are computed without a cache"),
}
"""Settings with the values that do what they say, and why no other does."""
OF_STAGE_4: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "push_to_hub": ((False,), "checkpoints hold the parts only; upload the folder that was saved, with 'hf upload'"),
}
WITHOUT_HOST: Mapping[str, tuple[tuple[Any, ...], str]] = dict.fromkeys(
    ("activation_checkpointing", "gradient_checkpointing", "include_num_input_tokens_seen"),
    ((None, False, "no"), "a RouterModel has no host whose layers or tokens this is about"),
)
OPTIMIZERS = ("galore", "apollo", "lomo")
"""Words in the names of optimizers that choose parameters or rates themselves."""


def require_accepted(args: TrainingArguments, keywords: Mapping[str, Any], stage: Stage, has_host: bool) -> None:
    """Refuse what would be ignored, or would end the run later.

    Args:
        keywords: the trainer's arguments that go to ``Trainer``.
        has_host: False for a `RouterModel`.

    Raises:
        ConfigError: names the argument, and what to do instead.
    """
    for name, reason in CALLABLES.items():
        if keywords.get(name) is not None:
            raise ConfigError(f"{name} would never be called here: {reason}.")
    tables = [SETTINGS, OF_STAGE_4 if stage.loss == "rglf" else {}, {} if has_host else WITHOUT_HOST]
    for name, (allowed, reason) in ((n, entry) for table in tables for n, entry in table.items()):
        value = getattr(args, name, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{name}={value!r} doesn't work here: {reason}. Leave it as FlexTrainingArguments has it."
            )
    _require_optimizer(args, keywords, stage)
    _require_whole_batches(args, keywords)
    _require_evaluation(args, keywords)
    _require_rows(args, keywords)
    _require_lengths(args, keywords)


def whole_batches(args: Arguments) -> Arguments:
    """A copy of the arguments with which streams aren't dispatched: that would cut batches by their first axis."""
    args, config = copy.copy(args), copy.copy(args.accelerator_config)
    if hasattr(config, "dispatch_batches"):
        config.dispatch_batches = False  # pyright: ignore
        args.accelerator_config = config
    return args


@contextmanager
def as_ours(model: nn.Module) -> Iterator[None]:
    """What ``Trainer`` raises when it is made becomes our error, and the model's parameters are again as they were.

    Raises:
        ConfigError: tells what ``Trainer`` said.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except Exception as error:  # of any class: Trainer and what it imports raise what they like
        for parameter, trained in wanted:
            parameter.requires_grad_(trained)
        if isinstance(error, TokenFlexError):
            raise
        raise ConfigError(f"transformers' Trainer refuses its arguments ({type(error).__name__}: {error}).") from error


def require_metric(trainer: Trainer, figures: Sequence[str] = ()) -> None:
    """Refuse a ``metric_for_best_model`` that no evaluation gives, and early stopping that would never stop.

    Args:
        figures: what an evaluation gives besides losses.

    Raises:
        ConfigError: names those there are.
    """
    args, data = trainer.args, trainer.eval_dataset
    stops = any(isinstance(one, EarlyStoppingCallback) for one in trainer.callback_handler.callbacks)
    if stops and (args.metric_for_best_model is None or _strategy(args) == "no"):
        raise ConfigError(
            "EarlyStoppingCallback compares evaluations; set eval_strategy and load_best_model_at_end=True, or "
            "metric_for_best_model."
        )
    own = any(getattr(type(trainer), name) is not getattr(Trainer, name) for name in ("evaluate", "_evaluate"))
    if args.metric_for_best_model is None or data is None or own:
        return
    sets = [f"eval_{name}" for name in data] if isinstance(data, dict) else ["eval"]
    known = [f"{one}_{figure}" for figure in ("loss", *figures) for one in sets]
    if args.metric_for_best_model not in [*known, *(name.removeprefix("eval_") for name in known)]:
        raise ConfigError(
            f"metric_for_best_model={args.metric_for_best_model!r} is nothing that evaluation gives; use one of "
            f"{', '.join(known)}."
        )
    if "_regret" in f"_{args.metric_for_best_model}" and args.greater_is_better:
        raise ConfigError(
            f"metric_for_best_model={args.metric_for_best_model!r}: less regret is better, and Trainer takes the "
            "greater for the better unless told otherwise. Set greater_is_better=False."
        )


def _strategy(args: TrainingArguments) -> str:
    return str(getattr(args.eval_strategy, "value", args.eval_strategy))


def _require_optimizer(args: TrainingArguments, keywords: Mapping[str, Any], stage: Stage) -> None:
    name = str(getattr(args.optim, "value", args.optim))
    if any(word in name for word in OPTIMIZERS):
        raise ConfigError(
            f"optim={name!r} chooses parameters or rates itself, and a stage has one rate per group of parameters. Use "
            "another, or pass optimizers=(optimizer, scheduler)."
        )
    kind = (keywords.get("optimizer_cls_and_kwargs") or (Optimizer,))[0]
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ConfigError(
            f"optimizer_cls_and_kwargs has {kind!r}, which is no class of torch.optim.Optimizer; factories choose "
            "parameters themselves, and a stage has one rate per group. Pass optimizers=(optimizer, scheduler)."
        )
    default = next(one.default for one in fields(TrainingArguments) if one.name == "learning_rate")
    if args.learning_rate not in (default, *stage.rates.values()):
        raise ConfigError(
            f"learning_rate={args.learning_rate} would rule all groups of the stage; pass "
            "stage=STAGES[n].with_rates(...) instead."
        )


def _require_whole_batches(args: TrainingArguments, keywords: Mapping[str, Any]) -> None:
    """Images aren't lined up with rows, so a batch can't be cut by its first axis."""
    sizes = {name: getattr(args.parallelism_config, f"{name}_size", 1) for name in ("tp", "cp", "sp")}
    if any(isinstance(size, int) and size > 1 for size in sizes.values()):
        listed = ", ".join(f"{name}_size={size}" for name, size in sizes.items())
        raise ConfigError(
            f"parallelism_config with {listed} would cut rows apart; use data parallelism, FSDP2 or ZeRO-3."
        )
    if getattr(args.accelerator_config, "dispatch_batches", None):
        raise ConfigError(
            "dispatch_batches cuts batches by their first axis, and images aren't lined up with rows there. Set "
            "accelerator_config={'dispatch_batches': False}."
        )


def _require_evaluation(args: TrainingArguments, keywords: Mapping[str, Any]) -> None:
    wanted = args.eval_on_start or _strategy(args) != "no"
    if wanted and keywords.get("eval_dataset") is None:
        raise ConfigError(
            "eval_strategy or eval_on_start asks for evaluation, and there is no eval_dataset. Pass one, or leave the "
            "settings out."
        )


def _require_rows(args: TrainingArguments, keywords: Mapping[str, Any]) -> None:
    data, collator = keywords.get("train_dataset"), keywords.get("data_collator")
    kinds = [keywords.get(name) for name in ("train_dataset", "eval_dataset")]
    if collator is None and any(_conversations(one) for one in kinds):
        raise ConfigError("conversations need a collator; pass data_collator=FlexCollator(processor).")
    if collator is not None and not callable(collator):
        raise ConfigError(
            f"data_collator is a {type(collator).__name__}, which can't be called; pass FlexCollator(...)."
        )
    if isinstance(data, Mapping):
        raise ConfigError(f"train_dataset has splits, {', '.join(map(str, data))}; pass one of them.")
    if data is not None and not hasattr(data, "__len__") and args.max_steps <= 0:
        raise ConfigError(
            f"train_dataset is a {type(data).__name__} without a length, so the learning rate's schedule has no end. "
            "Set max_steps."
        )


def _conversations(data: Any) -> bool:
    """Whether a data set's rows are no tensors yet: samples, or rows in chat or LLaVA format."""
    columns = getattr(data, "column_names", None)
    named = isinstance(columns, list | tuple) and not {"messages", "conversations"}.isdisjoint(columns)
    return isinstance(data, ChatDataset | ChatStream) or named


def _require_lengths(args: TrainingArguments, keywords: Mapping[str, Any]) -> None:
    data = keywords.get("train_dataset")
    strategy = getattr(args, "train_sampling_strategy", "random")
    if strategy not in ("group_by_length", "batch_rebalance") or data is None or isinstance(data, IterableDataset):
        return
    if args.length_column_name in (getattr(data, "column_names", None) or ()):
        return
    first: Any = data[0]
    if not isinstance(first, Mapping) or "input_ids" not in first:
        raise ConfigError(
            f"train_sampling_strategy={strategy!r} needs every row's length, and {type(data).__name__} doesn't tell. "
            f"Give a datasets.Dataset a column {args.length_column_name!r}, or use 'random'."
        )

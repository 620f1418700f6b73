"""transformers' ``Trainer`` with a stage: which parameters train, at which rates, on which objective."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tokenflex import checkpoint
from tokenflex.errors import ConfigError
from tokenflex.files import writing
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.model import FlexModel
from tokenflex.training.accepted import as_ours, require_accepted, require_metric, whole_batches
from tokenflex.training.fingerprint import feedback_fingerprint
from tokenflex.training.flags import HostFlags
from tokenflex.training.lost import told_of_lost_processes
from tokenflex.training.objectives import FEEDBACK, LanguageObjective, MultiGranularityObjective, RGLFObjective
from tokenflex.training.resume import begin_again, checkpoint_to_resume
from tokenflex.training.router_only import FeedbackCollator, RouterModel, StoredRows, WithFeedback, stored_batch
from tokenflex.training.stages import STAGES, Stage, frozen_statistics, select
from tokenflex.training.store import FeedbackStore
from tokenflex.training.watch import EVALUATED, TrainingWatch, evaluated, judged_rows

OF_TOKENS = (LanguageObjective, MultiGranularityObjective)
"""Objectives whose losses are sums over the answer tokens of a step, whatever the host's own loss can do."""
logger = logging.getLogger(__name__)
HOST_GROUPS = ("vision_tower", "projector", "language_model")


@dataclass
class FlexTrainingArguments(TrainingArguments):
    """``TrainingArguments`` with the defaults of the published runs.

    ``learning_rate`` is set by the stage; change rates through the stage.
    """

    output_dir: str = field(default="runs", metadata={"help": "Folder for checkpoints and the result."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep False: rows go to the collator."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluate the loss only."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rates."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    report_to: str = field(default="none", metadata={"help": "Trackers: none, tensorboard, trackio, ..."})


class FlexTrainer(Trainer):
    """Trains a `FlexModel` through one stage.

    Args:
        model: the model; what the stage doesn't train is frozen.
        args: as for ``Trainer``; the trainer works on a copy.
        stage: 1 to 4, or a `Stage` with other rates.
        objective: what to minimise; by default what the stage's ``loss`` names. One with a method ``count(model,
            batch)`` is given the sum over a step as ``num_items_in_batch`` in its batches, to divide by.
        keywords: ``train_dataset``, ``data_collator`` and what else ``Trainer`` takes. docs/training.md has a table of
            what works.

    Raises:
        ConfigError: an argument, or a setting in ``args``, would be ignored or end the run later; it is named.
    """

    def __init__(
        self,
        model: FlexModel | RouterModel,
        args: FlexTrainingArguments,
        *,
        stage: int | Stage,
        objective: Any = None,
        **keywords: Any,
    ) -> None:
        if isinstance(stage, int) and stage not in STAGES:
            raise ConfigError(f"stage {stage} doesn't exist; choose from {sorted(STAGES)}.")
        self.stage = STAGES[stage] if isinstance(stage, int) else stage
        self.objective = objective or default_objective(self.stage)
        self.samples_without_answers = 0
        levels, tolerance = model.compressor.num_levels, getattr(self.objective, "tolerance", 0.0)
        self._watch, self._judged = TrainingWatch(levels, tolerance), list[Tensor]()
        require_accepted(args, keywords, self.stage, has_host=isinstance(model, FlexModel))
        parts_only = isinstance(model, FlexModel) and not self.trains_host
        self._host_flags = HostFlags(cast(FlexModel, model).host) if parts_only else None
        args = whole_batches(args)
        with as_ours(model):
            self._groups = select(model, self.stage)
            args.learning_rate = max(group["lr"] for group in self._groups)
            super().__init__(model=model, args=args, **keywords)
            require_metric(self, self._figures())
        if self._counts or self.stage.loss == "rglf":
            self.model_accepts_loss_kwargs = self._counts
        self._resting = frozen_statistics(model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """``Trainer``'s optimizer, with its groups split by the stage's groups, each at its own rate.

        Optimizers of ``optimizers=`` are used as they are.
        """
        if self.optimizer is None:
            made: Any = super().create_optimizer()
            split = [
                {**group, "params": [p for p in ours["params"] if id(p) in members], "lr": ours["lr"]}
                for ours in self._groups
                for group in made.param_groups
                for members in [{id(p) for p in group["params"]}]
            ]
            made.param_groups[:] = [group for group in split if group["params"]]
        found: Any = self.optimizer
        return found

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer`` does; a host that the stage doesn't train has its flags back at the end.

        Args:
            resume_from_checkpoint: a folder; True for the newest whole checkpoint in ``output_dir``, passing over one
                whose writing was interrupted. With none there yet, training starts from the beginning and says so.

        Raises:
            ConfigError: the folder doesn't hold a whole checkpoint, or one of other parts.
            LostProcessError: a process that reads data was killed, or another rank is gone.
            WriteError: a checkpoint can't be written, as on a full disk; those before it are kept.
        """
        say = logger.warning if self.is_world_process_zero() else logger.debug
        found = checkpoint_to_resume(self.args.output_dir or ".", resume_from_checkpoint, say)
        if self._host_flags is None:
            with told_of_lost_processes():
                return super().train(found, *args, **kwargs)
        select(self.accelerator.unwrap_model(self.model), self.stage)  # again, if this isn't the first time
        try:
            with told_of_lost_processes():
                return super().train(found, *args, **kwargs)
        finally:
            self._host_flags.restore()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing once all steps are made: ``Trainer`` would make one more when a finished run is taken up."""
        if 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective, evaluated inside the model's ``forward``."""
        self._count_answers(inputs)
        for module in self._resting:
            module.eval()
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            inputs = {**inputs, "num_items_in_batch": num_items_in_batch}
        scale = 1.0
        if self.args.average_tokens_across_devices and "num_items_in_batch" in inputs:
            scale = float(self.args.n_gpu if self.args.n_gpu > 1 else self.accelerator.num_processes)
        output = model(**inputs, objective=self._objective(scale, "num_items_in_batch" in inputs))
        if model.training:
            self._watch.add(output)
        loss = output.loss * scale
        return (loss, output) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one step, and how many items its loss is a mean over: answer tokens, in stage 4 images.

        With ``average_tokens_across_devices`` those of all processes.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or not self._counts:
            return batches, items
        total = torch.tensor(sum(self._count(batch) for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            gathered: Any = self.accelerator.gather(total)
            total = gathered.sum()
        if self.args.n_gpu > 1:  # as Trainer does: one for each of DataParallel's replicas
            share = total if self.args.average_tokens_across_devices else total // self.args.n_gpu
            total = share[None].expand(self.args.n_gpu, -1)
        return batches, total

    @property
    def _counts(self) -> bool:
        return isinstance(self.objective, OF_TOKENS) or hasattr(self.objective, "count")

    def _count(self, batch: Mapping[str, Any]) -> int:
        if isinstance(self.objective, OF_TOKENS):
            return int((batch["labels"][..., 1:] != IGNORE).sum())
        return self.objective.count(self.accelerator.unwrap_model(self.model), batch)

    def _objective(self, scale: float, counted: bool) -> Any:
        """The objective, told how the backward passes it runs itself are to be scaled.

        Args:
            counted: whether losses are sums over the items of the whole step, so that accumulation divides nothing.
        """
        objective = self.objective
        if not isinstance(objective, MultiGranularityObjective):
            return objective
        if self.args.n_gpu > 1:  # DataParallel's replicas are no leaves of the graph
            return replace(objective, memory="joint") if objective.memory in ("auto", "low") else objective
        factor = scale if counted else scale / getattr(self, "current_gradient_accumulation_steps", 1)

        def backward(loss: Tensor) -> None:
            self.accelerator.backward(loss * factor)

        return replace(objective, backward=backward)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, None, None]:
        """The objective on a batch of the evaluation set."""
        with torch.no_grad():
            loss, output = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        if self.stage.loss == "rglf":
            rows = len(inputs[FEEDBACK] if FEEDBACK in inputs else inputs["labels"])
            table = judged_rows(output, rows, self._watch.levels, apart=self.args.n_gpu > 1).to(loss.device)
            padded = self.accelerator.pad_across_processes(table, dim=1, pad_index=cast(int, torch.nan))
            gathered: Any = self.accelerator.gather_for_metrics(padded)
            self._judged.append(gathered.cpu())
        return loss.detach().mean(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate as ``Trainer`` does; of a router also what it spends, how often it is right, and its regret."""
        self._judged = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        judged = evaluated(self._judged, self._watch.levels, self._watch.tolerance)
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in judged.items()})
        self._judged = []
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as ``Trainer`` does, with what was spent and chosen since the last time, and samples without answers."""
        if "loss" in logs:
            logs.update(self._watch.figures(self._summed))
        if self.samples_without_answers:
            logs["samples_without_answers"] = float(self.samples_without_answers)
        super().log(logs, *args, **kwargs)

    def _figures(self) -> tuple[str, ...]:
        """What an evaluation gives besides losses."""
        return EVALUATED if self.stage.loss == "rglf" else ()

    def _summed(self, vector: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return vector
        total: Any = self.accelerator.reduce(vector.to(self.args.device), "sum")
        return total.cpu()

    @property
    def trains_host(self) -> bool:
        """Whether the stage changes the host; otherwise checkpoints hold the parts only."""
        return any(group in self.stage.rates for group in HOST_GROUPS)

    def _count_answers(self, inputs: Mapping[str, Any]) -> None:
        stored = inputs.get(FEEDBACK)
        missing = (inputs["labels"][:, 1:] == IGNORE).all(-1) if stored is None else stored.isnan().all(-1)
        self.samples_without_answers += int(missing.sum())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with writing(folder):
            if self.args.should_save:
                begin_again(folder)
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        with writing(folder):
            if self.trains_host:
                super()._save(output_dir, state_dict)
            elif self.args.should_save:
                self._write_parts(folder, state_dict)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / "training_args.bin")

    def save_parts(self, folder: str | os.PathLike[str]) -> None:
        """Write the parts as `FlexModel.save_parts` does; call it in all processes, which may hold pieces of them."""
        state: Any = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if self.args.should_save:
            self._write_parts(folder, state)

    def _write_parts(self, folder: str | os.PathLike[str], gathered: Mapping[str, Tensor] | None) -> None:
        unwrapped: Any = self.accelerator.unwrap_model(self.model)
        if gathered is None:
            unwrapped.save_parts(folder)
            return
        prefix, host = "compressor.", unwrapped.adapter if isinstance(unwrapped, FlexModel) else unwrapped.host
        state = {name.removeprefix(prefix): value for name, value in gathered.items() if name.startswith(prefix)}
        checkpoint.save_parts(folder, unwrapped.compressor, host, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._holds_parts(resume_from_checkpoint):
            self._take_up(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if self._holds_parts(best):
            logger.info("the parts of %s are taken up (%s)", best, self.state.best_metric)
            self._take_up(best)
        else:
            super()._load_best_model()

    def _holds_parts(self, folder: str) -> bool:
        """Whether the parts alone are to be read; where parameters are sharded, the engine's own files are."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not sharded and Path(folder, checkpoint.JSON_NAME).exists()

    def _take_up(self, folder: str) -> None:
        unwrapped: Any = self.accelerator.unwrap_model(self.model)
        spec, state = checkpoint.load(folder)
        for kind in checkpoint.KINDS:
            theirs, own = checkpoint.config_from(kind, spec["parts"][kind]), getattr(unwrapped.compressor, kind).config
            if theirs != own:
                raise ConfigError(
                    f"{folder} holds the {kind} {theirs}, and this run trains {own}. Go on with the parts it started "
                    "with."
                )
        checkpoint.fill(unwrapped.compressor, state, folder)


class MultiGranularityTrainer(FlexTrainer):
    """Stage 3: all levels at once, one pass through the vision tower per step.

    Args:
        memory, levels: see `MultiGranularityObjective`.
    """

    def __init__(
        self,
        model: FlexModel,
        args: FlexTrainingArguments,
        *,
        stage: int | Stage = 3,
        memory: str = "auto",
        levels: str = "all",
        **keywords: Any,
    ) -> None:
        super().__init__(model, args, stage=stage, objective=MultiGranularityObjective(memory, levels), **keywords)


class RGLFTrainer(FlexTrainer):
    """Stage 4: the router learns to rank levels as the frozen LMM's losses do.

    Args:
        model: a `FlexModel`, or a `RouterModel`, which has no host and learns from a store with router inputs.
        feedback: stored losses, from `tokenflex.training.score`, in place of the LMM's own at every step. With a
            `FlexModel` its vision tower still runs, and the store must be of this host and ``train_dataset``; with a
            `RouterModel` the store is the data set.
        margin, rank_weight, ce_weight, tolerance, guard: see `RGLFObjective`.
        objective: in place of these settings.

    Raises:
        ConfigError: the store was scored with something else; the message says what.
        DataError: the store isn't complete.
    """

    def __init__(
        self,
        model: FlexModel | RouterModel,
        args: FlexTrainingArguments,
        *,
        stage: int | Stage = 4,
        feedback: FeedbackStore | None = None,
        margin: float = 1.0,
        rank_weight: float = 1.0,
        ce_weight: float = 0.1,
        tolerance: float = 0.0,
        guard: bool = True,
        objective: Any = None,
        **keywords: Any,
    ) -> None:
        objective = objective or RGLFObjective(margin, rank_weight, ce_weight, tolerance, guard)
        if isinstance(model, RouterModel):
            keywords = _of_stores(feedback, keywords)
        elif feedback is not None:
            dataset, collator = keywords.get("train_dataset"), keywords.get("data_collator")
            if dataset is None or collator is None:
                raise ConfigError("feedback= belongs to data; pass the train_dataset and data_collator it is of.")
            feedback.require(feedback_fingerprint(model, dataset, collator, precision_of(args)))
            keywords |= {"train_dataset": WithFeedback(dataset, feedback), "data_collator": FeedbackCollator(collator)}
        super().__init__(model, args, stage=stage, objective=objective, **keywords)


def _of_stores(feedback: FeedbackStore | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a `RouterModel`: stores, for training and evaluation."""
    if feedback is None or any(keywords.get(name) is not None for name in ("train_dataset", "data_collator")):
        raise ConfigError(
            "a RouterModel learns from a store alone; pass feedback=, and no train_dataset and no data_collator."
        )

    def rows(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: rows(one) for name, one in data.items()}
        if data is not None and not isinstance(data, FeedbackStore | StoredRows):
            raise ConfigError(
                f"a RouterModel has no host to encode a {type(data).__name__} with; pass a FeedbackStore with router "
                "inputs as eval_dataset."
            )
        return StoredRows(data, projected=data is not feedback) if isinstance(data, FeedbackStore) else data

    data = {"train_dataset": rows(feedback), "eval_dataset": rows(keywords.get("eval_dataset"))}
    return {**keywords, **data, "data_collator": stored_batch}


def precision_of(args: TrainingArguments) -> str:
    """The precision of autocast: ``no``, ``bf16`` or ``fp16``."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "no"


def default_objective(stage: Stage) -> Any:
    """The objective a stage's ``loss`` names, with its published settings."""
    objectives = {
        "language": LanguageObjective(),
        "multi-granularity": MultiGranularityObjective(),
        "rglf": RGLFObjective(),
    }
    return objectives[stage.loss]

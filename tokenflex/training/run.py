"""Does what a recipe says: train a stage, or score its data."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from tokenflex.checkpoint import KINDS
from tokenflex.errors import ConfigError
from tokenflex.hosts import varlen
from tokenflex.model import FlexModel, load_parts, wrap
from tokenflex.training.collate import FlexCollator
from tokenflex.training.data import ChatDataset, read_rows
from tokenflex.training.recipe import Recipe
from tokenflex.training.router_only import RouterModel
from tokenflex.training.score import score
from tokenflex.training.stages import Stage
from tokenflex.training.store import FeedbackStore
from tokenflex.training.trainer import FlexTrainer, FlexTrainingArguments, RGLFTrainer, precision_of


def train(recipe: Recipe, arguments: FlexTrainingArguments) -> FlexTrainer:
    """Load everything, train, and save the result to ``output_dir``.

    Raises:
        ConfigError: something can't be loaded, or the stored feedback belongs to something else.
    """
    set_seed(arguments.seed)
    stage = recipe.preset()
    store = _store(recipe, stage)
    if store is not None and store.has_inputs:
        return _train_alone(recipe, arguments, stage, store)
    flex, processor = load(recipe)
    dataset, collator = _data(recipe, processor, always_picture=_sharded(arguments))
    given: dict[str, Any] = {"stage": stage, "train_dataset": dataset, "data_collator": collator}
    if store is not None:
        trainer = RGLFTrainer(flex, arguments, feedback=store, objective=recipe.objective(stage), **given)
    else:
        trainer = FlexTrainer(flex, arguments, objective=recipe.objective(stage), **given)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_parts(arguments.output_dir)
    if trainer.is_world_process_zero():
        processor.save_pretrained(arguments.output_dir)
    return trainer


def feedback(
    recipe: Recipe, arguments: FlexTrainingArguments, say: Callable[[str], None] = lambda line: None
) -> FeedbackStore:
    """Score the recipe's data with its host, or go on where that stopped.

    Args:
        say: is told what a user wants to know before it starts.

    Raises:
        ConfigError: the recipe names no folder for it, or what is there belongs to something else.
    """
    if recipe.feedback is None:
        raise ConfigError("the recipe names no folder for the feedback. Add e.g. 'feedback: runs/feedback'.")
    flex, processor = load(recipe)
    dataset, collator = _data(recipe, processor)
    return score(
        flex.to(arguments.device),  # pyright: ignore[reportArgumentType]
        dataset,
        collator,
        recipe.feedback,
        batch_size=arguments.per_device_eval_batch_size,
        part_size=recipe.part_size,
        router_inputs=recipe.levels_cache_dtype if recipe.levels_cache else None,
        vocabulary_chunk=recipe.vocabulary_chunk,
        precision=precision_of(arguments),
        workers=arguments.dataloader_num_workers,
        progress=not arguments.disable_tqdm,
        say=say,
    )


def _store(recipe: Recipe, stage: Stage) -> FeedbackStore | None:
    if recipe.feedback is None:
        return None
    if stage.loss != "rglf":
        raise ConfigError(
            f"feedback={recipe.feedback!r} is for stage 4, and this is stage {stage.number}. Leave it out."
        )
    return FeedbackStore(Path(recipe.feedback))


def _train_alone(recipe: Recipe, arguments: FlexTrainingArguments, stage: Stage, store: FeedbackStore) -> FlexTrainer:
    """Stage 4 from a store with router inputs; the host isn't loaded."""
    if recipe.parts is not None:
        model = RouterModel.from_parts(recipe.parts, store)
    else:
        model = RouterModel.from_store(store, router=_part(recipe, "router"), voter=_part(recipe, "voter"))
    trainer = RGLFTrainer(model, arguments, stage=stage, feedback=store, objective=recipe.objective(stage))
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    return trainer


def _sharded(arguments: FlexTrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed will hold the parameters, by the recipe or by ``accelerate launch``."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{engine}") == "true" for engine in ("FSDP", "DEEPSPEED"))
    return launched or bool(arguments.fsdp) or arguments.deepspeed is not None


def _data(recipe: Recipe, processor: Any, always_picture: bool = False) -> tuple[ChatDataset, FlexCollator]:
    dataset = ChatDataset(read_rows(recipe.data), recipe.image_folder, recipe.on_bad_sample)
    return dataset, FlexCollator(processor, recipe.max_length, always_picture)


def load(recipe: Recipe) -> tuple[FlexModel, Any]:
    """The model and its processor.

    Raises:
        ConfigError: the host can't be loaded, or the parts don't fit it.
    """
    attention = {} if recipe.attn_implementation is None else {"attn_implementation": recipe.attn_implementation}
    if recipe.attn_implementation == varlen.NAME:
        varlen.register()
    dtype = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    try:
        host = AutoModelForImageTextToText.from_pretrained(recipe.host, dtype=dtype, **attention)
        processor = AutoProcessor.from_pretrained(recipe.host)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"host {recipe.host!r} can't be loaded: {error} Give a folder or hub id with a model and its processor."
        ) from error
    if isinstance(host, FlexModel):
        if recipe.parts is None:
            return host, processor
        host = host.host
    if recipe.parts is not None:
        return load_parts(recipe.parts, host=host), processor
    return wrap(host, **{kind: _part(recipe, kind) for kind in ("scaler", "router", "voter")}), processor


def _part(recipe: Recipe, kind: str) -> Any:
    name, settings = getattr(recipe, kind), getattr(recipe, f"{kind}_config")
    settings = json.loads(settings) if isinstance(settings, str) else settings or {}
    return KINDS[kind].get(name).Config.from_dict(settings)

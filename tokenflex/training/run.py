"""Does what a recipe says: train a stage, or score its data."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import set_seed

from tokenflex import compressor
from tokenflex.checkpoint import KINDS, adapter_for, adapter_of, assemble, describe, fill
from tokenflex.errors import ConfigError
from tokenflex.files import locked, writing
from tokenflex.hosts import varlen
from tokenflex.model import FlexModel
from tokenflex.model.loading import fresh
from tokenflex.model.sources import read_model, read_processor
from tokenflex.training import parts
from tokenflex.training.collate import FlexCollator
from tokenflex.training.data import ChatDataset, read_rows
from tokenflex.training.lost import told_of_lost_processes
from tokenflex.training.recipe import Recipe
from tokenflex.training.resume import checkpoint_to_resume
from tokenflex.training.router_only import RouterModel, require_scaler, stored_host_of
from tokenflex.training.score import score
from tokenflex.training.stages import Stage
from tokenflex.training.store import FeedbackStore
from tokenflex.training.trainer import FlexTrainer, FlexTrainingArguments, RGLFTrainer, precision_of

Say = Callable[[str], None]


def train(recipe: Recipe, arguments: FlexTrainingArguments, say: Say = lambda line: None) -> FlexTrainer:
    """Load everything, train, and save the result to ``output_dir``.

    Args:
        say: is told where the parts come from, and what training goes on from.

    Raises:
        ConfigError: something can't be loaded, the recipe contradicts saved parts, the stored feedback belongs to
            something else, or another process trains into ``output_dir``.
        LostProcessError, WriteError: as for `FlexTrainer.train`.
    """
    with _alone(arguments):
        return _train(recipe, arguments, say)


@contextmanager
def _alone(arguments: FlexTrainingArguments) -> Iterator[None]:
    """One run into a folder at a time; its first process keeps the lock for all of them.

    Raises:
        ConfigError: another one is under way.
    """
    folder = Path(arguments.output_dir or ".")

    def refuse() -> None:
        raise ConfigError(
            f"another process on this machine is training into {folder}. Wait for its end, or give another output_dir."
        )

    with locked(folder, "train", waiting=refuse) if arguments.process_index == 0 else nullcontext():
        yield


def _train(recipe: Recipe, arguments: FlexTrainingArguments, say: Say) -> FlexTrainer:
    set_seed(arguments.seed)
    stage = recipe.preset()
    resumed = checkpoint_to_resume(arguments.output_dir or ".", arguments.resume_from_checkpoint, say)
    store = _store(recipe, stage)
    settings: dict[str, Any] = {"stage": stage, "objective": recipe.objective(stage)}
    if store is not None and store.has_inputs:
        model, processor = alone(recipe, store, say, arguments.seed)
        say(f"data: from {store.folder}, {len(store)} rows")
        trainer: FlexTrainer = RGLFTrainer(model, arguments, feedback=store, **settings)
    else:
        dataset, collator = _data(recipe, always_image=_sharded(arguments))
        flex, processor = load(recipe, say, arguments.seed)
        settings |= {"train_dataset": dataset, "data_collator": collator}
        if store is not None:
            trainer = RGLFTrainer(flex, arguments, feedback=store, **settings)
        else:
            trainer = FlexTrainer(flex, arguments, **settings)
    trainer.train(resume_from_checkpoint=resumed)
    with writing(Path(arguments.output_dir or ".")), told_of_lost_processes():
        trainer.save_model()
        trainer.save_parts(arguments.output_dir or ".")
        if trainer.is_world_process_zero():
            processor.save_pretrained(arguments.output_dir)
    return trainer


def feedback(recipe: Recipe, arguments: FlexTrainingArguments, say: Say = lambda line: None) -> FeedbackStore:
    """Score the recipe's data with its host, or go on where that stopped.

    Args:
        say: is told what a user wants to know before it starts.

    Raises:
        ConfigError: the recipe names no folder for it, or what is there belongs to something else.
        LostProcessError: a process that reads data was killed, or another rank is gone.
        WriteError: the folder can't be written, as on a full disk; what was scored is kept.
    """
    if recipe.feedback is None:
        raise ConfigError("the recipe names no folder for the feedback. Add e.g. 'feedback: runs/feedback'.")
    dataset, collator = _data(recipe)
    flex, _ = load(recipe, say, arguments.seed)
    with told_of_lost_processes():
        return score(
            flex.to(arguments.device),  # pyright: ignore[reportArgumentType]
            dataset,
            collator,
            recipe.feedback,
            batch_size=arguments.per_device_eval_batch_size,
            part_size=recipe.part_size,
            router_inputs=recipe.levels_cache_dtype if recipe.levels_cache else None,
            router_inputs_at=recipe.levels_cache_at,
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


def _sharded(arguments: FlexTrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed will hold the parameters, by the recipe or by ``accelerate launch``."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{engine}") == "true" for engine in ("FSDP", "DEEPSPEED"))
    return launched or bool(arguments.fsdp) or arguments.deepspeed is not None


def _data(recipe: Recipe, always_image: bool = False) -> tuple[ChatDataset, FlexCollator]:
    """The data and what makes batches of it, tried on one row, all before a host is loaded.

    Raises:
        ConfigError: a folder that the recipe names isn't there.
        DataError: the data can't be read, or the processor can't make a batch of it.
    """
    if recipe.image_folder is not None and not Path(recipe.image_folder).is_dir():
        raise ConfigError(f"image_folder {recipe.image_folder!r} is no folder. Give the one that image paths start in.")
    if recipe.parts is not None:
        parts.of_folder(recipe.parts)
    dataset = ChatDataset(read_rows(recipe.data), recipe.image_folder, recipe.on_bad_sample)
    collator = FlexCollator(read_processor(recipe.host), recipe.max_length, always_image)
    collator([dataset[0]])
    return dataset, collator


def load(recipe: Recipe, say: Say = lambda line: None, seed: int | None = None) -> tuple[FlexModel, Any]:
    """The model and its processor.

    Args:
        say: is told where the parts come from.
        seed: of fresh parts; None goes on from the generator's state.

    Raises:
        ConfigError: the host can't be loaded, the parts don't fit it, or the recipe contradicts saved ones.
    """
    if recipe.attn_implementation == varlen.NAME:
        varlen.register()
    host = read_model(recipe.host, dtype=recipe.dtype, attn_implementation=recipe.attn_implementation)
    processor, sources = read_processor(recipe.host), _sources(recipe, host)
    choice = parts.choose(recipe, sources)
    for line in choice.lines():
        say(line)
    if isinstance(host, FlexModel):
        if all(saved.where == recipe.host for saved in choice.kept.values()) and len(choice.kept) == len(KINDS):
            return host, processor
        host = host.host
    spec = next((saved.spec for saved in sources.values()), None)
    adapter = adapter_for(host) if spec is None else adapter_of(host, spec)
    if spec is not None:
        assemble(spec, adapter)
    if seed is not None:
        set_seed(seed)
    configs: dict[str, Any] = dict(choice.configs)
    flex = fresh(host, **configs, adapter=adapter, processor=processor if spec is None else None)
    choice.fill(flex.compressor)
    return flex, processor


def alone(
    recipe: Recipe, store: FeedbackStore, say: Say = lambda line: None, seed: int | None = None
) -> tuple[RouterModel, Any]:
    """The parts without a host, around the scaler that the store was scored with, and the host's processor.

    Args:
        say, seed: as for `load`.

    Raises:
        ConfigError: the parts belong to another host or scaler than the store, or the recipe contradicts them.
    """
    host, processor, sources = stored_host_of(store), read_processor(recipe.host), _sources(recipe)
    if "scaler" in recipe.fresh:
        raise ConfigError(f"fresh: [scaler] can't be had of {store.folder}, scored with its own. Score it again.")
    for saved in [*sources.values()][:1]:
        known = assemble(saved.spec, host)
        fill(known.scaler, saved.weights("scaler"), saved.where)
        require_scaler(store, known.scaler, saved.where)
    spec = {"parts": {"scaler": store.manifest["fingerprint"]["scaler"]}}
    weights = {f"scaler.{name}": value for name, value in store.scaler_weights().items()}
    sources = {**sources, "scaler": parts.Saved(str(store.folder), spec, weights)}
    choice = parts.choose(recipe, sources)
    for line in choice.lines():
        say(line)
    if seed is not None:
        set_seed(seed)
    made = compressor.build(**choice.configs, dim=host.dim, grid=host.grid)
    choice.fill(made)
    return RouterModel(made, host), processor


def _sources(recipe: Recipe, host: Any = None) -> Mapping[str, parts.Saved]:
    """Parts that are there already: the recipe's, else those saved with the host."""
    if recipe.parts is not None:
        return parts.of_folder(recipe.parts)
    if host is None:
        return parts.of_host(recipe.host)
    if not isinstance(host, FlexModel):
        return {}
    saved = parts.Saved(recipe.host, describe(host.compressor, host.adapter), host.compressor.state_dict())
    return dict.fromkeys(KINDS, saved)

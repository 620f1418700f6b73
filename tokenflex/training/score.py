"""The feedback pass: score a data set once with the frozen LMM, at every level.

Each process takes its own share of the batches, so the pass runs unchanged under ``torchrun`` and ``accelerate
launch``; what is finished already, by whichever process, isn't done again. Batches are cut before either (see
`tokenflex.training.cutting`), so feedback doesn't depend on how many processes there were or how often they were
stopped.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from tokenflex import bars
from tokenflex.contracts import Instruction, VisualTokens
from tokenflex.contracts.host import no_instruction
from tokenflex.errors import ConfigError, DataError
from tokenflex.files import as_path
from tokenflex.hosts import before_projector
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.hosts.targets import agrees_in_chunks, shifted
from tokenflex.model import Encoded, FlexModel
from tokenflex.ops.digest import of_tensors
from tokenflex.run_folder import RunFolder
from tokenflex.training.cutting import Batches, Cut
from tokenflex.training.fingerprint import feedback_fingerprint
from tokenflex.training.levels import at_level, level_feedback
from tokenflex.training.store import (
    AT,
    AUTOCAST,
    FEEDBACK,
    PLACES,
    FeedbackStore,
    FeedbackWriter,
    ScoredSample,
    StoredProjector,
    begin_store,
)

PROBES = 8
"""Samples that the size of router inputs is measured on."""
SHARD_BYTES = 1 << 30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AT_TOLD = {
    "tower": "before the projector, which will run when they are used",
    "projector": "after the projector",
}


def score(
    flex: FlexModel,
    dataset: Any,
    collator: Any,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    part_size: int = 512,
    router_inputs: str | None = None,
    router_inputs_at: str = "auto",
    vocabulary_chunk: int | None = None,
    precision: str = "no",
    workers: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> FeedbackStore:
    """Score every sample that isn't scored yet, and give the whole store.

    Two passes into one folder on one machine take turns, so that the second one goes on where the first one ends.

    Args:
        dataset: samples by place, as `ChatDataset` gives them.
        collator: makes batches of them, padded on the right, with labels, as `FlexCollator` does.
        folder: of the store; made, or gone on with.
        batch_size: samples per process and batch.
        part_size: samples per file.
        router_inputs: keep what a router sees too, in such a type, or, with ``auto``, as the host computes it.
        router_inputs_at: keep visual tokens after the vision ``tower``, to run the projector when they are used, or
            after the ``projector``; ``auto``: the tower where that is less and as exact. The tower then runs twice.
        vocabulary_chunk: compute the normaliser over so many words of the vocabulary at a time.
        precision: of autocast, ``no``, ``bf16`` or ``fp16``: that of the training run the feedback is for.
        workers: processes that read and prepare samples.
        say: is told what a user wants to know before it starts.

    Raises:
        ConfigError: the folder holds feedback of something else, a setting isn't known, or the disk is too small.
        DataError: at the end a sample isn't there, as when another machine wrote into the folder at the same time.
    """
    _check(router_inputs, router_inputs_at, precision, batch_size, part_size)
    state = PartialState()
    flex.eval()
    kept = None if router_inputs is None else DTYPES.get(router_inputs, flex.host.dtype)
    with _alone(folder, state, say):
        if state.is_main_process:
            _begun(flex, dataset, collator, folder, kept, router_inputs_at, precision, say)
        state.wait_for_everyone()
        store = FeedbackStore(as_path(folder))
        batches = Batches(dataset, collator, batch_size, (state.process_index, state.num_processes))
        todo = sorted({*range(len(dataset))} - {*store.ids.tolist()})
        run = _Pass(flex, kept, vocabulary_chunk, AUTOCAST[precision], before=store.kept_at == "tower")
        if kept is not None and todo:
            _require_space(folder, run, dataset, collator, todo, say)
        state.wait_for_everyone()
        writer = FeedbackWriter(folder, state.process_index)
        with _bar(state, batches.samples, progress) as bar:
            for count, anew in _scored(run, batches.left(todo, workers), {*todo}, writer, part_size):
                bar.initial = getattr(bar, "initial", 0) + (0 if anew else count)  # a hidden bar has none
                bar.update(count)
        state.wait_for_everyone()
    return _complete(folder)


def _complete(folder: str | os.PathLike[str]) -> FeedbackStore:
    store = FeedbackStore(as_path(folder))
    store.require_complete()
    return store


@contextmanager
def _alone(folder: str | os.PathLike[str], state: PartialState, say: Callable[[str], None]) -> Iterator[None]:
    """One pass into a folder at a time; its main process keeps the lock for all of them."""
    if not state.is_main_process:
        yield
        return

    def waiting() -> None:
        say(f"another process is scoring into {folder}; waiting for its end")

    with RunFolder(folder, FEEDBACK).alone(waiting=waiting):
        yield


def _bar(state: PartialState, total: int, progress: bool) -> Any:
    """A progress bar over samples, of the main process only."""
    what = "feedback" if state.num_processes == 1 else f"feedback, 1 of {state.num_processes} processes"
    hidden = not (progress and state.is_main_process)
    return bars.bar(total, what=what, unit="sample", hidden=hidden)


def _scored(
    run: "_Pass", batches: Iterator[Cut], missing: Collection[int], writer: FeedbackWriter, part_size: int
) -> Iterator[tuple[int, bool]]:
    """Score batches and write shards of what is missing; gives each batch's size and whether it was scored just now."""
    buffer: list[ScoredSample] = []
    for count, places, batch in batches:
        if places:
            buffer += [sample for sample in run(places, batch) if sample.id in missing]
        yield count, bool(places)
        if len(buffer) >= part_size or sum(sample.bytes for sample in buffer) >= SHARD_BYTES:
            writer.write(buffer)
            buffer = []
    if buffer:
        writer.write(buffer)


class _Pass:
    """Scores batches.

    Args:
        kept: type in which what a router sees is kept; None: it isn't.
        chunk: words of the vocabulary at a time.
        precision: of autocast; None for none.
        before: keep visual tokens from before the projector.
    """

    def __init__(
        self,
        flex: FlexModel,
        kept: torch.dtype | None,
        chunk: int | None,
        precision: torch.dtype | None,
        before: bool = False,
    ) -> None:
        self.flex, self.device, self.kept, self.chunk, self.precision = flex, flex.device, kept, chunk, precision
        self.before = before
        self._agrees = chunk is None

    @torch.no_grad()
    def __call__(self, places: Sequence[int], batch: dict[str, Tensor]) -> list[ScoredSample]:
        """Score a batch; gives one entry per sample, in the order of ``places``."""
        inputs = {key: value.to(self.device) for key, value in batch.items()}
        with self._autocast():
            encoded = self.flex.encode(inputs)
            self._check_chunks(inputs, encoded)
            losses = level_feedback(self.flex, inputs, encoded, self.chunk).float().cpu()
        targets = (shifted(batch["labels"]) != IGNORE).sum(-1).tolist()
        for place, row, count in zip(places, losses, targets, strict=True):
            if count and not bool(row.isfinite().all()):
                raise DataError(
                    f"row {place}: how likely the host finds the answer is {row.tolist()} at its levels, which isn't "
                    "finite. Score with a host or precision of a wider range: bfloat16 or float32 instead of float16."
                )
        tokens = torch.zeros(len(places), losses.shape[1], dtype=torch.long)
        if encoded.images:
            tokens.index_add_(0, torch.tensor([image.row for image in encoded.images]), encoded.counts.cpu())
        seen = self.seen(inputs, encoded, len(places)) if self.kept is not None else [((), None)] * len(places)
        rows = zip(places, losses.tolist(), targets, tokens.tolist(), seen, strict=True)
        return [ScoredSample(place, nll, count, cost, *views) for place, nll, count, cost, views in rows]

    def seen(
        self, inputs: dict[str, Tensor], encoded: Encoded, rows: int
    ) -> list[tuple[tuple[VisualTokens, ...], Instruction]]:
        """What a router sees, row by row, in the type it is kept in, on the CPU."""
        assert self.kept is not None
        images = self._before(inputs, encoded) if self.before else encoded.images
        found: list[tuple[tuple[VisualTokens, ...], Instruction]] = []
        nothing = no_instruction(self.flex.adapter.dim, torch.empty(0, dtype=self.kept))
        for row in range(rows):
            own = [i for i, image in enumerate(encoded.images) if image.row == row]
            views = tuple(_seen(images[i], self.kept) for i in own)
            instruction = encoded.instructions[own[0]] if own else nothing
            found.append((views, Instruction(instruction.embeddings.to("cpu", self.kept), instruction.mask.cpu())))
        return found

    def size(self, batch: dict[str, Tensor]) -> int:
        """Bytes of what a router sees of a batch."""
        inputs = {key: value.to(self.device) for key, value in batch.items()}
        with torch.no_grad(), self._autocast():
            seen = self.seen(inputs, self.flex.encode(inputs), len(inputs["input_ids"]))
        return sum(ScoredSample(0, (), 0, (), *views).bytes for views in seen)

    @torch.no_grad()
    def same_before(self, batch: dict[str, Tensor]) -> bool | None:
        """Whether the projector makes what is kept from before it into the batch's visual tokens, to the last bit.

        None for a batch without images.
        """
        assert self.kept is not None
        adapter, inputs = self.flex.adapter, {key: value.to(self.device) for key, value in batch.items()}
        with self._autocast():
            encoded = self.flex.encode(inputs)
            tokens = [image.features.to(self.kept) for image in self._before(inputs, encoded)]
        if not tokens:
            return None
        alone = before_projector.rebuilt(before_projector.described(adapter), before_projector.weights(adapter))
        projector = StoredProjector(alone, self.precision, self.kept)
        pairs = zip(tokens, encoded.images, strict=True)
        return all(torch.equal(projector(each), image.features.to(self.kept)) for each, image in pairs)

    def _before(self, inputs: dict[str, Tensor], encoded: Encoded) -> tuple[VisualTokens, ...]:
        """The images with what the projector was given in place of what it made."""
        adapter, views = self.flex.adapter, [len(image.features) for image in encoded.images]
        with self._autocast():
            tokens = before_projector.tower_tokens(adapter, adapter.read(inputs), views)
        return tuple(replace(image, features=each) for image, each in zip(encoded.images, tokens, strict=True))

    def _autocast(self) -> Any:
        return nullcontext() if self.precision is None else torch.autocast(self.device.type, self.precision)

    def _check_chunks(self, inputs: dict[str, Tensor], encoded: Encoded) -> None:
        if self._agrees or self.chunk is None or not bool((inputs["labels"][:, 1:] != IGNORE).any()):
            return
        shortest = at_level(self.flex, inputs, encoded, 0)
        targets = shifted(shortest.pop("labels"))
        if not agrees_in_chunks(self.flex.host, shortest, targets, self.chunk, self.flex.adapter.vocabulary):
            raise ConfigError(
                f"vocabulary_chunk={self.chunk}: {type(self.flex.host).__name__} does more with its logits than its "
                "output embeddings, so they can't be computed in chunks. Leave vocabulary_chunk out."
            )
        self._agrees = True


def _require_space(
    folder: str | os.PathLike[str],
    run: _Pass,
    dataset: Any,
    collator: Any,
    todo: Sequence[int],
    say: Callable[[str], None],
) -> None:
    """Measure the size of router inputs on a few samples, say it, and refuse a disk that is too small.

    Raises:
        ConfigError: what is to be written doesn't fit.
    """
    probes = todo[:: max(1, len(todo) // PROBES)][:PROBES]
    each = sum(run.size(collator([dataset[place]])) for place in probes) / len(probes)
    needed, free = each * len(todo), shutil.disk_usage(folder).free
    text = f"{needed / 2**30:.2f} GiB for {len(todo)} samples ({each / 2**20:.2f} MiB each)"
    say(f"router inputs: about {text}; {free / 2**30:.1f} GiB are free")
    if needed > free:
        raise ConfigError(
            f"router inputs need about {text}, and {folder} has {free / 2**30:.2f} GiB left. Free some, choose another "
            "disk, or leave levels_cache out: feedback alone takes a few bytes per sample."
        )


def _begun(
    flex: FlexModel,
    dataset: Any,
    collator: Any,
    folder: str | os.PathLike[str],
    kept: torch.dtype | None,
    asked: str,
    precision: str,
    say: Callable[[str], None],
) -> None:
    """Start the store, or make sure that it can be gone on with.

    Args:
        kept: type of what a router sees; None where it isn't kept.
        asked: after what visual tokens are to be kept.
    """
    at = _at(asked, folder, _Pass(flex, kept, None, AUTOCAST[precision]), dataset, collator)
    projector = before_projector.weights(flex.adapter) if at == "tower" else {}
    manifest = _manifest(flex, dataset, collator, precision, kept, at, projector)
    begin_store(folder, manifest, flex.compressor.scaler.state_dict(), projector)
    if at is not None:
        say(f"router inputs: visual tokens are kept {AT_TOLD[at]}")


def _at(asked: str, folder: str | os.PathLike[str], run: _Pass, dataset: Any, collator: Any) -> str | None:
    """After what visual tokens are kept; None where they aren't.

    ``auto`` is after the tower where that is less and, for a few samples, gives the same to the last bit in the type
    they are kept in; a folder that is gone on with keeps what it has.

    Raises:
        ConfigError: they can't be had before the projector, and that was asked for.
    """
    if run.kept is None:
        return None
    if asked == "auto" and RunFolder(folder, FEEDBACK).begun:
        return FeedbackStore(as_path(folder)).kept_at
    own = "its scaler makes images smaller before they are encoded" if run.flex.compressor.scaler.shares else None
    reason = own or before_projector.refusal(run.flex.adapter)
    if asked == "tower" and reason:
        raise ConfigError(f"router_inputs_at='tower' can't be had here: {reason}. Use 'projector'.")
    if asked != "auto" or reason:
        return "projector" if reason else asked
    every = max(1, len(dataset) // PROBES)
    found = [run.same_before(collator([dataset[place]])) for place in range(0, len(dataset), every)]
    pictured = [same for same in found if same is not None]
    return "tower" if pictured and all(pictured) else "projector"


def _manifest(
    flex: FlexModel,
    dataset: Any,
    collator: Any,
    precision: str,
    kept: torch.dtype | None,
    at: str | None,
    projector: Mapping[str, Tensor],
) -> dict[str, Any]:
    """What a store says of itself.

    Args:
        at: after what visual tokens are kept.
        projector: its weights, where they are kept before it.
    """
    made = {**before_projector.described(flex.adapter), "weights": of_tensors(projector)} if projector else None
    description = {
        "fingerprint": feedback_fingerprint(flex, dataset, collator, precision),
        "levels": flex.compressor.num_levels,
        "router_inputs": None if kept is None else str(kept).removeprefix("torch."),
        AT: at,
        **({"projector": made} if made else {}),
    }
    return json.loads(json.dumps(description, default=str))


def _seen(image: VisualTokens, kept: torch.dtype) -> VisualTokens:
    """What is kept of an image, on the CPU; its words are kept once per row."""
    keys = None if image.keys is None else image.keys.to("cpu", kept)
    attention = None if image.attention is None else image.attention.cpu()
    return VisualTokens(
        image.features.to("cpu", kept), image.grid, row=0, video=image.video, attention=attention, keys=keys
    )


def _check(router_inputs: str | None, at: str, precision: str, batch_size: int, part_size: int) -> None:
    if router_inputs not in (None, "auto", *DTYPES):
        raise ConfigError(f"router_inputs={router_inputs!r}; use auto, {', '.join(DTYPES)}, or leave it out.")
    if at not in ("auto", *PLACES):
        raise ConfigError(f"router_inputs_at={at!r}; use auto, {', '.join(PLACES)}.")
    if precision not in AUTOCAST:
        raise ConfigError(f"precision={precision!r}; use {', '.join(AUTOCAST)}.")
    for name, value in (("batch_size", batch_size), ("part_size", part_size)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be 1 or more.")

"""Feedback as data: how likely the frozen LMM finds each answer at each level, scored once, kept in a folder.

``manifest.json``       what was scored with what (see `tokenflex.training.fingerprint`)
``part-*.parquet``      one row per sample: ``id`` (its place in the data set), ``nll`` per level (mean over the
                        answer's tokens, in nats; NaN without an answer), ``answer_tokens``, ``visual_tokens`` per level
``part-*.safetensors``  what a router sees of the same samples, where that was asked for: the visual tokens before
                        scaling, from which all levels follow, and the embeddings of the instruction's words
``scaler.safetensors``  the scaler's weights, if it has any
``projector.safetensors``  the projector's weights, where visual tokens are kept as the vision tower made them: the
                        projector runs when they are used

A part appears as a whole or not at all, its Parquet file last; so a pass that was killed loses what it hadn't written
and nothing else. Parts are numbered, so passes with processes of the same rank take turns (see
`tokenflex.training.score`).
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenflex import checkpoint
from tokenflex.contracts import READ_OFF, Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, DataError
from tokenflex.files import locked, sweep, whole, write_whole
from tokenflex.hosts import before_projector
from tokenflex.training.fingerprint import Fingerprint, differences, of_tensors

FORMAT = 1
MANIFEST, SCALER, PROJECTOR = "manifest.json", "scaler.safetensors", "projector.safetensors"
AT = "router_inputs_at"
PLACES = ("tower", "projector")
"""After which of them visual tokens are kept; stores from before there was a choice have them after the projector."""
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Scored:
    """One sample's feedback.

    Attributes:
        id: its place in the data set.
        nll: per level, mean negative log-likelihood of the answer's tokens, in nats.
        answer_tokens: how many tokens that is a mean of.
        visual_tokens: per level, what its pictures cost, separators included.
        images, instruction: what a router sees; empty where that isn't kept.
    """

    id: int
    nll: Sequence[float]
    answer_tokens: int
    visual_tokens: Sequence[int]
    images: tuple[VisualTokens, ...] = ()
    instruction: Instruction | None = None

    @property
    def bytes(self) -> int:
        """Size of what a router sees."""
        words = () if self.instruction is None else (self.instruction.embeddings, self.instruction.mask)
        seen = [getattr(image, name) for image in self.images for name in ("features", *READ_OFF)]
        return sum(t.nbytes for t in (*seen, *words) if t is not None)


class StoredProjector:
    """The host's projector without the host: makes of a store's tokens what the host made of them.

    It isn't part of the model that is trained, and goes where the tokens are. They are given to it as the host gives
    them, as what lies behind a class token: how linear layers round depends on the layout in memory.

    Args:
        projector: frozen.
        precision: of autocast when the store was scored; None for none.
        dtype: of the projected tokens.
    """

    def __init__(self, projector: nn.Module, precision: torch.dtype | None, dtype: torch.dtype) -> None:
        self.projector, self.precision, self.dtype = projector, precision, dtype

    @torch.no_grad()
    def __call__(self, tokens: Float[Tensor, "views tokens width"]) -> Float[Tensor, "views tokens dim"]:
        """The tokens after the projector."""
        weight = next(self.projector.parameters())
        if weight.device != tokens.device:
            self.projector.to(tokens.device)
        behind_class_token = F.pad(tokens.to(weight.dtype), (0, 0, 1, 0))[:, 1:]
        with torch.autocast(tokens.device.type, self.precision, enabled=self.precision is not None):
            return self.projector(behind_class_token).to(self.dtype)


def begin(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    scaler: Mapping[str, Tensor],
    projector: Mapping[str, Tensor] | None = None,
) -> None:
    """Start a store, or make sure that the one in ``folder`` can be gone on with.

    Args:
        scaler, projector: weights, where there are any to keep.

    Raises:
        ConfigError: it was scored with something else; the message says what differs.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        for name in (MANIFEST, SCALER, PROJECTOR):
            sweep(target, name)
        if (target / MANIFEST).exists():
            _same(target, _manifest(target), manifest)
            return
        for name, weights in ((SCALER, scaler), (PROJECTOR, projector)):
            if weights:
                with whole(target / name) as scratch:
                    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, scratch)
        write_whole(target / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n")


def next_part(folder: Path, rank: int) -> int:
    """The number of a process's next part; what one of the same rank left half-written is removed."""
    sweep(folder, f"part-{rank:05d}-*")
    done = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"part-{rank:05d}-*.parquet")]
    return max(done, default=-1) + 1


class PartWriter:
    """Adds parts to a store; one writer per process.

    Args:
        rank: of the process; part of its files' names, so that processes never meet.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int) -> None:
        self.folder, self.rank = Path(folder), rank
        self._next = next_part(self.folder, rank)

    def write(self, samples: Sequence[Scored]) -> None:
        """One part, as a whole or not at all."""
        stem = self.folder / f"part-{self.rank:05d}-{self._next:05d}"
        if any(sample.instruction is not None for sample in samples):
            tensors, layout = _tensors(samples)
            with whole(Path(f"{stem}.safetensors")) as scratch:
                save_file(tensors, scratch, metadata={"layout": json.dumps(layout)})
        levels = len(samples[0].nll)
        table = pa.table(
            {
                "id": pa.array([sample.id for sample in samples], pa.int64()),
                "nll": pa.array([list(sample.nll) for sample in samples], pa.list_(pa.float32(), levels)),
                "answer_tokens": pa.array([sample.answer_tokens for sample in samples], pa.int32()),
                "visual_tokens": pa.array(
                    [list(sample.visual_tokens) for sample in samples], pa.list_(pa.int32(), levels)
                ),
            }
        )
        with whole(Path(f"{stem}.parquet")) as scratch:
            pq.write_table(table, scratch)
        self._next += 1


@dataclass
class FeedbackStore:
    """A folder of feedback, read.

    Attributes:
        folder: where it lies.
        manifest: what it was made with.
        ids: places in the data set of the samples that were scored, ascending.
        nll: ``(samples, levels)``, in nats per answer token, in the order of ``ids``.
        answer_tokens: ``(samples,)``.
        visual_tokens: ``(samples, levels)``.
    """

    folder: Path
    manifest: dict[str, Any] = field(init=False)
    ids: Int[Tensor, " samples"] = field(init=False)
    nll: Float[Tensor, "samples levels"] = field(init=False)
    answer_tokens: Int[Tensor, " samples"] = field(init=False)
    visual_tokens: Int[Tensor, "samples levels"] = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.manifest = _manifest(self.folder)
        levels, columns = self.manifest["levels"], ("id", "nll", "answer_tokens", "visual_tokens")
        self._parts = sorted(self.folder.glob("part-*.parquet"))
        tables = [pq.read_table(path, columns=list(columns)) for path in self._parts]
        ids = torch.tensor([i for table in tables for i in table["id"].to_pylist()], dtype=torch.long)
        owner = torch.tensor([n for n, table in enumerate(tables) for _ in range(len(table))], dtype=torch.long)
        order = ids.argsort(stable=True)
        first = torch.ones(len(ids), dtype=torch.bool)
        first[1:] = ids[order].diff() > 0
        order = order[first]

        def column(name: str, dtype: torch.dtype, width: tuple[int, ...]) -> Tensor:
            rows = [row for table in tables for row in table[name].to_pylist()]
            return torch.tensor(rows, dtype=dtype).view(-1, *width)[order]

        self.ids, self._owner = ids[order], owner[order]
        self.nll = column("nll", torch.float32, (levels,))
        self.answer_tokens = column("answer_tokens", torch.long, ())
        self.visual_tokens = column("visual_tokens", torch.long, (levels,))
        self._place = {int(i): n for n, i in enumerate(self.ids)}
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_inputs(self) -> bool:
        """Whether it holds what a router sees, so that routers can be trained without the host."""
        return self.manifest["router_inputs"] is not None

    def require_complete(self) -> None:
        """Refuse a pass that isn't finished.

        Raises:
            DataError: samples are missing.
        """
        rows = self.manifest["fingerprint"]["data"]["rows"]
        if len(self) != rows:
            raise DataError(
                f"{self.folder} holds feedback for {len(self)} of {rows} samples. Finish it with 'tokenflex feedback'; "
                "it goes on where it stopped."
            )

    def require(self, now: Fingerprint) -> None:
        """Refuse feedback that was scored with something else.

        Raises:
            ConfigError: the message says what differs.
        """
        _same(self.folder, self.manifest, {"fingerprint": now})

    def feedback(self, place: int) -> Float[Tensor, " levels"]:
        """Of the sample at ``place`` in the data set.

        Raises:
            DataError: it wasn't scored.
        """
        return self.nll[self._at(place)]

    def tokens(self, place: int) -> Int[Tensor, " levels"]:
        """What the pictures of the sample at ``place`` cost at each level.

        Raises:
            DataError: it wasn't scored.
        """
        return self.visual_tokens[self._at(place)]

    def _at(self, place: int) -> int:
        if place not in self._place:
            raise DataError(f"{self.folder} holds no feedback for row {place}. Finish it with 'tokenflex feedback'.")
        return self._place[place]

    @property
    def kept_at(self) -> str:
        """After what visual tokens are kept: ``tower``, before the projector, or ``projector``."""
        return self.manifest.get(AT) or "projector"

    @functools.cached_property
    def projector(self) -> StoredProjector | None:
        """What makes the tokens of a store that keeps them before the projector into what a router sees; else None.

        Raises:
            DataError: its weights aren't those that the store was scored with, or are missing.
        """
        if self.kept_at != "tower":
            return None
        path, told = self.folder / PROJECTOR, self.manifest["projector"]
        weights = load_file(path) if path.is_file() else {}
        if of_tensors(weights) != told["weights"]:
            raise DataError(
                f"{path} {'has other weights than' if weights else 'is missing, and holds the projector'} "
                f"{self.folder} was scored with. Score into another folder."
            )
        precision = AUTOCAST[self.manifest["fingerprint"]["precision"]]
        dtype = getattr(torch, self.manifest["router_inputs"])
        return StoredProjector(before_projector.rebuilt(told, weights), precision, dtype)

    def inputs(self, place: int) -> tuple[tuple[VisualTokens, ...], Instruction]:
        """What a router sees of the sample at ``place``; rows of the images are 0.

        Raises:
            ConfigError: the store was made without them.
        """
        images, instruction = self.kept(place)
        if self.projector is not None:
            images = tuple(replace(image, features=self.projector(image.features)) for image in images)
        return images, instruction

    def kept(self, place: int) -> tuple[tuple[VisualTokens, ...], Instruction]:
        """What is kept of it; as `inputs`, but for features from before the projector where `kept_at` says so.

        Raises:
            ConfigError: the store was made without them.
        """
        if not self.has_inputs:
            raise ConfigError(
                f"{self.folder} holds no router inputs. Make it with 'tokenflex feedback RECIPE --levels-cache'."
            )
        part = int(self._owner[self._place[place]])
        if part not in self._open:
            held = safe_open(self._parts[part].with_suffix(".safetensors"), "pt")
            self._open[part] = (held, json.loads(held.metadata()["layout"]))
        held, layout = self._open[part]
        keys = set(held.keys())

        def one(n: int, rows: int, cols: int, clip: int) -> VisualTokens:
            names = [name for name in READ_OFF if f"{place}/{n}/{name}" in keys]
            read = {name: held.get_tensor(f"{place}/{n}/{name}") for name in names}
            return VisualTokens(held.get_tensor(f"{place}/{n}"), Grid(rows, cols), row=0, clip=bool(clip), **read)

        images = tuple(one(n, *told) for n, told in enumerate(layout[str(place)]))
        return images, Instruction(held.get_tensor(f"{place}/words"), held.get_tensor(f"{place}/mask"))

    def scaler_weights(self) -> dict[str, Tensor]:
        """Of the scaler that it was scored with.

        Raises:
            ConfigError: they hold NaN or infinity.
        """
        path = self.folder / SCALER
        weights = load_file(path) if path.exists() else {}
        checkpoint.require_sound(weights, str(path))
        return weights

    def __getstate__(self) -> dict[str, Any]:
        return {**{key: value for key, value in self.__dict__.items() if key != "projector"}, "_open": {}}


def _tensors(samples: Sequence[Scored]) -> tuple[dict[str, Tensor], dict[str, list[list[int]]]]:
    tensors: dict[str, Tensor] = {}
    layout: dict[str, list[list[int]]] = {}
    for sample in samples:
        assert sample.instruction is not None
        tensors[f"{sample.id}/words"] = sample.instruction.embeddings.contiguous()
        tensors[f"{sample.id}/mask"] = sample.instruction.mask.clone()  # rows of one batch may share theirs
        for n, image in enumerate(sample.images):
            tensors[f"{sample.id}/{n}"] = image.features.contiguous()
            read = {name: getattr(image, name) for name in READ_OFF}
            tensors |= {f"{sample.id}/{n}/{name}": t.contiguous() for name, t in read.items() if t is not None}
        layout[str(sample.id)] = [[im.grid.rows, im.grid.cols, int(im.clip)] for im in sample.images]
    return tensors, layout


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} has no {MANIFEST}, so no feedback. Make it with 'tokenflex feedback RECIPE'.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} isn't valid JSON: {error}.") from error
    told = found.get("format") if isinstance(found, dict) else None
    if told != FORMAT:
        raise ConfigError(f"{path}: format {told!r} isn't known; this version reads {FORMAT}.")
    return found


def _same(folder: Path, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    def flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {AT: manifest.get("router_inputs") and "projector", **manifest}
        return {**manifest.get("fingerprint", {}), **{key: manifest.get(key) for key in now if key != "fingerprint"}}

    found = differences(flat(stored), flat(now))
    if found:
        raise ConfigError(
            f"{folder} was scored with something else: {'; '.join(found)}. Go back to that, or score into another "
            "folder."
        )

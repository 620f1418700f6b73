"""Feedback as data: how likely the frozen LMM finds each answer at each level, scored once, kept in a folder.

``manifest.json``       what was scored with what (see `tokenflex.training.fingerprint`)
``part-*.parquet``      one row per sample: ``id`` (its place in the data set), ``nll`` per level (mean over the
                        answer's tokens, in nats; NaN without an answer), ``answer_tokens``, ``visual_tokens`` per level
``part-*.safetensors``  what a router sees of the same samples, where that was asked for: the visual tokens before
                        scaling, from which all levels follow, and the embeddings of the instruction's words
``scaler.safetensors``  the scaler's weights, if it has any
``projector.safetensors``  the projector's weights, where visual tokens are kept as the vision tower made them: the
                        projector runs when they are used

All of it is data that may come from anyone: it is read by `tokenflex.reading`, compared with what the manifest says,
and with digests that were written with it (see `tokenflex.run_folder` and `tokenflex.training.kept`).

How files appear, and how runs go on with them: `tokenflex.run_folder.folder`.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenflex import checkpoint
from tokenflex.contracts import READ_OFF, Instruction, VisualTokens
from tokenflex.errors import ConfigError, DataError
from tokenflex.hosts import before_projector
from tokenflex.ops.digest import of_tensors
from tokenflex.reading import own_file
from tokenflex.reading import tensors as read_tensors
from tokenflex.run_folder import MANIFEST, Manifest, RunFolder, RunKind, Shard, sealed
from tokenflex.training.fingerprint import Fingerprint
from tokenflex.training.kept import DTYPES, INPUTS, Expected, KeptShard, shard_tensors

FORMAT = 1
SCALER, PROJECTOR = "scaler.safetensors", "projector.safetensors"
AT = "router_inputs_at"
PLACES = ("tower", "projector")
"""After which of them visual tokens are kept; stores from before there was a choice have them after the projector."""
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


RULES: dict[str, sealed.Rule] = {
    "format": sealed.one_of(FORMAT),
    "fingerprint": sealed.OBJECT,
    "levels": sealed.counted(1, 1025),
    "router_inputs": sealed.one_of(None, *DTYPES),
    f"{AT}?": sealed.one_of(None, *PLACES),
    "projector?": sealed.OBJECT,
}
FINGERPRINT: dict[str, sealed.Rule] = {
    "host": sealed.OBJECT,
    "scaler": sealed.OBJECT,
    "data": sealed.OBJECT,
    "precision": sealed.one_of(*AUTOCAST),
}
HOST: dict[str, sealed.Rule] = {
    "model_type": sealed.TEXT,
    "dim": sealed.counted(1),
    "grid": sealed.SIDES,
    "options": sealed.OBJECT,
}
MADE: dict[str, sealed.Rule] = {"name": sealed.TEXT, "config": sealed.OBJECT, "weights": sealed.TEXT}
DATA: dict[str, sealed.Rule] = {"rows": sealed.counted(1), "content": sealed.TEXT}
PROJECTED: dict[str, sealed.Rule] = {"config": sealed.OBJECT, "weights": sealed.TEXT}


@dataclass(frozen=True)
class ScoredSample:
    """One sample's feedback.

    Attributes:
        id: its place in the data set.
        nll: per level, mean negative log-likelihood of the answer's tokens, in nats.
        answer_tokens: how many tokens that is a mean of.
        visual_tokens: per level, what its images cost, separators included.
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
        instruction = () if self.instruction is None else (self.instruction.embeddings, self.instruction.mask)
        seen = [getattr(image, name) for image in self.images for name in ("features", *READ_OFF)]
        return sum(t.nbytes for t in (*seen, *instruction) if t is not None)


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
        """What the projector makes of tokens from before it."""
        weight = next(self.projector.parameters())
        if weight.device != tokens.device:
            self.projector.to(tokens.device)
        behind_class_token = F.pad(tokens.to(weight.dtype), (0, 0, 1, 0))[:, 1:]
        with torch.autocast(tokens.device.type, self.precision, enabled=self.precision is not None):
            return self.projector(behind_class_token).to(self.dtype)


def begin_store(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    scaler: Mapping[str, Tensor],
    projector: Mapping[str, Tensor] | None = None,
) -> None:
    """Start a store, or make sure that the one in ``folder`` can be gone on with.

    Args:
        folder: of the store; made where there is none.
        manifest: what it is scored with, without ``format`` and digest.
        scaler, projector: weights, where there are any to keep.

    Raises:
        ConfigError: it was scored with something else; the message says what differs.
    """
    weights = {SCALER: scaler, PROJECTOR: projector}
    once = {name: functools.partial(_write_weights, each) for name, each in weights.items() if each}
    RunFolder(folder, FEEDBACK).begin(manifest, lambda: once)


def _write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)


class FeedbackWriter:
    """Adds shards to a store; one writer per process.

    Args:
        folder: of the store.
        rank: of the process; part of its files' names, so that processes never meet.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int) -> None:
        run = RunFolder(folder, FEEDBACK)
        self.folder, self._shards = run.path, run.writer(rank)

    def write(self, samples: Sequence[ScoredSample]) -> None:
        """Write one shard, as a whole or not at all.

        Args:
            samples: its rows, one or more.

        Raises:
            DataError: what a router sees of them has values that aren't finite.
            WriteError: it can't be written, as on a full disk.
        """
        own_metadata: dict[str, str] = {}
        beside: dict[str, Callable[[Path], None]] = {}
        if any(sample.instruction is not None for sample in samples):
            tensors, metadata, own_metadata = shard_tensors(samples)
            beside[".safetensors"] = functools.partial(save_file, tensors, metadata=metadata)
        columns = [
            [sample.id for sample in samples],
            [list(sample.nll) for sample in samples],
            [sample.answer_tokens for sample in samples],
            [list(sample.visual_tokens) for sample in samples],
        ]
        schema = shard_schema(len(samples[0].nll))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        self._shards.write(pa.Table.from_arrays(arrays, schema=schema), own_metadata, beside)


def shard_schema(levels: int) -> pa.Schema:
    """The columns of ``part-*.parquet``, for feedback at so many levels."""
    return pa.schema(
        [
            ("id", pa.int64()),
            ("nll", pa.list_(pa.float32(), levels)),
            ("answer_tokens", pa.int32()),
            ("visual_tokens", pa.list_(pa.int32(), levels)),
        ]
    )


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

    Raises:
        ConfigError: there is no store in the folder, or its manifest was changed or is damaged.
        DataError: a shard is damaged, was changed, or holds what the manifest doesn't promise: ids beyond the data set
            or twice in one shard, numbers that aren't finite for samples with answers, other columns or levels.
    """

    folder: Path
    manifest: dict[str, Any] = field(init=False)
    ids: Int[Tensor, " samples"] = field(init=False)
    nll: Float[Tensor, "samples levels"] = field(init=False)
    answer_tokens: Int[Tensor, " samples"] = field(init=False)
    visual_tokens: Int[Tensor, "samples levels"] = field(init=False)

    def __post_init__(self) -> None:
        run = RunFolder(self.folder, FEEDBACK)
        self.folder = run.path
        self.manifest, sure = run.manifest()
        shards = list(run.shards(shard_schema(self.manifest["levels"]), sure=sure, metadata=[INPUTS]))
        for shard in shards:
            self._require_promised(shard)
        self._paths = [shard.path for shard in shards]
        self._layouts = [shard.metadata.get(INPUTS) for shard in shards]
        tables = [shard.table for shard in shards]
        self._ids = [frozenset(table["id"].to_pylist()) for table in tables]
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
        self.nll = column("nll", torch.float32, (self.manifest["levels"],))
        self.answer_tokens = column("answer_tokens", torch.long, ())
        self.visual_tokens = column("visual_tokens", torch.long, (self.manifest["levels"],))
        self._place = {int(i): n for n, i in enumerate(self.ids)}
        self._open: dict[int, KeptShard] = {}

    def _require_promised(self, shard: Shard) -> None:
        """Refuse a shard that holds what the manifest doesn't promise."""
        table, rows = shard.table, self.manifest["fingerprint"]["data"]["rows"]
        ids, targets = (torch.tensor(table[key].to_pylist(), dtype=torch.long) for key in ("id", "answer_tokens"))
        nll, tokens = (torch.tensor(table[key].to_pylist()) for key in ("nll", "visual_tokens"))
        wrong = {
            f"an id outside 0 to {rows - 1}": (ids < 0) | (ids >= rows),
            "fewer than 0 answer tokens": targets < 0,
            "an nll that isn't finite": (targets > 0) & ~nll.isfinite().all(-1) if len(ids) else targets > 0,
            "an nll and no answer tokens": (targets == 0) & ~nll.isnan().all(-1) if len(ids) else targets > 0,
            "fewer than 0 visual tokens": (tokens < 0).any(-1) if len(ids) else targets > 0,
        }
        found = [f"row {int(where.nonzero()[0])} has {what}" for what, where in wrong.items() if bool(where.any())]
        if len(ids.unique()) != len(ids):
            found.append("an id stands twice")
        if found:
            raise DataError(f"{shard.path}: {'; '.join(found)}. {sealed.AGAIN}")

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
        RunFolder(self.folder, FEEDBACK).require_same(self.manifest, {"fingerprint": now})

    def feedback(self, place: int) -> Float[Tensor, " levels"]:
        """The stored feedback of the sample at ``place`` in the data set: its nll per level, in nats per answer token.

        Raises:
            DataError: it wasn't scored.
        """
        return self.nll[self._at(place)]

    def tokens(self, place: int) -> Int[Tensor, " levels"]:
        """What the images of the sample at ``place`` cost at each level.

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
        spec = self.manifest["projector"]
        weights = self._weights(PROJECTOR, spec["weights"], "the projector")
        precision = AUTOCAST[self.manifest["fingerprint"]["precision"]]
        dtype = getattr(torch, self.manifest["router_inputs"])
        try:
            alone = before_projector.rebuilt(spec, weights)
        except Exception as error:  # whatever a configuration of any kind raises
            raise DataError(
                f"{self.folder / MANIFEST}: the projector can't be built from its configuration ({error}). Score into "
                "another folder."
            ) from error
        return StoredProjector(alone, precision, dtype)

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
        shard = int(self._owner[self._at(place)])
        if shard not in self._open:
            dim = self.manifest["fingerprint"]["host"]["dim"]
            expected = Expected(self.manifest["router_inputs"], dim, self.kept_at == "projector")
            name = self._paths[shard].with_suffix(".safetensors").name
            kept = KeptShard(self.folder, name, self._ids[shard], self._layouts[shard], expected)
            self._open[shard] = kept
        return self._open[shard].sample(place)

    def scaler_weights(self) -> dict[str, Tensor]:
        """The weights of the scaler that it was scored with.

        Raises:
            ConfigError: they hold NaN or infinity.
        """
        return self._weights(SCALER, self.manifest["fingerprint"]["scaler"]["weights"], "the scaler")

    def _weights(self, name: str, digest: str, what: str) -> dict[str, Tensor]:
        """Weights of the scaler or the projector, as they were when the store was made.

        Raises:
            ConfigError: they hold NaN or infinity.
            DataError: they aren't those, or are missing.
        """
        path = self.folder / name
        there = path.is_file() or path.is_symlink()
        weights = read_tensors(own_file(self.folder, name, DataError), DataError) if there else {}
        checkpoint.require_sound(weights, str(path))
        if of_tensors(weights) != digest:
            raise DataError(
                f"{path} {'has other weights than' if there else f'is missing, and holds {what}'} "
                f"{self.folder} was scored with. Score into another folder."
            )
        return weights

    def __getstate__(self) -> dict[str, Any]:
        return {**{key: value for key, value in self.__dict__.items() if key != "projector"}, "_open": {}}


def _require_manifest(found: Manifest, where: str) -> None:
    """Refuse a manifest that doesn't say what it must."""
    sealed.require(found, RULES, where)
    fingerprint = found["fingerprint"]
    for name, rules in (("fingerprint", FINGERPRINT), ("host", HOST), ("scaler", MADE), ("data", DATA)):
        sealed.require(
            fingerprint if name == "fingerprint" else fingerprint[name], rules, f"{where}: {name}", extra=True
        )
    if found.get(AT) == "tower" and found["router_inputs"] is not None:
        sealed.require(found.get("projector"), PROJECTED, f"{where}: projector", extra=True)


def _compared(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two manifests must have in common: the fingerprint, and of the rest what ``now`` says."""

    def flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {AT: manifest.get("router_inputs") and "projector", **manifest}
        return {**manifest.get("fingerprint", {}), **{key: manifest.get(key) for key in now if key != "fingerprint"}}

    return flat(stored), flat(now)


FEEDBACK = RunKind(
    version=FORMAT,
    without="no feedback. Make it with 'tokenflex feedback RECIPE'.",
    made="was scored with",
    instead="score into another folder",
    require=_require_manifest,
    compared=_compared,
    once=(SCALER, PROJECTOR),
)

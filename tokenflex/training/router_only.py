"""Router training without the host: what a router sees, and how well each level answers, come from a store."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.utils import ModelOutput

from tokenflex import checkpoint, compressor
from tokenflex.compressor import Compressor
from tokenflex.contracts import READ_OFF, ComponentConfig, Grid, Instruction, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.model import Encoded
from tokenflex.training.objectives import FEEDBACK
from tokenflex.training.store import FeedbackStore, StoredProjector

Part = str | ComponentConfig


@dataclass(frozen=True)
class StoredHost:
    """The facts of the host that a store was scored with.

    Attributes:
        projector: the host's own, where the store keeps tokens from before it.
    """

    model_type: str
    dim: int
    grid: Grid
    options: dict[str, Any]
    projector: StoredProjector | None = None


class RouterModel(nn.Module):
    """The parts of a `FlexModel` without a host, for stage 4 from a store with router inputs.

    Its ``save_parts`` writes what `tokenflex.load_parts` puts onto the host.
    """

    def __init__(self, parts: Compressor, host: StoredHost) -> None:
        super().__init__()
        self.compressor, self.host = parts, host

    @classmethod
    def from_store(
        cls,
        store: FeedbackStore,
        *,
        router: Part = "avg",
        voter: Part = "position-weighted",
        policy: Part = "argmax",
        dtype: torch.dtype = torch.float32,
    ) -> "RouterModel":
        """Fresh parts around the store's scaler.

        Raises:
            ConfigError: the store holds no router inputs, or its scaler isn't installed.
        """
        host = stored_host_of(store)
        chosen = {"router": router, "voter": voter, "policy": policy}
        configs = {kind: checkpoint.config_of(kind, part) for kind, part in chosen.items()}
        scaler = checkpoint.config_from("scaler", {**store.manifest["fingerprint"]["scaler"]})
        parts = compressor.build(scaler, **configs, dim=host.dim, grid=host.grid).to(dtype)
        checkpoint.fill(parts.scaler, store.scaler_weights(), str(store.folder))
        return cls(parts, host)

    @classmethod
    def from_parts(cls, folder: str | os.PathLike[str], store: FeedbackStore) -> "RouterModel":
        """Trained parts, to be trained further.

        Raises:
            ConfigError: they belong to another host or scaler than the store, or their files are damaged.
        """
        host = stored_host_of(store)
        spec, state = checkpoint.load(folder)
        parts = checkpoint.assemble(spec, host)
        checkpoint.fill(parts, state, str(folder))
        require_scaler(store, parts.scaler, str(folder))
        return cls(parts, host)

    def encode(self, batch: dict[str, Any]) -> Encoded:
        """The batch that `stored_batch` made, as a host would have encoded it."""
        images, instructions = [], []
        each = zip(batch["features"], batch["grids"], batch["rows"], batch["read"], strict=True)
        for features, (rows, cols, video), row, read in each:
            instructions.append(Instruction(batch["words"][row], batch["masks"][row]))
            instruction = instructions[-1] if "instruction" in self.compressor.needs else None
            if self.host.projector is not None and features.shape[-1] != self.host.dim:
                features = self.host.projector(features)
            image = VisualTokens(
                features, Grid(rows, cols), row=row, video=bool(video), instruction=instruction, **read
            )
            images.append(image)
        counts = self._counts(images, batch["tokens"])
        return Encoded(tuple(images), tuple(instructions), counts)

    def _counts(
        self, images: Sequence[VisualTokens], stored: Int[Tensor, "rows levels"]
    ) -> Int[Tensor, "images levels"]:
        """What each level costs: a row's tokens as they are stored, shared out among its images by what they keep."""
        if not images:
            return torch.zeros(0, self.compressor.num_levels, dtype=torch.long)
        kept = [self.compressor.scaler.granularities(image.grid) for image in images]
        own = torch.tensor([[n * len(image.features) for n in row] for row, image in zip(kept, images, strict=True)])
        own, owners = own.double(), torch.tensor([image.row for image in images])
        total = torch.zeros(stored.shape, dtype=torch.double).index_add(0, owners, own)
        return (stored.cpu()[owners] * own / total[owners].clamp(min=1)).round().long()

    def scores(self, encoded: Encoded) -> Float[Tensor, "images levels"]:
        """The voter's scores, with gradients to router and voter."""
        return self.compressor.scores(encoded.images, encoded.instructions)

    def forward(self, objective: Any, **batch: Any) -> ModelOutput:
        """What an objective makes of a batch: its loss, and what it tells besides."""
        return objective(self, batch)

    def save_parts(self, folder: str | os.PathLike[str]) -> None:
        """Write the parts, as `FlexModel.save_parts` does."""
        checkpoint.save_parts(folder, self.compressor, self.host)


@dataclass(frozen=True)
class StoredRow:
    """One sample of a store.

    Attributes:
        tokens: what its images cost at each level.
    """

    feedback: Float[Tensor, " levels"]
    tokens: Int[Tensor, " levels"]
    images: tuple[VisualTokens, ...]
    instruction: Instruction


class StoredRows(Dataset[StoredRow]):
    """A store with router inputs as a data set: item ``i`` is what was row ``i`` of the data that was scored.

    Args:
        projected: whether tokens that were kept before the projector go through it here; `RouterModel` does that
            itself, on its own device, for those of the store it was made from.
    """

    def __init__(self, store: FeedbackStore, projected: bool = False) -> None:
        store.require_complete()
        self.store, self.projected = store, projected

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> StoredRow:
        images, instruction = self.store.inputs(index) if self.projected else self.store.kept(index)
        return StoredRow(self.store.feedback(index), self.store.tokens(index), images, instruction)


def stored_batch(rows: Sequence[StoredRow]) -> dict[str, Any]:
    """Collates `StoredRow`s for `RouterModel`: tensors in lists, as sizes differ."""
    images = [(image, n) for n, row in enumerate(rows) for image in row.images]
    return {
        "features": [image.features for image, _ in images],
        "grids": [(image.grid.rows, image.grid.cols, int(image.video)) for image, _ in images],
        "rows": [n for _, n in images],
        "read": [{name: t for name in READ_OFF if (t := getattr(im, name)) is not None} for im, _ in images],
        "words": [row.instruction.embeddings for row in rows],
        "masks": [row.instruction.mask for row in rows],
        "tokens": torch.stack([row.tokens for row in rows]),
        FEEDBACK: torch.stack([row.feedback for row in rows]),
    }


class WithFeedback(Dataset[tuple[Any, Tensor]]):
    """Samples of a data set, each with its stored feedback."""

    def __init__(self, dataset: Any, store: FeedbackStore) -> None:
        store.require_complete()
        self.dataset, self.store = dataset, store

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.dataset[index], self.store.feedback(index)


class FeedbackCollator:
    """Makes batches with ``feedback`` of samples that have some, and plain ones of samples that don't."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Make a batch as the collator does that it was given, with the stored feedback."""
        if not isinstance(samples[0], tuple):
            return self.collator(samples)
        rows, feedback = zip(*samples, strict=True)
        return {**self.collator(list(rows)), FEEDBACK: torch.stack(feedback)}


def require_scaler(store: FeedbackStore, scaler: Scaler, where: str) -> None:
    """Refuse a scaler that isn't the one a store was scored with.

    Args:
        where: what it comes from, for the message.

    Raises:
        ConfigError: it has another name, other settings or other weights.
    """
    known = checkpoint.config_from("scaler", store.manifest["fingerprint"]["scaler"])
    ours, theirs = (checkpoint.described("scaler", config) for config in (scaler.config, known))
    if scaler.config != known:
        raise ConfigError(
            f"{where} has the scaler {ours}, and {store.folder} was scored with {theirs}. Score it again with these "
            "parts."
        )
    own, stored = scaler.state_dict(), store.scaler_weights()
    if own.keys() != stored.keys() or any(not torch.equal(own[name], value) for name, value in stored.items()):
        raise ConfigError(
            f"{where} has the scaler {ours} with other weights than {store.folder} was scored with. "
            "Score it again with these parts."
        )


def stored_host_of(store: FeedbackStore) -> StoredHost:
    """The host that a store was scored with.

    Raises:
        ConfigError: the store holds no router inputs.
    """
    if not store.has_inputs:
        raise ConfigError(
            f"{store.folder} holds no router inputs, so routers can't be trained from it without the host. Make it "
            "with 'tokenflex feedback RECIPE --levels-cache', or give RGLFTrainer the FlexModel."
        )
    host = store.manifest["fingerprint"]["host"]
    return StoredHost(host["model_type"], host["dim"], Grid(*host["grid"]), host["options"], store.projector)

"""When the vision tower runs: once for all levels, or for a look and then for the images that are wanted finer.

A scaler without `Scaler.shares` makes its levels of the tokens of whole images (`OnceForAll`). One with shares has an
image of its own at every level (`PerLevel`): the coarsest is encoded first, for the router, and of the others only
what is chosen.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.compressor import Compressor
from tokenflex.contracts import (
    READ_OFF,
    Grid,
    HostAdapter,
    HostBatch,
    Instruction,
    PaddingSide,
    ScaledTokens,
    Spliced,
    VisualTokens,
)

Layouts = tuple[tuple[Grid | int, ...], ...]
"""Per image and level, the grid (or number) of the tokens kept per view."""
Sizes = tuple[tuple[tuple[Grid, int], ...], ...]
"""Per image and level, the grid of an image's views and its visual tokens in all."""


@dataclass(frozen=True)
class Encoded:
    """A batch whose levels can be decided.

    Attributes:
        images: what the router looks at, one item per image, in batch order: the images as they are, or the coarsest
            ones where every level has its own; then none where nobody was to look.
        instructions: one per image: that of its row.
        counts: ``(images, levels)``, visual tokens each level costs, on the CPU.
        batch: what was read of it before; None where there is no host.
        layouts: what is kept per view; empty where there is no host.
        sizes: per image and level, the size of the image it is made of; empty where all levels are made of one.
        made: what has been made of it since, by name. New images need a new dict.
    """

    images: tuple[VisualTokens, ...]
    instructions: tuple[Instruction, ...]
    counts: Int[Tensor, "images levels"]
    batch: HostBatch | None = None
    layouts: Layouts = ()
    sizes: Sizes = ()
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Chosen:
    """Every image of a batch at its level, ready for the text.

    Attributes:
        batch: that the images stand in: as it was read, or as the processor makes it of smaller images.
        images: the tokens of these images.
        scaled: what is kept of them.
    """

    batch: HostBatch
    images: Sequence[VisualTokens]
    scaled: Sequence[ScaledTokens]

    def splice(self, adapter: HostAdapter, side: PaddingSide | None, rows: Sequence[int] | None = None) -> Spliced:
        """The shortened batch, or some of its rows; `Spliced.index` counts in the caller's sequence."""
        given: Mapping[str, Any] = {} if rows is None else {"rows": rows}
        made = adapter.splice(self.batch, self.images, self.scaled, side, **given)
        origin = self.batch.origin
        if origin is None:
            return made
        origin = origin if rows is None else origin[list(rows)]
        index = origin.gather(1, made.index.clamp(min=0)).masked_fill(made.index < 0, -1)
        return replace(made, index=index)


class Tower(ABC):
    """A host's vision tower, as an assembly has it run.

    Args:
        adapter: of the host.
        parts: the assembly.
    """

    def __init__(self, adapter: HostAdapter, parts: Compressor) -> None:
        self.adapter, self.parts = adapter, parts

    def with_instructions(
        self, images: Sequence[VisualTokens], instructions: Sequence[Instruction], numbers: Iterable[int]
    ) -> tuple[VisualTokens, ...]:
        """The images with their instructions, where parts read them.

        Args:
            instructions: of all images of the batch.
            numbers: of these images.
        """
        if "instruction" not in self.parts.needs:
            return tuple(images)
        return tuple(replace(image, instruction=instructions[i]) for image, i in zip(images, numbers, strict=True))

    @abstractmethod
    def levels(self, batch: HostBatch) -> tuple[Int[Tensor, "images levels"], Layouts, Sizes]:
        """(What every level costs, what it keeps per view, the sizes of its images), before anything is encoded."""

    @abstractmethod
    def look(self, batch: HostBatch, looked_at: bool) -> tuple[VisualTokens, ...]:
        """What has to be encoded before levels are chosen.

        Args:
            looked_at: whether somebody chooses by what is seen.
        """

    @abstractmethod
    def chosen(self, encoded: Encoded, batch: HostBatch, levels: Sequence[int]) -> Chosen:
        """Every image at its level.

        Args:
            batch: what was encoded, or the same with other labels.
        """


class OnceForAll(Tower):
    """All levels are made of one encoding."""

    def levels(self, batch: HostBatch) -> tuple[Int[Tensor, "images levels"], Layouts, Sizes]:
        """Counts, layouts and sizes by the grids of the images as they are."""
        scaler, levels = self.parts.scaler, range(self.parts.num_levels)
        layouts = tuple(scaler.layouts(grid) for grid in batch.grids)
        frames = [[scaler.kept_views(n, i) for i in levels] if n else None for n in batch.frames]
        return self.adapter.count(batch, layouts, frames).view(-1, len(levels)), layouts, ()

    def look(self, batch: HostBatch, looked_at: bool) -> tuple[VisualTokens, ...]:
        """Everything, as every level is made of it."""
        read = self.parts.needs.intersection(READ_OFF)
        return self.adapter.encode(batch, attention=True) if read else self.adapter.encode(batch)

    def chosen(self, encoded: Encoded, batch: HostBatch, levels: Sequence[int]) -> Chosen:
        """Of the pyramid that was made for the router, where gradients aren't to reach the features through it.

        The pyramid holds zeros in place of images that aren't finite, so a decision must have shown that there are
        none.
        """
        pyramids = encoded.made.get("pyramids") if encoded.made.get("judged") else None
        if pyramids is not None and not _trains(encoded.images):
            return Chosen(batch, encoded.images, pyramids.at(levels))
        return Chosen(batch, encoded.images, self.parts.scale(encoded.images, levels))


class PerLevel(Tower):
    """Every level has an image of its own, which is encoded once and only if it is wanted."""

    def levels(self, batch: HostBatch) -> tuple[Int[Tensor, "images levels"], Layouts, Sizes]:
        """Counts, layouts and sizes by the grids of the images that the host's processor makes for every level."""
        scaler, images = self.parts.scaler, len(batch.spans)
        counts, layouts, sizes = list[Tensor](), list[list[Grid | int]](), list[list[tuple[Grid, int]]]()
        for level, share in enumerate(scaler.shares):
            made = self.adapter.resized(batch, [share] * images)
            kept = [scaler.layouts(grid)[level] for grid in made.grids]
            frames = [[scaler.kept_views(n, level)] if n else None for n in made.frames]
            counts.append(self.adapter.count(made, [[one] for one in kept], frames).view(-1, 1))
            whole = self.adapter.count(made, [[grid] for grid in made.grids]).flatten().tolist()
            layouts.append(kept)
            sizes.append(list(zip(made.grids, whole, strict=True)))
        return torch.cat(counts, dim=-1), tuple(zip(*layouts, strict=True)), tuple(zip(*sizes, strict=True))

    def look(self, batch: HostBatch, looked_at: bool) -> tuple[VisualTokens, ...]:
        """The images at the coarsest level's size, encoded."""
        images = len(batch.spans) if looked_at else 0
        return self._encoded(batch, self.parts.scaler.shares[:1] * len(batch.spans), range(images))

    def chosen(self, encoded: Encoded, batch: HostBatch, levels: Sequence[int]) -> Chosen:
        """What was encoded for the router, or for a level of the same size, is taken from there; the rest is new."""
        shares = [self.parts.scaler.shares[level] for level in levels]
        wanted = [(i, encoded.sizes[i][level]) for i, level in enumerate(levels)]
        looked_at = {(i, encoded.sizes[i][0]): image for i, image in enumerate(encoded.images)}
        known: dict[tuple[int, tuple[Grid, int]], VisualTokens] = encoded.made.setdefault("resized", looked_at)
        missing = [i for i, asked in enumerate(wanted) if asked not in known]
        found = self.with_instructions(self._encoded(batch, shares, missing), encoded.instructions, missing)
        known.update(zip((wanted[i] for i in missing), found, strict=True))
        images = [known[asked] for asked in wanted]
        return Chosen(self.adapter.resized(batch, shares), images, self.parts.scale(images, levels))

    def _encoded(self, batch: HostBatch, shares: Sequence[float], images: Sequence[int]) -> tuple[VisualTokens, ...]:
        """One pass of the tower over some of the images; over whole images alone as the host makes it."""
        if not images:
            return ()
        if len(images) == len(shares) and all(share == 1 for share in shares):
            return self.adapter.encode(batch)
        return self.adapter.encode_resized(batch, shares, images)


def tower_of(adapter: HostAdapter, parts: Compressor) -> Tower:
    """How the tower runs for an assembly."""
    return PerLevel(adapter, parts) if parts.scaler.shares else OnceForAll(adapter, parts)


def _trains(images: Sequence[VisualTokens]) -> bool:
    """Whether gradients are to reach the images' features through the scaler."""
    return torch.is_grad_enabled() and any(image.features.requires_grad for image in images)

"""Scaler + router + voter + policy: from an image and an instruction to a decision and its tokens."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflex.contracts import (
    ComponentConfig,
    Grid,
    Instruction,
    Need,
    Policy,
    Router,
    ScaledTokens,
    Scaler,
    VisualTokens,
    Voter,
)
from tokenflex.ops.assignment import beside

Pyramid = tuple[ScaledTokens, ...]


class Compressor(nn.Module):
    """The four parts of one assembly. Images of equal geometry go through every part as one batch."""

    def __init__(self, scaler: Scaler, router: Router, voter: Voter, policy: Policy) -> None:
        super().__init__()
        self.scaler, self.router, self.voter, self.policy = scaler, router, voter, policy

    @property
    def num_levels(self) -> int:
        """Number of granularities."""
        return self.scaler.num_levels

    @property
    def needs(self) -> frozenset[Need]:
        """What scaler and router read of images besides features and grid."""
        return self.scaler.needs | self.router.needs

    def scale(self, images: Sequence[VisualTokens], levels: Sequence[int]) -> list[ScaledTokens]:
        """Every image at its level."""
        scaled: list[ScaledTokens | None] = [None] * len(images)
        for members in _groups((_geometry(im), level) for im, level in zip(images, levels, strict=True)):
            one = self.scaler.scale(_stack([images[i] for i in members]), levels[members[0]])
            for i, item in zip(members, _unstack(one), strict=True):
                scaled[i] = item
        return [item for item in scaled if item is not None]

    def scores(
        self, images: Sequence[VisualTokens], instructions: Sequence[Instruction]
    ) -> Float[Tensor, "images levels"]:
        """The voter's scores, float32. Router inputs are detached: scoring trains router and voter only.

        Args:
            instructions: one per image.
        """
        groups = _groups(_geometry(image) for image in images)
        rows: list[Tensor] = []
        dtype = next((p.dtype for p in self.router.parameters()), torch.float32)
        for members in groups:
            stack = _stack([images[i] for i in members], detach=True, dtype=dtype)
            words = _stack_words([instructions[i] for i in members], dtype)
            with torch.no_grad():
                pyramid = self.pyramid(stack)
            rows.append(self.voter(self.router(pyramid, words)).float())
        table = torch.cat(rows)
        places = torch.tensor([i for members in groups for i in members]).argsort()
        return table.index_select(0, beside(places, table))

    def pyramid(self, tokens: VisualTokens) -> Sequence[ScaledTokens]:
        """Every level of one image or stack, with what the router needs of its source."""
        levels = self.scaler.pyramid(tokens)
        if "attention" not in self.router.needs:
            return levels
        return [replace(level, attention=tokens.attention) for level in levels]

    def choose(
        self,
        scores: Float[Tensor, "images levels"],
        tokens: Int[Tensor, "images levels"],
        images: Sequence[VisualTokens],
        policy: Policy | None = None,
    ) -> list[int]:
        """The level per image; the only place where a decision leaves the device.

        Args:
            tokens: what each level would cost.
            images: whose requests (rows of the batch) and views policies may ask for.
            policy: instead of the assembly's own.
        """
        policy = policy or self.policy
        if policy.per_view and images:
            tokens = torch.tensor([self.scaler.granularities(image.grid) for image in images])
        tokens = tokens.to(scores.device)
        if not policy.couples:
            return policy(scores, tokens).tolist()
        groups = [beside(torch.tensor(members), scores) for members in _groups(image.row for image in images)]
        levels = torch.cat([policy(scores[members], tokens[members]) for members in groups])
        return levels[torch.cat(groups).argsort()].tolist()


def build(
    scaler: ComponentConfig,
    router: ComponentConfig,
    voter: ComponentConfig,
    policy: ComponentConfig,
    *,
    dim: int,
    grid: Grid,
) -> Compressor:
    """Size the four parts for a host and assemble them.

    Args:
        dim: width of the host's language model.
        grid: the host's canonical grid.
    """
    made: Scaler = scaler.build(dim=dim, grid=grid)
    sizes = {"dim": dim, "grid": grid, "num_levels": made.num_levels}
    routes: Router = router.build(**sizes)
    grids = [kept if isinstance(kept, Grid) else Grid(1, kept) for kept in made.layouts(grid)]
    sizes["segments"] = routes.segments(grids)
    return Compressor(made, routes, voter.build(**sizes), policy.build(**sizes))


def _geometry(image: VisualTokens) -> tuple[object, ...]:
    return (image.grid, image.features.shape, image.features.device, len(image.planes), image.clip)


def _groups(keys: Iterable[object]) -> list[list[int]]:
    members: dict[object, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    return list(members.values())


def _stack(images: Sequence[VisualTokens], detach: bool = False, dtype: torch.dtype | None = None) -> VisualTokens:
    def joined(tensors: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack([t.detach() if detach else t for t in tensors])
        return stacked if dtype is None else stacked.to(dtype)

    def given(found: Sequence[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in found if tensor is not None]
        return torch.stack(there) if there else None

    planes = zip(*(image.planes for image in images), strict=True)
    words = [image.instruction for image in images if image.instruction is not None]
    return VisualTokens(
        joined([image.features for image in images]),
        images[0].grid,
        planes=tuple(joined(plane) for plane in planes),
        clip=images[0].clip,
        attention=given([image.attention for image in images]),
        keys=given([image.keys for image in images]),
        instruction=_stack_words(words, dtype or words[0].embeddings.dtype) if words else None,
    )


def _unstack(scaled: ScaledTokens) -> list[ScaledTokens]:
    pairs = zip(scaled.features, scaled.assignment, strict=True)
    return [replace(scaled, features=features, assignment=assignment) for features, assignment in pairs]


def _stack_words(instructions: Sequence[Instruction], dtype: torch.dtype) -> Instruction:
    embeddings = nn.utils.rnn.pad_sequence([i.embeddings.detach() for i in instructions], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([i.mask for i in instructions], batch_first=True)
    return Instruction(embeddings.to(dtype), mask)

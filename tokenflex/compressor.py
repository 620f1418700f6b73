"""Scaler + router + voter + policy: from an image and an instruction to a decision and its tokens."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenflex.contracts import (
    Ballots,
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
from tokenflex.contracts.levels import read_levels, spread
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.assignment import on_device_of

Pyramid = tuple[ScaledTokens, ...]
ON_BAD_SCORES = ("raise", "finest")
STEP = 1e18
"""What a finer level gains where the finest is wanted whatever it costs: more than scores that were given."""


@dataclass(frozen=True)
class Stacked:
    """What the router sees of a stack of images.

    Attributes:
        levels: `Scaler.view`, as a rule every level, coarse to fine; in the images' own type and without gradients.
        readable: which images hold finite numbers only; the others' levels are made of zeros.
        attention: `VisualTokens.attention` of the stack.
    """

    levels: Pyramid
    readable: Bool[Tensor, " images"]
    attention: Tensor | None


@dataclass(frozen=True)
class Pyramids:
    """What the router sees of every image of a batch, made once; where that is every level, the host gets one of them.

    Attributes:
        groups: numbers of the images in each stack of equal geometry.
        stacks: one per group.
    """

    groups: list[list[int]]
    stacks: list[Stacked]

    def at(self, levels: Sequence[int]) -> list[ScaledTokens]:
        """Every image at its level, in batch order; only of scalers without `Scaler.shares`."""
        found: dict[int, ScaledTokens] = {}
        for members, stack in zip(self.groups, self.stacks, strict=True):
            for level in sorted({levels[i] for i in members}):
                items = _unstack(stack.levels[level])
                found |= {i: items[place] for place, i in enumerate(members) if levels[i] == level}
        return [found[i] for i in range(len(found))]


@dataclass(frozen=True)
class Choice:
    """What was decided for a batch's images, on the CPU.

    Attributes:
        levels: one per image.
        scores: of the voter.
        judged: whether an image's best score is a finite number.
        reasons: `Policy.reasons`, empty ones where it gives none.
    """

    levels: list[int]
    scores: Float[Tensor, "images levels"]
    judged: list[bool]
    reasons: list[str]


class Compressor(nn.Module):
    """The four parts of one assembly. Images of equal geometry go through every part as one batch.

    `on_bad_scores` says what becomes of an image that can't be judged: one whose features (or what else the parts read
    of it) or ballots aren't finite numbers, or none of whose levels has a finite score as its best. A score of ``-inf``
    is a level ruled out, as long as another is left.

    - ``"raise"``, the default: an error that names the image.
    - ``"finest"``: the finest level that the policy allows it, as if no other image's tokens were worth as much; a
      budget holds all the same, and other images of its request share what is left.

    It belongs to the session, not to the assembly: it isn't saved.
    """

    def __init__(self, scaler: Scaler, router: Router, voter: Voter, policy: Policy) -> None:
        super().__init__()
        self.scaler, self.router, self.voter, self.policy = scaler, router, voter, policy
        self._on_bad_scores = "raise"

    @property
    def on_bad_scores(self) -> str:
        """What becomes of images that can't be judged."""
        return self._on_bad_scores

    @on_bad_scores.setter
    def on_bad_scores(self, what: str) -> None:
        if what not in ON_BAD_SCORES:
            raise ConfigError(f"on_bad_scores={what!r}; use one of {', '.join(map(repr, ON_BAD_SCORES))}.")
        self._on_bad_scores = what

    @property
    def num_levels(self) -> int:
        """How many granularities there are."""
        return self.scaler.num_levels

    @property
    def needs(self) -> frozenset[Need]:
        """What scaler and router read of images besides features and grid."""
        return self.scaler.needs | self.router.needs

    def scale(self, images: Sequence[VisualTokens], levels: Sequence[int]) -> list[ScaledTokens]:
        """Every image at its level.

        Raises:
            InputError: there is no such level, or not one per image.
        """
        levels = spread(read_levels(levels, self.num_levels), len(images))
        scaled: list[ScaledTokens | None] = [None] * len(images)
        for members in _groups((_geometry(im), level) for im, level in zip(images, levels, strict=True)):
            one = self.scaler.scale(_stack([images[i] for i in members]), levels[members[0]])
            for i, item in zip(members, _unstack(one), strict=True):
                scaled[i] = item
        return [item for item in scaled if item is not None]

    def scores(
        self,
        images: Sequence[VisualTokens],
        instructions: Sequence[Instruction],
        pyramids: Pyramids | None = None,
    ) -> Float[Tensor, "images levels"]:
        """The voter's scores, float32. Router inputs are detached: scoring trains router and voter only.

        An image whose features, or what else is read of it, aren't finite is kept from the router; its scores are NaN.
        So are those of an image on which a ballot is NaN, whatever the voter makes of it.

        Args:
            instructions: one per image.
            pyramids: of the images, where they are made already.
        """
        return self.judged(images, instructions, pyramids)[0]

    def judged(
        self, images: Sequence[VisualTokens], instructions: Sequence[Instruction], pyramids: Pyramids | None = None
    ) -> tuple[Float[Tensor, "images levels"], Pyramids]:
        """(`scores`, what the router saw of the images); arguments as for `scores`."""
        groups = _groups(_geometry(image) for image in images) if pyramids is None else pyramids.groups
        known: Sequence[Stacked | None] = [None] * len(groups) if pyramids is None else pyramids.stacks
        dtype = next((p.dtype for p in self.router.parameters()), torch.float32)
        stacks, rows = list[Stacked](), list[Tensor]()
        for members, made in zip(groups, known, strict=True):
            stack = made or _stack([images[i] for i in members], detach=True)
            made, scores = self(
                stack, _stacked_instructions([instructions[i] for i in members], dtype, self.router.casts)
            )
            stacks.append(made)
            rows.append(scores)
        pyramids = pyramids or Pyramids(groups, stacks)
        if len(groups) == 1:
            return rows[0], pyramids
        table = torch.cat(rows)
        places = torch.tensor([i for members in groups for i in members]).argsort()
        return table.index_select(0, on_device_of(places, table)), pyramids

    def forward(
        self, stack: VisualTokens | Stacked, instruction: Instruction
    ) -> tuple[Stacked, Float[Tensor, "images levels"]]:
        """(What a router sees of a stack, its scores); tensor operations only: `FlexModel.compile` makes them a graph.

        Args:
            stack: images without gradients, or what the router sees of them where that is made already.
            instruction: in the router's type (or a finer one, see `Router.casts`), one instruction per image.
        """
        if isinstance(stack, VisualTokens):
            with torch.no_grad():
                readable = _finite(stack)
                clean = _blanked(stack, readable)
                stack = Stacked(tuple(self.scaler.view(clean)), readable, clean.attention)
        ballots = self.router(self._shown(stack.levels, stack.attention, instruction.embeddings.dtype), instruction)
        if ballots.logits.shape[-1] != self.num_levels:
            raise ConfigError(_miscounted(self.router, ballots.logits.shape[-1], self.scaler))
        judged = stack.readable & _counted(ballots).flatten(1).all(-1)
        return stack, self.voter(ballots).float().masked_fill(~judged[:, None], torch.nan)

    def _shown(self, levels: Pyramid, attention: Tensor | None, dtype: torch.dtype) -> Pyramid:
        """The levels as the router sees them: in its type, with what it needs of their source."""
        with_attention = attention if "attention" in self.router.needs else None
        own = [torch.promote_types(one.features.dtype, dtype) if self.router.casts else dtype for one in levels]
        return tuple(
            replace(one, features=one.features.to(kind), attention=with_attention)
            for one, kind in zip(levels, own, strict=True)
        )

    def choose(
        self,
        scores: Float[Tensor, "images levels"],
        tokens: Int[Tensor, "images levels"],
        images: Sequence[VisualTokens],
        policy: Policy | None = None,
    ) -> list[int]:
        """The level per image; arguments and errors as for `decided`."""
        return self.decided(scores, tokens, images, policy).levels

    def decided(
        self,
        scores: Float[Tensor, "images levels"],
        tokens: Int[Tensor, "images levels"],
        images: Sequence[VisualTokens],
        policy: Policy | None = None,
    ) -> Choice:
        """The level per image; the only place where decisions leave the device, in one copy.

        Args:
            tokens: what each level would cost, for an image or, as `Policy.per_view` wants it, for each of its views.
            images: whose requests (rows of the batch) policies may ask for.
            policy: instead of the assembly's own.

        Raises:
            InputError: images can't be judged, and `on_bad_scores` is ``"raise"``.
        """
        policy = policy or self.policy
        tokens = tokens.to(scores.device)
        judged = is_judged(scores)
        bound = STEP * torch.arange(scores.shape[-1], device=scores.device, dtype=scores.dtype)
        usable = torch.where(judged[:, None], scores, bound)
        reasons = [""] * len(scores)
        if policy.couples:
            rows = _groups(image.row for image in images)
            groups = [on_device_of(torch.tensor(members), scores) for members in rows]
            levels = torch.cat([policy(usable[members], tokens[members]) for members in groups])
            levels = levels[torch.cat(groups).argsort()]
            for members, group in zip(rows, groups, strict=True):
                for i, reason in zip(members, policy.reasons(usable[group], tokens[group]) or (), strict=False):
                    reasons[i] = reason
        else:
            levels = policy(usable, tokens)
            reasons = list(policy.reasons(usable, tokens) or reasons)
        table = torch.cat([scores.detach(), torch.stack([levels, judged.to(levels)], dim=-1).to(scores)], dim=-1).cpu()
        chosen, fine = table[:, -2:].long().T.tolist()
        if self.on_bad_scores == "raise":
            _refuse(fine, images)
        return Choice(chosen, table[:, :-2], [bool(each) for each in fine], reasons)

    def require_judged(self, scores: Float[Tensor, "images levels"], images: Sequence[VisualTokens]) -> None:
        """Refuse scores that say nothing, as training on them would spoil router and voter.

        Raises:
            InputError: images can't be judged; the message names them and their rows.
        """
        _refuse(is_judged(scores).tolist(), images)


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
    routes: Router = router.build(dim=dim, grid=grid, num_levels=made.num_levels)
    known = sizes(made, routes, dim=dim, grid=grid)
    return Compressor(made, routes, voter.build(**known), policy.build(**known))


def sizes(scaler: Scaler, router: Router, *, dim: int, grid: Grid) -> dict[str, Any]:
    """What voters and policies may be built for: ``dim``, ``grid``, ``num_levels`` and ``segments``.

    Args:
        dim, grid: as for `build`.
    """
    grids = [kept if isinstance(kept, Grid) else Grid(1, kept) for kept in scaler.viewed(grid)]
    return {"dim": dim, "grid": grid, "num_levels": scaler.num_levels, "segments": router.segments(grids)}


def _miscounted(router: Router, found: int, scaler: Scaler) -> str:
    return (
        f"{type(router).__name__} votes about {found} levels, and {type(scaler).__name__} has {scaler.num_levels}. "
        "A router that compares the levels it is shown needs a scaler that shows it all of them, which one with "
        "smaller images doesn't; use the router 'avg' or 'constant' with it."
    )


def is_judged(scores: Float[Tensor, "images levels"]) -> Bool[Tensor, " images"]:
    """Which images have a best score that is a finite number."""
    return scores.amax(-1).isfinite()


def _refuse(judged: Sequence[int], images: Sequence[VisualTokens]) -> None:
    wrong = [i for i, fine in enumerate(judged) if not fine]
    if not wrong:
        return
    named = [f"image {i}" + (f" (row {images[i].row} of the batch)" if i < len(images) else "") for i in wrong]
    raise InputError(
        f"no level can be chosen for {', '.join(named)}: features or scores are NaN or infinite. Look for such values "
        "in pixel_values, or for weights or a dtype that overflow; force the level with level=; or set "
        "flex.compressor.on_bad_scores = 'finest' to give such images the finest level that the policy allows."
    )


def _finite(stack: VisualTokens) -> Bool[Tensor, " images"]:
    """Which images of a stack have nothing but finite numbers."""
    read = [tensor for tensor in (stack.features, *stack.planes, stack.attention, stack.keys) if tensor is not None]
    # Neither extreme is finite where one value isn't, and unlike isfinite() this makes nothing of the tokens' size.
    extremes = [extreme for tensor in read for extreme in tensor.flatten(1).aminmax(dim=-1)]
    return torch.stack([extreme.isfinite() for extreme in extremes]).all(0)


def _blank(tensor: Tensor, keep: Bool[Tensor, " images"]) -> Tensor:
    """Zeros in place of whatever the other images hold."""
    return torch.where(keep.view(-1, *(1,) * (tensor.ndim - 1)), tensor, 0.0)


def _blanked(stack: VisualTokens, keep: Bool[Tensor, " images"]) -> VisualTokens:
    """The stack with zeros in place of whatever the other images hold."""
    return replace(
        stack,
        features=_blank(stack.features, keep),
        planes=tuple(_blank(plane, keep) for plane in stack.planes),
        attention=None if stack.attention is None else _blank(stack.attention, keep),
        keys=None if stack.keys is None else _blank(stack.keys, keep),
    )


def _counted(ballots: Ballots) -> Bool[Tensor, "images views voters"]:
    """Which ballots are no NaN, or don't count."""
    return ~ballots.mask | ~ballots.logits.isnan().any(-1)


def _geometry(image: VisualTokens) -> tuple[object, ...]:
    return (image.grid, image.features.shape, image.features.device, len(image.planes), image.video)


def _groups(keys: Iterable[object]) -> list[list[int]]:
    members: dict[object, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    return list(members.values())


def _stack(images: Sequence[VisualTokens], detach: bool = False) -> VisualTokens:
    def joined(tensors: Sequence[Tensor]) -> Tensor:
        """One image is stacked without a copy."""
        found = [tensor.detach() if detach else tensor for tensor in tensors]
        return found[0][None] if len(found) == 1 else torch.stack(found)

    def stacked_or_none(found: Sequence[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in found if tensor is not None]
        return joined(there) if there else None

    planes = zip(*(image.planes for image in images), strict=True)
    instructions = [image.instruction for image in images if image.instruction is not None]
    return VisualTokens(
        joined([image.features for image in images]),
        images[0].grid,
        planes=tuple(joined(plane) for plane in planes),
        video=images[0].video,
        attention=stacked_or_none([image.attention for image in images]),
        keys=stacked_or_none([image.keys for image in images]),
        instruction=_stacked_instructions(instructions, instructions[0].embeddings.dtype) if instructions else None,
    )


def _unstack(scaled: ScaledTokens) -> list[ScaledTokens]:
    pairs = zip(scaled.features, scaled.assignment, strict=True)
    return [replace(scaled, features=features, assignment=assignment) for features, assignment in pairs]


def _stacked_instructions(instructions: Sequence[Instruction], dtype: torch.dtype, finer: bool = False) -> Instruction:
    """Padded to the longest.

    Args:
        finer: keep their own type where it is finer than ``dtype``.
    """
    embeddings = nn.utils.rnn.pad_sequence([i.embeddings.detach() for i in instructions], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([i.mask for i in instructions], batch_first=True)
    return Instruction(embeddings.to(torch.promote_types(embeddings.dtype, dtype) if finer else dtype), mask)

"""What a serving engine needs of a batch: each row's ids, its images' embeddings, and what was decided about them.

The vision tower, the scaler and the router run here; the language model doesn't. It runs in the engine, which gets the
embeddings in place of pixels and knows the number of visual tokens before it schedules anything.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenflex.contracts import Decision, HostBatch, HostInputs, Spliced
from tokenflex.errors import InputError
from tokenflex.hosts.grid_thw import IMAGE_GRID
from tokenflex.hosts.packed import ENCODED, SHARED
from tokenflex.hosts.placeholders import PLACEHOLDER, POSITIONS
from tokenflex.model import door, encoding, request
from tokenflex.model.request import Budgets, Level
from tokenflex.ops.transfer import to_cpu

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any

DEEP = "deepstack_features"


@dataclass(frozen=True, eq=False)
class ExportedImage:
    """One image of a request.

    Attributes:
        embeddings: ``(tokens, dim)`` on the CPU, in the host's type: exactly what stands at the image's placeholders,
            the vectors that hosts put between rows of tokens included.
        grid: ``(time, height, width)`` in patches, as ``image_grid_thw`` has it, for hosts that place tokens by grid;
            None for the others.
        decision: the level, and what it costs.
        key: a digest of embeddings, grid and level, to cache by. Two levels never share one.
    """

    embeddings: Float[Tensor, "tokens dim"]
    grid: tuple[int, int, int] | None
    decision: Decision
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        header = (self.decision.level, self.grid, str(self.embeddings.dtype), tuple(self.embeddings.shape))
        digest.update(repr(header).encode())
        digest.update(self.embeddings.contiguous().flatten().view(torch.uint8).numpy().data)
        object.__setattr__(self, "key", digest.hexdigest())


@dataclass(frozen=True, eq=False)
class Request:
    """One row of a batch, for an engine.

    Attributes:
        prompt_ids: the row without padding, with one placeholder for every image; engines repeat it themselves.
        compact_ids: the row as the language model sees it: one placeholder for every visual token that is kept.
        visual: ``(length,)``, True at the placeholders of ``compact_ids``; on the CPU.
        images: in the order of the text.
        model_type: of the host.
        counted: None where the language model reads these ids causally, at positions 0, 1, 2, ...; otherwise what it
            does instead, as a clause. Engines that take plain embeddings of a whole prompt do nothing else.
    """

    prompt_ids: tuple[int, ...]
    compact_ids: tuple[int, ...]
    visual: Bool[Tensor, " length"]
    images: tuple[ExportedImage, ...]
    model_type: str
    counted: str | None = None

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that the language model will see."""
        return sum(image.decision.tokens for image in self.images)

    @property
    def visual_tokens_full(self) -> int:
        """Visual tokens that it would see at the finest level."""
        return sum(image.decision.of for image in self.images)


@torch.no_grad()
def export(flex: FlexModel, inputs: HostInputs, level: Level = None, budget: Budgets = None) -> tuple[Request, ...]:
    """One request per row of the batch.

    Args:
        inputs: as the host's processor made them.
        level, budget: as for `FlexModel.prepare`.

    Raises:
        InputError: as for `FlexModel.prepare`; the batch has videos; or the host takes more of an image than one
            embedding per token, or places tokens in a way, that can't be handed on.
        ConfigError: as for `FlexModel.prepare`.
    """
    request.check(flex, inputs, level, budget)
    door.check(inputs, flex.adapter)
    levels, policy = request.read(level, budget, flex.compressor.num_levels)
    encoded = encoding.encode(flex, inputs, look=levels is None)
    batch = encoded.batch
    assert batch is not None
    decisions = encoding.decide(flex, encoded, levels, policy)
    spliced = encoding.at_levels(flex, inputs, encoded, [decision.level for decision in decisions])
    _require_exportable(flex, batch, spliced)
    order = sorted(range(len(batch.spans)), key=lambda i: (batch.spans[i].row, int(batch.spans[i].at[0])))
    features, grids = _embeddings(spliced, [spliced.tokens[i] for i in order]), _grids(spliced, len(order))
    images: list[list[ExportedImage]] = [[] for _ in range(len(batch.attended))]
    for place, i in enumerate(order):
        images[batch.spans[i].row].append(ExportedImage(features[place], grids[place], decisions[i]))
    counted = _counted(flex, spliced)
    return tuple(
        Request(
            prompt_ids=_prompt(batch, row),
            compact_ids=tuple(ids[real].tolist()),
            visual=(index == PLACEHOLDER)[real],
            images=tuple(images[row]),
            model_type=flex.adapter.model_type,
            counted=counted,
        )
        for row, (ids, real, index) in enumerate(zip(*_rows(spliced), spliced.index, strict=True))
    )


def _require_exportable(flex: FlexModel, batch: HostBatch, spliced: Spliced) -> None:
    """Refuse what an engine has no way to take.

    Raises:
        InputError: it says what that is, and how to go on.
    """
    kind, outputs = flex.adapter.model_type, spliced.inputs.get(ENCODED) or {}
    if any(batch.frames) or set(outputs) - {"image"}:
        raise InputError("the batch has videos; only images are exported. Call flex.generate for it.")
    for output in outputs.values():
        if output.get(DEEP):
            raise InputError(
                f"{kind} takes {len(output[DEEP])} further planes of every image deeper in the language model "
                "(DeepStack), and engines take one embedding per token. Call flex.generate, or 'tokenflex serve' with "
                "--engine transformers."
            )
        extra = [name for name in SHARED if output.get(name) is not None]
        if extra:
            raise InputError(
                f"{kind} takes {', '.join(extra)} besides an image's embeddings, which engines don't. Call "
                "flex.generate, or 'tokenflex serve' with --engine transformers."
            )
    places = spliced.inputs.get(POSITIONS)
    if isinstance(places, Tensor) and places.dim() > 2:
        raise InputError(
            f"{kind} has positions='span': an image's tokens keep their places in the finest grid, and an engine is "
            "told a grid only. Choose compact positions: "
            f"adapter=tokenflex.hosts.get({kind!r})(host, positions='compact'), given to wrap() or load_parts(). Train "
            "the router with the positions it is served with."
        )


def _rows(spliced: Spliced) -> tuple[Tensor, Tensor]:
    """Ids and attended places of every row, on the CPU."""
    tensors = {"ids": spliced.inputs["input_ids"], "mask": spliced.inputs.get("attention_mask")}
    found = to_cpu({name: value for name, value in tensors.items() if value is not None})
    return found["ids"], found["mask"] != 0 if "mask" in found else torch.ones_like(found["ids"], dtype=torch.bool)


def _embeddings(spliced: Spliced, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Every image's embeddings, row by row in the order of the text, on the CPU."""
    if not sizes:
        return ()
    layer = spliced.inputs[ENCODED]["image"]["pooler_output"]
    flat = layer.flatten(0, -2) if isinstance(layer, Tensor) else torch.cat([entry.flatten(0, -2) for entry in layer])
    return flat.detach().cpu().split(list(sizes))


def _grids(spliced: Spliced, images: int) -> list[tuple[int, int, int] | None]:
    grids = spliced.inputs.get(IMAGE_GRID)
    if grids is None:
        return [None] * images
    return [(int(time), int(height), int(width)) for time, height, width in grids.tolist()]


def _prompt(batch: HostBatch, row: int) -> tuple[int, ...]:
    """The row's ids with one placeholder per image, and nothing of what stands between an image's placeholders."""
    keep = batch.attended[row].clone()
    for span in batch.spans:
        if span.row == row:
            keep[int(span.at[0]) + 1 : int(span.at[-1]) + 1] = False
    return tuple(batch.cpu["input_ids"][row][keep].tolist())


def _counted(flex: FlexModel, spliced: Spliced) -> str | None:
    """Why a prompt of plain embeddings wouldn't be read as the host reads it; None where it would."""
    if flex.adapter.position_ids(spliced.inputs) is not None:
        return "it places visual tokens by rows and columns"
    return flex.adapter.packing_refusal

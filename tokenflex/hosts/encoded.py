"""The encoder's output, read into the images of a batch and written for a shortened one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import Grid, ScaledTokens, VisualTokens
from tokenflex.errors import InputError
from tokenflex.hosts.architecture import Architecture
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import BatchImage
from tokenflex.ops.assignment import mean_of_sources


@dataclass
class EncoderOutputs(ModelOutput):
    """What hosts take as pre-encoded images.

    Attributes:
        pooler_output: a list of ``(tokens, dim)``, one per row of the batch that has images, or one tensor
            ``(tokens, 1, dim)``.
        deepstack_features: per layer the same, added deeper in the host.
        visual_indicator_features: ``(marks, dim)``, embeddings of the text tokens around images (Ovis2).
        router_logits: never set; one host asks for it.
    """

    pooler_output: Any = None
    deepstack_features: Any = None
    visual_indicator_features: Tensor | None = None
    router_logits: Tensor | None = None


def kept_of(scaled: ScaledTokens) -> Grid | int:
    """The grid of one view's kept tokens, or their number where they form none."""
    return scaled.grid if scaled.grid is not None else scaled.features.shape[-2]


def moved(image: VisualTokens, scaled: ScaledTokens, depth: int) -> Tensor:
    """``(views, kept, dim)``: the kept features (depth 0), or plane ``depth``, averaged over the same source tokens."""
    if depth == 0:
        return scaled.features
    kept = scaled.features.shape[-2]
    return mean_of_sources(image.planes[depth - 1], scaled.assignment, kept, scaled.frames, scaled.averages)


def read(output: Any, items: Sequence[BatchImage], mark_field: str | None) -> list[VisualTokens]:
    """The tokens of every image from what the host's encoder made.

    Args:
        mark_field: field of the output that goes along as it is.

    Raises:
        InputError: that isn't what the text has room for.
    """
    sizes = [item.layout.placeholders for item in items]
    layers = [output.pooler_output, *(output.get("deepstack_features") or [])]
    rows = Counter[int]()
    for item, size in zip(items, sizes, strict=True):
        rows[item.span.row] += size
    pieces = zip(*(_flat(layer, rows).split(sizes) for layer in layers), strict=True)
    found: list[VisualTokens] = []
    for (features, *planes), item in zip(pieces, items, strict=True):
        layout = item.layout
        tokens, separators = layout.unpack(features)
        found.append(
            VisualTokens(
                tokens,
                layout.grid,
                row=item.span.row,
                planes=tuple(layout.unpack(plane)[0] for plane in planes),
                separators=output[mark_field] if mark_field else separators,
                video=layout.video,
            )
        )
    return found


def write(
    architecture: Architecture,
    items: Sequence[BatchImage],
    images: Sequence[VisualTokens],
    scaled: Sequence[ScaledTokens],
) -> dict[str, EncoderOutputs]:
    """What the host takes in place of pixels, by key."""
    outputs: dict[str, EncoderOutputs] = {}
    for key in dict.fromkeys(item.modality.key for item in items):
        own = [i for i, item in enumerate(items) if item.modality.key == key]
        own.sort(key=lambda i: (items[i].span.row, int(items[i].span.at[0])))
        rows = [items[i].span.row for i in own]
        layers = [
            _entries(
                [_packed(images[i], scaled[i], items[i].layout, depth, architecture) for i in own], rows, architecture
            )
            for depth in range(1 + len(images[own[0]].planes))
        ]
        outputs[key] = EncoderOutputs(pooler_output=layers[0], deepstack_features=layers[1:] or None)
        if architecture.mark_field:
            outputs[key][architecture.mark_field] = images[own[0]].separators
    return outputs


def _entries(packed: Sequence[Tensor], rows: Sequence[int], architecture: Architecture) -> Any:
    """One entry per row of the batch, so that beams of every host repeat rows as a whole; or all in one tensor."""
    return torch.cat(list(packed))[:, None] if architecture.flat else per_row(packed, rows)


def per_row(packed: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    """All images of a row as one entry, since ``generate`` may repeat entries one by one, which would mix up a row's.

    Args:
        packed: ``(tokens, dim)`` of every image.
        rows: that they stand in.
    """
    of_rows: dict[int, list[Tensor]] = {}
    for row, one in zip(rows, packed, strict=True):
        of_rows.setdefault(row, []).append(one)
    return [torch.cat(own) if len(own) > 1 else own[0] for own in of_rows.values()]


def _packed(
    image: VisualTokens, scaled: ScaledTokens, layout: ImageLayout, depth: int, architecture: Architecture
) -> Tensor:
    """``(packed, dim)`` of the features (depth 0) or of a plane, moved as the features were; marks in place."""
    features = moved(image, scaled, depth)
    flat = features.flatten(0, 1)
    if image.separators is None or architecture.mark_field:
        return flat
    order = torch.from_numpy(layout.order(kept_of(scaled), len(features))).to(flat.device)
    return torch.cat([flat, image.separators.to(flat)]).index_select(0, order)


def _flat(layer: Any, rows: Mapping[int, int]) -> Tensor:
    """``(placeholders, dim)`` of everything the encoder made, in order.

    Args:
        rows: placeholders of every row that has some.
    """
    flat = layer.flatten(0, -2) if isinstance(layer, Tensor) else torch.cat([entry.flatten(0, -2) for entry in layer])
    if len(flat) != sum(rows.values()):
        listed = ", ".join(f"row {row}: {count}" for row, count in rows.items())
        raise InputError(
            f"the encoder made {len(flat)} visual tokens, the text has placeholders for {sum(rows.values())} "
            f"({listed}). Make text and images with the same processor call."
        )
    return flat

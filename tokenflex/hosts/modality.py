"""Kinds of visual input, as data, and what an adapter knows of every image of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from tokenflex.contracts import HostBatch, HostInputs, Span
from tokenflex.hosts import placeholders
from tokenflex.hosts.layouts import ImageLayout

Inputs = Mapping[str, Any]
Shown = Bool[Tensor, "rows length"]
"""True at the placeholders of one kind of visual input; on the CPU."""
Layouts = Callable[[Any, Inputs, Shown], Sequence[ImageLayout]]
"""From a host's config, a batch's inputs and its placeholders, how every image of one kind lies, in batch order."""


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One kind of visual input.

    Attributes:
        layouts: how the batch's images of this kind lie, in order; ``sizes``, ``grids`` and the placeholders are given
            on the CPU.
        key: its name in ``mm_encoder_outputs``.
        encoder: the method of the host's base model that encodes it.
        token: attribute of the config that holds the placeholder's id.
        type: its number among the token types, for hosts whose images and videos share a placeholder.
        pixels: the input whose presence means that there is something to encode.
        inputs: further inputs of the encoder; dropped once it has run.
        sizes: those of them that ``layouts`` reads numbers from.
        grids: input of (time, height, width) in patches, for hosts that compute positions from it.
    """

    layouts: Layouts
    key: str = "image"
    encoder: str = "get_image_features"
    token: str = "image_token_id"
    type: int | None = None
    pixels: str = "pixel_values"
    inputs: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    grids: str | None = None


@dataclass(frozen=True)
class BatchImage:
    """What an adapter knows of an image or video of a batch; these are the `HostBatch.items` of stock hosts.

    Attributes:
        modality: its kind.
        layout: how it lies in the prompt and in the encoder's output.
        span: where it stands.
    """

    modality: Modality
    layout: ImageLayout
    span: Span


def located(modality: Modality, layouts: Sequence[ImageLayout], shown: Shown) -> list[BatchImage]:
    """Images of one kind, each with its placeholders.

    Args:
        layouts: of the images, in batch order.
        shown: where placeholders of this kind are.

    Raises:
        InputError: the placeholders don't match the images.
    """
    spans = placeholders.locate(shown, [layout.placeholders for layout in layouts])
    return [
        BatchImage(modality, layout, replace(span, leads=layout.leads))
        for layout, span in zip(layouts, spans, strict=True)
    ]


def batch_of(
    inputs: HostInputs,
    cpu: Mapping[str, Tensor],
    items: Sequence[BatchImage],
    origin: Int[Tensor, "rows length"] | None = None,
) -> HostBatch:
    """A batch of stock hosts.

    Args:
        inputs: as the caller gave them, or as they were made for smaller images.
        cpu: those of them that say what is where, on the CPU.
        items: all that the batch shows, in its order.
        origin: see `HostBatch.origin`.
    """
    return HostBatch(
        inputs,
        cpu,
        tuple(item.span for item in items),
        tuple(item.layout.grid for item in items),
        tuple(item.layout.frames for item in items),
        tuple(items),
        origin=origin,
    )

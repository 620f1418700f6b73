"""Images made smaller before they are encoded: their sizes, the text around them, and their pixels.

A smaller image is what the host's own processor would have made of it: the host's rounding decides on its size, the
text has as many placeholders as that size takes, and its pixels are those of the full image, resampled.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import HostBatch, Span
from tokenflex.errors import InputError
from tokenflex.hosts import placeholders
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import BatchImage, Modality, batch_of


def shared(modality: Modality, batch: HostBatch, *apart: str) -> dict[str, Any]:
    """Inputs of the encoder that aren't any image's own: its options.

    Args:
        apart: names of the others, besides the pixels.
    """
    found = {name: batch.inputs.get(name) for name in modality.inputs if name not in apart}
    return {name: value for name, value in found.items() if value is not None}


def check_shares(batch: HostBatch, shares: Sequence[float]) -> None:
    """Refuse shares that aren't one per image, above 0 and at most 1.

    Raises:
        InputError: they aren't.
    """
    if len(shares) != len(batch.spans):
        raise InputError(f"{len(shares)} shares for a batch of {len(batch.spans)} images; give one per image.")
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        raise InputError(f"share {wrong[0]} of an image's pixels; it is to be above 0 and at most 1.")


def check_images(batch: HostBatch, images: Sequence[int]) -> None:
    """Refuse numbers of images that the batch doesn't have, or that don't ascend.

    Raises:
        InputError: they aren't as asked for.
    """
    known = range(len(batch.spans))
    if any(image not in known for image in images) or list(images) != sorted(set(images)):
        raise InputError(
            f"images {list(images)} of a batch of {len(known)}; give ascending numbers below {len(known)}."
        )


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image at the size it is to have.

    Attributes:
        number: among those of its modality.
        full: how it lies in the prompt at full size.
        layout: how it lies there at the size it is to have.
        sizes: its entry in every input that tells of sizes.
    """

    number: int
    full: ImageLayout
    layout: ImageLayout
    sizes: Mapping[str, Int[Tensor, "*sizes"]] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[int, ...]:
        """Placeholders that each of its runs is left with."""
        return self.full.per_run_as(self.layout)


@dataclass(frozen=True)
class Call:
    """One call of the host's encoder.

    Attributes:
        which: the images, as numbers among those asked for; all calls together have every one of them.
        inputs: keyword arguments.
    """

    which: tuple[int, ...]
    inputs: Mapping[str, Any]


class Resizing(ABC):
    """How the images of one architecture are made smaller; data for the adapters of stock hosts.

    Attributes:
        levels: which sizes there are, for tables.
        whole: whether the tiles of an image must be routed together.
    """

    levels: ClassVar[str]
    whole: ClassVar[bool] = False

    @property
    def setting(self) -> str | None:
        """The argument of the processor's call that `processor_kwargs` gives, for tables; None where it gives none."""
        return None

    @abstractmethod
    def image(
        self, config: Any, modality: Modality, batch: HostBatch, number: int, full: ImageLayout, share: float
    ) -> Image:
        """An image that keeps ``share`` of its pixels, before its pixels are made.

        Args:
            number: the image's among those of its modality.
            full: how it lies in the prompt at full size.
        """

    @abstractmethod
    def calls(self, config: Any, modality: Modality, batch: HostBatch, images: Sequence[Image]) -> Sequence[Call]:
        """What the host's encoder is given for some images; those of full size keep their pixels bit for bit.

        Args:
            batch: at full size.
            images: of this modality, at least one.
        """

    def processor_kwargs(self, config: Any, image: Image, tokens: int) -> Mapping[str, Any]:
        """As `HostAdapter.processor_kwargs`, for one image.

        Args:
            image: at full size.
        """
        return {}


@dataclass(frozen=True)
class Rewritten:
    """A batch's text once images have fewer placeholders.

    Attributes:
        inputs: those of the text, on the devices they were on.
        cpu: the same on the CPU.
        spans: where every image stands.
        origin: see `HostBatch.origin`.
    """

    inputs: dict[str, Any]
    cpu: dict[str, Tensor]
    spans: tuple[Span, ...]
    origin: Int[Tensor, "rows length"]


def rewritten(batch: HostBatch, runs: Sequence[Sequence[int]], pad_token_id: int) -> Rewritten:
    """The text a processor writes for smaller images, padded to its longest row on the side it is padded on.

    Args:
        runs: placeholders that every run of every image is left with.

    Raises:
        InputError: the mask hides placeholders, or positions are the caller's own.
    """
    plan = placeholders.plan(batch, runs, None)
    near = replace(batch, inputs={**batch.cpu})
    cpu: dict[str, Tensor] = placeholders.apply(plan, near, pad_token_id)
    home = batch.inputs["input_ids"].device
    text = {name: value.to(_device(batch.inputs.get(name), home)) for name, value in cpu.items()}
    places = placeholders.places(plan, batch.spans, [sum(one) for one in runs])
    spans = [replace(span, at=torch.from_numpy(at)) for span, (_, at) in zip(batch.spans, places, strict=True)]
    origin = placeholders.index(plan)
    mask = cpu.get("attention_mask")
    return Rewritten(text, cpu, tuple(spans), origin if mask is None else origin.masked_fill(mask == 0, -1))


def _device(tensor: Any, home: torch.device) -> torch.device:
    return tensor.device if isinstance(tensor, Tensor) else home


def smaller_batch(
    batch: HostBatch, images: Sequence[Image], *, dropped: Collection[str], pad_token_id: int
) -> HostBatch:
    """The batch of smaller images, without pixels.

    Args:
        images: of the batch, at the sizes they are to have.
        dropped: inputs of the host's encoders that the batch no longer has.

    Raises:
        InputError: positions are the caller's own.
    """
    text = rewritten(batch, [image.runs for image in images], pad_token_id)
    gone = {*dropped, *placeholders.SEQUENCE_KEYS, "input_ids"}
    inputs = {name: value for name, value in batch.inputs.items() if name not in gone} | text.inputs
    cpu = {name: value for name, value in batch.cpu.items() if name not in gone} | text.cpu
    for name, sizes in _sizes(batch.cpu, images).items():
        cpu[name] = sizes
        inputs[name] = sizes.to(batch.inputs[name].device)
    made = [
        BatchImage(item.modality, image.layout, span)
        for item, image, span in zip(batch.items, images, text.spans, strict=True)
    ]
    return batch_of(inputs, cpu, made, text.origin)


def _sizes(cpu: Mapping[str, Tensor], images: Sequence[Image]) -> dict[str, Int[Tensor, "images *sizes"]]:
    """Inputs that tell of sizes, with those of the smaller images."""
    found: dict[str, Tensor] = {}
    for image in images:
        for name, sizes in image.sizes.items():
            if name not in found:
                found[name] = cpu[name].clone()
            found[name][image.number] = sizes
    return found

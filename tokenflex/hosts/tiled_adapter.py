"""What the adapters of hosts that cut images into tiles share: LLaVA-NeXT and its kin.

How tiles are read from the host: see `tokenflex.hosts.anyres`. How they lie in its prompt: see `tokenflex.hosts.tiles`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenflex.contracts import Grid, HostBatch, HostInputs, ScaledTokens, VisualTokens
from tokenflex.hosts import anyres, placeholders, stock
from tokenflex.hosts.architecture import Architecture
from tokenflex.hosts.architectures import ARCHITECTURES
from tokenflex.hosts.encoded import kept_of, per_row
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import BatchImage, Inputs, Modality, Shown, batch_of, located
from tokenflex.hosts.resized_tiles import encoded_views
from tokenflex.hosts.stock_adapter import StockAdapter
from tokenflex.hosts.tower_attention import attending


class TiledAdapter(StockAdapter):
    """Serves one architecture of `tokenflex.hosts.tiles`, or several that differ in their rows only.

    A subclass of another package may serve a ``model_type`` of its own; it works by the row of ``derived_from`` then.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope: what counts as the instruction (see `tokenflex.hosts.instruction`).
        marker: the ids that open a user's turn (see `tokenflex.hosts.instruction`).
    """

    derived_from: ClassVar[str]

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """Names what is served; of that, the row of the host's architecture says which checkpoints aren't."""
        model_type, known = stock.base_of(host).config.model_type, cls.model_types
        if model_type not in known:
            wanted = repr(known[0]) if len(known) == 1 else f"one of {', '.join(known)}"
            return f"its model_type is {model_type!r}, not {wanted}"
        return super().refusal(host)

    @classmethod
    def _row(cls, model_type: str) -> Architecture:
        return ARCHITECTURES.get(model_type) or ARCHITECTURES[cls.derived_from]

    def read(self, inputs: HostInputs) -> HostBatch:
        """Images, then videos.

        Raises:
            InputError: placeholders don't match what is to be seen.
        """
        modalities, config = self.architecture.modalities, self._model.config
        cpu = placeholders.on_cpu(inputs, [name for modality in modalities for name in modality.sizes])
        known, ids = {**inputs, **cpu}, cpu["input_ids"]
        shown = [ids == getattr(config, modality.token) for modality in modalities]
        seen = [self._layouts(modality, known, here) for modality, here in zip(modalities, shown, strict=True)]
        items = list[BatchImage]()
        for modality, layouts, here in zip(modalities, seen, shown, strict=True):
            items += located(modality, layouts, here)
        return batch_of(inputs, cpu, items)

    def _layouts(self, modality: Modality, inputs: Inputs, shown: Shown) -> Sequence[ImageLayout]:
        """How the batch's images of one kind lie.

        Args:
            inputs: the batch, what says what is where on the CPU.
            shown: where its placeholders are.
        """
        return modality.layouts(self._model.config, inputs, shown)

    def _options(self, batch: HostBatch) -> dict[str, Any]:
        """Further arguments of the encoder of images."""
        return {}

    def _encoded(
        self, modality: Modality, batch: HostBatch, items: Sequence[BatchImage], attention: bool
    ) -> Sequence[VisualTokens]:
        asked = {"output_hidden_states": True} if attention else {}
        if modality.key == "image":
            output = anyres.encoded_images(self._model, batch, **self._options(batch), **asked)
        else:
            output = anyres.encoded_videos(self._model, batch.inputs, **asked)
        images = [
            _tokens(item, item.layout.unpack(packed)[0])
            for item, packed in zip(items, output.pooler_output, strict=True)
        ]
        tower = self.architecture.vision_tower
        return attending(images, self._model, tower, output.hidden_states, batch.inputs) if attention else images

    def _encoded_smaller(
        self, modality: Modality, inputs: HostInputs, items: Sequence[BatchImage]
    ) -> Sequence[VisualTokens]:
        """In one call of the tower for images, and in one of the host for videos."""
        if modality.key == "image":
            views = [item.layout.views for item in items]
            found = encoded_views(self._model, inputs).split(views)
        else:
            packed = anyres.encoded_videos(self._model, inputs).pooler_output
            found = [item.layout.unpack(one)[0] for item, one in zip(items, packed, strict=True)]
        return [_tokens(item, tokens) for item, tokens in zip(items, found, strict=True)]

    def _written(
        self, items: Sequence[BatchImage], images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens]
    ) -> Mapping[str, Any]:
        """A list of ``(packed, dim)`` per modality, one entry per row, newlines in place."""
        packed = self._packed(items, [one.features for one in scaled], scaled)
        found: dict[str, BaseModelOutputWithPooling] = {}
        for key in dict.fromkeys(item.modality.key for item in items):
            own = [i for i, item in enumerate(items) if item.modality.key == key]
            entries: Any = per_row([packed[i] for i in own], [items[i].span.row for i in own])
            found[key] = BaseModelOutputWithPooling(pooler_output=entries)
        return found

    def _packed(
        self, items: Sequence[BatchImage], features: Sequence[Tensor], scaled: Sequence[ScaledTokens]
    ) -> list[Tensor]:
        """``(packed, dim)`` of every image: its kept tokens in the host's order, newlines in place.

        Args:
            features: of every image ``(views, kept, dim)``, moved as ``scaled`` was.
        """
        layouts, kept = [item.layout for item in items], [kept_of(one) for one in scaled]
        return packed_with_newlines(layouts, features, kept, self._model.model.image_newline)

    @property
    def _encoded_inputs(self) -> set[str]:
        return {*self._encoder_keys, *anyres.ENCODER_OPTIONS}

    @property
    def _pad_token(self) -> int:
        return anyres.pad_token(self._model.config)


def _tokens(item: BatchImage, features: Float[Tensor, "views tokens dim"]) -> VisualTokens:
    return VisualTokens(features, item.layout.grid, row=item.span.row, video=item.layout.frames > 0)


def packed_with_newlines(
    layouts: Sequence[ImageLayout],
    features: Sequence[Tensor],
    kept: Sequence[Grid | int],
    newline: Float[Tensor, " dim"],
) -> list[Tensor]:
    """Kept tokens of all images and videos in the host's order, newlines in place; all are gathered at once.

    Args:
        layouts: of images whose separators are all this newline.
        features: of each ``(views, kept, dim)``; the result has ``(packed, dim)`` of each.
        kept: of each image the grid, or the number, of one view's kept tokens.
    """
    found: list[Tensor | None] = [
        _shrunk(layout, each, its, newline) for layout, each, its in zip(layouts, features, kept, strict=True)
    ]
    rest = [i for i, done in enumerate(found) if done is None]
    if not rest:
        return [each for each in found if each is not None]
    orders = [layouts[i].order(kept[i], len(features[i])) for i in rest]
    sizes = [features[i].shape[0] * features[i].shape[1] for i in rest]
    starts, last = np.cumsum([0, *sizes[:-1]]), sum(sizes)
    each = zip(orders, sizes, starts, strict=True)
    places = np.concatenate([np.where(order < size, order + start, last) for order, size, start in each])
    first = features[rest[0]]
    table = torch.cat([*(features[i].flatten(0, 1) for i in rest), newline.to(first)[None]])
    pieces = table.index_select(0, torch.from_numpy(places).to(first.device)).split([len(order) for order in orders])
    for i, piece in zip(rest, pieces, strict=True):
        found[i] = piece
    return [each for each in found if each is not None]


def _shrunk(
    layout: ImageLayout, features: Float[Tensor, "views kept dim"], kept: Grid | int, newline: Float[Tensor, " dim"]
) -> Tensor | None:
    """An image whose canvas is resampled before its rows get their newlines, as the host does; else None."""
    canvas = layout.canvas(kept)
    if canvas is None:
        return None
    cells, smaller = canvas
    places = torch.from_numpy(cells.copy()).to(features.device)
    lines = _resampled(features.flatten(0, 1)[places], smaller)
    lines = torch.cat([lines, newline.to(lines).expand(smaller.rows, 1, -1)], dim=1)
    return torch.cat([features[0], lines.flatten(0, 1)])


def _resampled(canvas: Float[Tensor, "rows cols dim"], target: Grid) -> Float[Tensor, "target_rows target_cols dim"]:
    """Bilinear, in the features' own type and memory layout: bit for bit what the host computes."""
    planes = canvas.permute(2, 0, 1).contiguous()[None]
    return F.interpolate(planes, (target.rows, target.cols), mode="bilinear")[0].permute(1, 2, 0)

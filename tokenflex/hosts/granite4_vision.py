"""Granite 4 Vision on stock transformers: LLaVA-NeXT's tiles, with features that join at several decoder layers.

The host's encoder gives no features for the input embeddings but a list of (decoder layer, features per image), all
packed alike (DeepStack). The first of them is what scaler and router see; the others are `VisualTokens.planes` and
are averaged over the same tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tokenflex.contracts import HostBatch, ScaledTokens, VisualTokens
from tokenflex.hosts import anyres
from tokenflex.hosts.encoded import EncoderOutputs, moved, per_row
from tokenflex.hosts.modality import BatchImage, Modality
from tokenflex.hosts.tiled_adapter import TiledAdapter


class Granite4VisionAdapter(TiledAdapter):
    """Serves ``Granite4VisionForConditionalGeneration``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope: what counts as the instruction (see `tokenflex.hosts.instruction`).
        marker: the ids that open a user's turn (see `tokenflex.hosts.instruction`).
    """

    model_types = ("granite4_vision",)
    derived_from = "granite4_vision"

    def _encoded(
        self, modality: Modality, batch: HostBatch, items: Sequence[BatchImage], attention: bool
    ) -> Sequence[VisualTokens]:
        """Later layers' features are planes."""
        layers = [packed for _, packed in anyres.encoded_images(self._model, batch).deepstack_features]
        found: list[VisualTokens] = []
        for item, packed in zip(items, zip(*layers, strict=True), strict=True):
            features, *planes = (item.layout.unpack(layer)[0] for layer in packed)
            found.append(VisualTokens(features, item.layout.grid, row=item.span.row, planes=tuple(planes)))
        return found

    def _written(
        self, items: Sequence[BatchImage], images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens]
    ) -> Mapping[str, Any]:
        """Per decoder layer an entry for every row."""
        entries: list[tuple[int, list[Tensor]]] = []
        rows = [item.span.row for item in items]
        for depth, layer in enumerate(self._layers):
            features = [moved(image, one, depth) for image, one in zip(images, scaled, strict=True)]
            entries.append((layer, per_row(self._packed(items, features, scaled), rows)))
        return {"image": EncoderOutputs(deepstack_features=entries)}

    @property
    def _layers(self) -> list[int]:
        """Decoder layers that features join at, in the encoder's order."""
        config = self._model.config
        return [*(layer for _, layer in config.deepstack_layer_map), *config.spatial_target_layers]

"""LLaVA-OneVision on stock transformers: images alone in their row, images in company, videos.

Tiles are read as in `tokenflex.hosts.anyres`. The host shrinks a canvas of too many tiles before its rows get their
newlines. That is kept off by ``vision_aspect_ratio``, which the host's ``get_image_features`` takes for this, and done
here: at the finest level exactly as the host does it, at coarser ones on the pooled canvas, by the same rule for tiles
of the pooled size (see `tokenflex.ops.packing`). Tokens that a scaler leaves without a grid can't be shrunk, so all of
them are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenflex.contracts import HostBatch, ScaledTokens, VisualTokens
from tokenflex.hosts.layouts import TiledLayout
from tokenflex.hosts.modality import BatchImage
from tokenflex.hosts.tiled_adapter import TiledAdapter


class LlavaOnevisionAdapter(TiledAdapter):
    """Serves ``LlavaOnevisionForConditionalGeneration``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope: what counts as the instruction (see `tokenflex.hosts.instruction`).
        marker: the ids that open a user's turn (see `tokenflex.hosts.instruction`).
    """

    model_types = ("llava_onevision",)
    derived_from = "llava_onevision"

    def _options(self, batch: HostBatch) -> dict[str, Any]:
        """As many tiles as the largest image has, so that no canvas is shrunk."""
        images = [item.layout for item in batch.items if item.modality.key == "image"]
        tiles = max((one.tiles.tokens if isinstance(one, TiledLayout) else 1 for one in images), default=1)
        return {
            "vision_aspect_ratio": f"anyres_max_{tiles}",
            "batch_num_images": batch.inputs.get("batch_num_images"),
        }

    def _written(
        self, items: Sequence[BatchImage], images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens]
    ) -> Mapping[str, Any]:
        """Images as a list, videos as one tensor.

        The host wants one tensor for all videos. Theirs are given one by one, ``(tokens, 1, dim)``, since videos may
        differ in length now and ``generate`` cuts that axis where rows end.
        """
        found = dict(super()._written(items, images, scaled))
        if "video" in found:
            stacked: Any = torch.cat(found["video"].pooler_output)[:, None]
            found["video"] = BaseModelOutputWithPooling(pooler_output=stacked)
        return found

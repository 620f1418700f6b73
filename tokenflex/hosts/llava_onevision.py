"""LLaVA-OneVision on stock transformers: images alone in their row, images in company, videos.

An image alone in its row is cut into tiles as LLaVA-NeXT does; a canvas beyond the checkpoint's number of tiles is
then shrunk before its rows get their newlines. Images that share a row are one tile and one newline each. A video is
its frames' tokens, pooled by the host, and one newline.

Tiles are read as in `tokenflex.hosts.anyres`; shrinking is kept off by ``vision_aspect_ratio``, which the host's
``get_image_features`` takes for this, and done here: at the finest level exactly as the host does it, at coarser ones
on the pooled canvas, by the same rule for tiles of the pooled size (see `tokenflex.ops.packing`). Tokens that a
scaler leaves without a grid can't be shrunk, so all of them are kept.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenflex.contracts import (
    Grid,
    HostAdapter,
    HostBatch,
    HostInputs,
    Instruction,
    PaddingSide,
    ScaledTokens,
    Spliced,
    VisualTokens,
)
from tokenflex.errors import ConfigError, InputError
from tokenflex.hosts import anyres, placeholders, resized_tiles, stock
from tokenflex.hosts.instruction import Markers, Scope, markers, read_instructions
from tokenflex.hosts.refusing import sized
from tokenflex.hosts.runs import PlaceholderRun, Strip, Tiled
from tokenflex.hosts.tower_attention import unreadable

ENCODER_KEYS = (*anyres.IMAGE_KEYS, *anyres.VIDEO_KEYS, "batch_num_images")
ASPECT_RATIO = re.compile(r"anyres_max_([1-9]\d*)")


class LlavaOnevisionAdapter(HostAdapter):
    """Serves ``LlavaOnevisionForConditionalGeneration``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope, marker: what counts as the instruction (see `tokenflex.hosts.instruction`).
    """

    model_types = ("llava_onevision",)

    def __init__(self, host: nn.Module, *, scope: str = "last-turn", marker: Markers = ()) -> None:
        super().__init__(host)
        if scope not in ("last-turn", "prompt"):
            raise ConfigError(f"scope={scope!r}; use 'last-turn' or 'prompt'.")
        self.scope: Scope = cast(Scope, scope)
        self.marker = markers(marker)

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """The checkpoint must say how many tiles' worth of tokens a canvas may have."""
        config: Any = stock.base_of(host).config
        if config.model_type not in cls.model_types:
            return f"its model_type is {config.model_type!r}, not 'llava_onevision'"
        if not ASPECT_RATIO.fullmatch(config.vision_aspect_ratio):
            return (
                f"vision_aspect_ratio={config.vision_aspect_ratio!r} names no largest number of tiles; "
                "set it as in 'anyres_max_9'"
            )
        return None

    @property
    def options(self) -> Mapping[str, Any]:
        """``scope`` and ``marker``."""
        return {"scope": self.scope, "marker": [list(one) for one in self.marker]}

    @property
    def model_type(self) -> str:
        """``llava_onevision``."""
        return self._model.config.model_type

    @property
    def family(self) -> str:
        """``tiles``."""
        return "tiles"

    @property
    def dim(self) -> int:
        """Width of the language model."""
        return self._model.config.text_config.hidden_size

    @property
    def grid(self) -> Grid:
        """Patches of one tile."""
        return anyres.square(self._model.config)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Of all modalities."""
        return tuple(dict.fromkeys(self._tokens.values()))

    @property
    def packing_refusal(self) -> str | None:
        """None: rows can be packed."""
        return None

    @property
    def ragged_refusal(self) -> str | None:
        """None: rows can be spliced apart."""
        return None

    @property
    def attention_refusal(self) -> str | None:
        """None for plain towers, such as SigLIP's."""
        return unreadable(self._model, anyres.TOWER)

    def read(self, inputs: HostInputs) -> HostBatch:
        """Images, then videos."""
        cpu = placeholders.on_cpu(inputs, ("image_sizes", "batch_num_images"))
        pooled = Grid(-(-self.grid.rows // 2), -(-self.grid.cols // 2))
        seen: dict[str, Sequence[PlaceholderRun]] = {
            "image": self._images(inputs, cpu),
            "video": anyres.videos(inputs, pooled, ends=1),
        }
        return anyres.read(inputs, cpu, seen, self._tokens)

    def encode(self, batch: HostBatch, attention: bool = False) -> tuple[VisualTokens, ...]:
        """Images, the whole of each first, then its local tiles row-major; then videos, frame by frame."""
        images = [item.run for item in batch.items if item.key == "image"]
        tiles = max((run.tiles.tokens if isinstance(run, Tiled) else 1 for run in images), default=1)
        unshrunk = {
            "vision_aspect_ratio": f"anyres_max_{tiles}",
            "batch_num_images": batch.inputs.get("batch_num_images"),
        }
        return anyres.encoded(self._model, batch, attention, **unshrunk)

    def instructions(self, batch: HostBatch) -> tuple[Instruction, ...]:
        """The input embeddings of each row's prompt tokens, detached."""
        return read_instructions(
            batch, self._tokens.values(), self.scope, self.marker, self._model.get_input_embeddings()
        )

    def count(
        self,
        batch: HostBatch,
        kept: Sequence[Sequence[Grid | int]],
        frames: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Tokens of every image and video at every level, newlines included."""
        return anyres.counts(batch, kept, frames)

    def splice(
        self,
        batch: HostBatch,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        padding_side: PaddingSide | None = None,
        rows: Sequence[int] | None = None,
    ) -> Spliced:
        """Pack the chosen tokens and shorten the text around them.

        The host wants one tensor for all videos. Theirs are given one by one, ``(tokens, 1, dim)``, since videos may
        differ in length now and ``generate`` cuts that axis where rows end.
        """
        short = anyres.shortened(
            batch, scaled, padding_side, rows, config=self._model.config, encoder_keys=ENCODER_KEYS
        )
        features = [scaled[i].features for i in short.chosen]
        packed = anyres.gathered(batch, short.chosen, features, scaled, self._model.model.image_newline)
        keys = [batch.items[i].key for i in short.chosen]
        packed_images: Any = [one for key, one in zip(keys, packed, strict=True) if key == "image"]
        videos = [one for key, one in zip(keys, packed, strict=True) if key == "video"]
        outputs: dict[str, BaseModelOutputWithPooling] = {}
        if packed_images:
            outputs["image"] = BaseModelOutputWithPooling(pooler_output=packed_images)
        if videos:
            stacked: Any = torch.cat(videos)[:, None]
            outputs["video"] = BaseModelOutputWithPooling(pooler_output=stacked)
        if outputs:
            short.inputs["mm_encoder_outputs"] = outputs
        return Spliced(short.inputs, tuple(short.kept), placeholders.index(short.plan))

    @property
    def resize_refusal(self) -> str | None:
        """None: images can be made smaller."""
        return None

    def resized(self, batch: HostBatch, shares: Sequence[float]) -> HostBatch:
        """Images by coarser canvases, down to the whole view alone; videos stay as they are."""
        return resized_tiles.resized(batch, shares, config=self._model.config, encoder_keys=ENCODER_KEYS)

    def encode_resized(
        self, batch: HostBatch, shares: Sequence[float], images: Sequence[int]
    ) -> tuple[VisualTokens, ...]:
        """In one call of the tower for images and one of the host for videos."""
        if len(images) == len(batch.items) and all(share == 1 for share in shares):
            return self.encode(batch)
        return resized_tiles.encode(self._model, batch, shares, images)

    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The newline vector belongs to the projector."""
        return stock.parameter_groups(
            self._model, ("model.vision_tower",), ("model.multi_modal_projector", "model.image_newline")
        )

    @property
    def _model(self) -> Any:
        return stock.base_of(self.host)

    @property
    def _tokens(self) -> dict[str, int]:
        return {"image": self._model.config.image_token_id, "video": self._model.config.video_token_id}

    def _images(self, inputs: HostInputs, cpu: Mapping[str, Tensor]) -> list[PlaceholderRun]:
        config = self._model.config
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        sizes = anyres.image_sizes(inputs, cpu)
        found: list[PlaceholderRun] = []
        for size, company in zip(sizes, _companies(inputs, cpu, len(sizes)), strict=True):
            if company == 1:
                tiles = anyres.local_tiles(config, size)
                found.append(Tiled(grid=self.grid, tiles=tiles, size=size, most=most))
            else:
                found.append(Strip(grid=self.grid, ends=1))
        return found


def _companies(inputs: HostInputs, cpu: Mapping[str, Tensor], images: int) -> list[int]:
    """For every image the number of images in its row; without ``batch_num_images`` all count as alone.

    Raises:
        InputError: ``batch_num_images`` tells of another number of images.
    """
    per_row = sized(inputs, cpu, ("batch_num_images",)).get("batch_num_images")
    if per_row is None:
        return [1] * images
    counts = per_row.tolist()
    if sum(counts) != images:
        raise InputError(
            f"batch_num_images adds up to {sum(counts)} images, pixel_values holds {images}; pass both as the "
            "processor made them."
        )
    return [count for count in counts for _ in range(count)]

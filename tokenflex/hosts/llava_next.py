"""LLaVA-NeXT on stock transformers: anyres tiles, newlines, unpadding; and the video model built on it.

How tiles are read from the host: see `tokenflex.hosts.anyres`. The videos of LLaVA-NeXT-Video are their frames' tokens,
pooled by the host and without newlines.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

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
from tokenflex.errors import ConfigError
from tokenflex.hosts import anyres, placeholders, resized_tiles, stock
from tokenflex.hosts.instruction import (
    ZERO,
    Markers,
    Scope,
    embedded,
    markers,
    published_words,
    read_instructions,
    without_placeholders,
)
from tokenflex.hosts.runs import PlaceholderRun, Tiled
from tokenflex.hosts.tower_attention import unreadable
from tokenflex.ops.packing import Unpad


class LlavaNextAdapter(HostAdapter):
    """Serves ``LlavaNextForConditionalGeneration`` and ``LlavaNextVideoForConditionalGeneration``.

    Args:
        host: the model, or a PEFT wrapper around it.
        unpad: ``geometric`` never cuts a cell that shows part of the image; ``released`` reproduces the
            published AVG-LLaVA checkpoints (see `tokenflex.ops.packing`).
        scope, marker: what counts as the instruction (see `tokenflex.hosts.instruction`).
        vocabulary: tokens that can be answers; the ids from there on are placeholders (see `HostAdapter.vocabulary`).
    """

    model_types = ("llava_next", "llava_next_video")

    def __init__(
        self,
        host: nn.Module,
        *,
        unpad: str = "geometric",
        scope: str = "last-turn",
        marker: Markers = (),
        vocabulary: int | None = None,
    ) -> None:
        super().__init__(host)
        if unpad not in ("geometric", "released"):
            raise ConfigError(f"unpad={unpad!r}; use 'geometric', or 'released' for published checkpoints.")
        if scope not in get_args(Scope):
            raise ConfigError(f"scope={scope!r}; use one of {', '.join(get_args(Scope))}.")
        self.unpad: Unpad = "released" if unpad == "released" else "geometric"
        self.scope: Scope = cast(Scope, scope)
        self.marker = markers(marker)
        self._vocabulary = vocabulary

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """Only LLaVA-NeXT with a square number of patch tokens per tile is served."""
        config: Any = stock.base_of(host).config
        if config.model_type not in cls.model_types:
            return f"its model_type is {config.model_type!r}, not one of {', '.join(cls.model_types)}"
        if getattr(config, "vision_feature_select_strategy", "default") != "default":
            return "vision_feature_select_strategy='full' keeps the class token, which lies on no grid"
        return None

    @property
    def options(self) -> Mapping[str, Any]:
        """``unpad``, ``scope``, ``marker`` and ``vocabulary``."""
        return {
            "unpad": self.unpad,
            "scope": self.scope,
            "marker": [list(one) for one in self.marker],
            "vocabulary": self.vocabulary,
        }

    @property
    def vocabulary(self) -> int | None:
        """As given."""
        return self._vocabulary

    @property
    def model_type(self) -> str:
        """The host's."""
        return self._model.config.model_type

    @property
    def _model(self) -> Any:
        return stock.base_of(self.host)

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
        """None for plain towers, such as CLIP's."""
        return unreadable(self._model, anyres.TOWER)

    def read(self, inputs: HostInputs) -> HostBatch:
        """Images, then videos."""
        cpu = placeholders.on_cpu(inputs, ("image_sizes",))
        images = [
            Tiled(grid=self.grid, tiles=self.tiles(size), size=size, unpad=self.unpad)
            for size in anyres.image_sizes(inputs, cpu)
        ]
        seen: dict[str, Sequence[PlaceholderRun]] = {"image": images}
        if "video" in self._tokens:
            stride = self._model.config.spatial_pool_stride
            frame = Grid(self.grid.rows // stride, self.grid.cols // stride)
            seen["video"] = anyres.videos(inputs, frame, ends=0)
        return anyres.read(inputs, cpu, seen, self._tokens)

    def encode(self, batch: HostBatch, attention: bool = False) -> tuple[VisualTokens, ...]:
        """One item per image: the whole image, then its local tiles row-major. Videos, frame by frame, come last."""
        return anyres.encoded(self._model, batch, attention)

    def instructions(self, batch: HostBatch) -> tuple[Instruction, ...]:
        """The input embeddings of each row's prompt tokens, detached."""
        embed = self._model.get_input_embeddings()
        if self.scope == "published":
            return self._published_instructions(batch, embed)
        return read_instructions(batch, self._tokens.values(), self.scope, self.marker, embed)

    def count(
        self,
        batch: HostBatch,
        kept: Sequence[Sequence[Grid | int]],
        frames: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Tokens of every image at every level, newlines included."""
        return anyres.counts(batch, kept, frames)

    def splice(
        self,
        batch: HostBatch,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        padding_side: PaddingSide | None = None,
        rows: Sequence[int] | None = None,
    ) -> Spliced:
        """Pack the chosen tokens and shorten the text around them."""
        keys = self._encoder_keys
        short = anyres.shortened(batch, scaled, padding_side, rows, config=self._model.config, encoder_keys=keys)
        features = [scaled[i].features for i in short.chosen]
        packed = anyres.gathered(batch, short.chosen, features, scaled, self._model.model.image_newline)
        outputs: dict[str, BaseModelOutputWithPooling] = {}
        for key in dict.fromkeys(batch.items[i].key for i in short.chosen):
            own: Any = [one for i, one in zip(short.chosen, packed, strict=True) if batch.items[i].key == key]
            outputs[key] = BaseModelOutputWithPooling(pooler_output=own)
        if outputs:
            short.inputs["mm_encoder_outputs"] = outputs
        return Spliced(short.inputs, tuple(short.kept), placeholders.index(short.plan))

    @property
    def resize_refusal(self) -> str | None:
        """None: images can be made smaller."""
        return None

    def resized(self, batch: HostBatch, shares: Sequence[float]) -> HostBatch:
        """Images by coarser canvases, down to the whole view alone; videos stay as they are."""
        return resized_tiles.resized(batch, shares, config=self._model.config, encoder_keys=self._encoder_keys)

    def encode_resized(
        self, batch: HostBatch, shares: Sequence[float], images: Sequence[int]
    ) -> tuple[VisualTokens, ...]:
        """In one call of the tower for images and one of the host for videos."""
        if len(images) == len(batch.items) and all(share == 1 for share in shares):
            return self.encode(batch)
        return resized_tiles.encode(self._model, batch, shares, images)

    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The newline vector and the frames' pooling belong to the projector."""
        pooling = ("model.vision_resampler",) if hasattr(self._model.model, "vision_resampler") else ()
        projector = ("model.multi_modal_projector", "model.image_newline", *pooling)
        return stock.parameter_groups(self._model, ("model.vision_tower",), projector)

    def tiles(self, size: tuple[int, int]) -> Grid:
        """Local tiles, down and across, of an image of (height, width) pixels."""
        return anyres.local_tiles(self._model.config, size)

    def _published_instructions(self, batch: HostBatch, embed: nn.Module) -> tuple[Instruction, ...]:
        image = self._tokens["image"]
        ids, mask = published_words(
            without_placeholders(batch.cpu["input_ids"], self._tokens.values(), image),
            batch.cpu.get("attention_mask"),
            batch.cpu.get("labels"),
            image_token_id=image,
            pad_token_id=anyres.pad_token(self._model.config),
            images=[batch.rows.count(row) for row in range(len(batch.cpu["input_ids"]))],
        )
        ids, mask = (tensor.to(batch.inputs["input_ids"].device) for tensor in (ids, mask))
        with torch.no_grad():
            rows = embedded(ids.clamp(min=0), embed).masked_fill(ids[..., None] == ZERO, 0.0)
        return tuple(Instruction(row, keep) for row, keep in zip(rows, mask, strict=True))

    @property
    def _encoder_keys(self) -> tuple[str, ...]:
        return (*anyres.IMAGE_KEYS, *(anyres.VIDEO_KEYS if "video" in self._tokens else ()))

    @property
    def _tokens(self) -> dict[str, int]:
        config = self._model.config
        videos = {"video": config.video_token_id} if config.model_type == "llava_next_video" else {}
        return {"image": config.image_token_id, **videos}

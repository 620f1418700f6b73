"""LLaVA-NeXT on stock transformers: anyres tiles, newlines, unpadding.

The vision tower is run through the host's own ``get_image_features``, asked for pictures that fill their canvas
exactly. The host then packs every tile whole, and the tiles are read back by undoing that packing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenflex.contracts import (
    Grid,
    HostAdapter,
    HostInputs,
    Instruction,
    PaddingSide,
    ScaledTokens,
    Spliced,
    VisualTokens,
)
from tokenflex.errors import ConfigError, InputError
from tokenflex.hosts import placeholders
from tokenflex.hosts.words import ZERO, Scope, instruction_mask, published_words
from tokenflex.ops.packing import NEWLINE, Unpad, anyres_count, anyres_order

ENCODER_KEYS = ("pixel_values", "image_sizes")
ENCODER_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")


class LlavaNextAdapter(HostAdapter):
    """Serves ``LlavaNextForConditionalGeneration``, as loaded by transformers 5.18 or newer.

    Args:
        host: the model, or a PEFT wrapper around it.
        unpad: ``geometric`` never cuts a cell that shows part of the picture; ``released`` reproduces the
            published AVG-LLaVA checkpoints (see `tokenflex.ops.packing`).
        scope, marker: what counts as the instruction (see `tokenflex.hosts.words`).
        vocabulary: tokens that can be answers; the ids from there on are placeholders (see `HostAdapter.vocabulary`).
    """

    model_types = ("llava_next",)

    def __init__(
        self,
        host: nn.Module,
        *,
        unpad: str = "geometric",
        scope: str = "last-turn",
        marker: Sequence[int] = (),
        vocabulary: int | None = None,
    ) -> None:
        super().__init__(host)
        if unpad not in ("geometric", "released"):
            raise ConfigError(f"unpad={unpad!r}; use 'geometric', or 'released' for published checkpoints.")
        if scope not in get_args(Scope):
            raise ConfigError(f"scope={scope!r}; use one of {', '.join(get_args(Scope))}.")
        self.unpad: Unpad = "released" if unpad == "released" else "geometric"
        self.scope: Scope = cast(Scope, scope)
        self.marker = tuple(marker)
        self._vocabulary = vocabulary

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """Only LLaVA-NeXT with a square number of patch tokens per tile is served."""
        config: Any = _base(host).config
        if config.model_type not in cls.model_types:
            return f"its model_type is {config.model_type!r}, not 'llava_next'"
        if getattr(config, "vision_feature_select_strategy", "default") != "default":
            return "vision_feature_select_strategy='full' keeps the class token, which lies on no grid"
        return None

    @property
    def options(self) -> Mapping[str, Any]:
        """``unpad``, ``scope``, ``marker`` and ``vocabulary``."""
        return {
            "unpad": self.unpad,
            "scope": self.scope,
            "marker": list(self.marker),
            "vocabulary": self.vocabulary,
        }

    @property
    def vocabulary(self) -> int | None:
        """As given."""
        return self._vocabulary

    @property
    def model_type(self) -> str:
        """``llava_next``."""
        return self._model.config.model_type

    @property
    def _model(self) -> Any:
        return _base(self.host)

    @property
    def dim(self) -> int:
        """Width of the language model."""
        return self._model.config.text_config.hidden_size

    @property
    def grid(self) -> Grid:
        """Patches of one tile."""
        vision = self._model.config.vision_config
        return Grid(vision.image_size // vision.patch_size, vision.image_size // vision.patch_size)

    def encode(self, inputs: HostInputs) -> tuple[VisualTokens, ...]:
        """One item per image: the whole picture, then its local tiles row-major."""
        if inputs.get("pixel_values") is None:
            return ()
        sizes = self._sizes(inputs)
        rows = placeholders.images_per_row(inputs["input_ids"], self._image_token, self._full_counts(sizes))
        options = {key: inputs[key] for key in ENCODER_OPTIONS if inputs.get(key) is not None}
        pixels = inputs["pixel_values"]
        canvases = torch.tensor([self._canvas(size) for size in sizes], device=pixels.device)
        packed = self._model.get_image_features(pixels, canvases, return_dict=True, **options).pooler_output
        row_of = {image: row for row, images in enumerate(rows) for image in images}
        return tuple(
            VisualTokens(self._unpack(features, size), self.grid, row=row_of[image])
            for image, (features, size) in enumerate(zip(packed, sizes, strict=True))
        )

    def instructions(self, inputs: HostInputs) -> tuple[Instruction, ...]:
        """The input embeddings of each row's words, detached."""
        ids = inputs["input_ids"]
        embed = self._model.get_input_embeddings()
        if self.scope == "published":
            return self._published_instructions(inputs, embed)
        mask = instruction_mask(
            ids,
            inputs.get("attention_mask"),
            inputs.get("labels"),
            image_token_id=self._image_token,
            scope=self.scope,
            marker=self.marker,
        )
        with torch.no_grad():
            rows = [embed(row[keep]) for row, keep in zip(ids, mask, strict=True)]
        return tuple(Instruction(r, torch.ones(len(r), dtype=torch.bool, device=r.device)) for r in rows)

    def count(self, inputs: HostInputs, kept: Sequence[Grid | int]) -> Tensor:
        """Tokens of every image at every level, newlines included."""
        counts = [
            [anyres_count(self.tiles(size), self.grid, level, size, self.unpad) for level in kept]
            for size in self._sizes(inputs)
        ]
        return torch.tensor(counts, dtype=torch.long).view(-1, len(kept))

    def splice(
        self,
        inputs: HostInputs,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        padding_side: PaddingSide | None = None,
    ) -> Spliced:
        """Pack the chosen tokens and shorten the text around them."""
        sizes = self._sizes(inputs)
        features = [self._pack(s, size) for s, size in zip(scaled, sizes, strict=True)]
        counts = [len(feature) for feature in features]
        plan = placeholders.plan(
            inputs["input_ids"],
            inputs.get("attention_mask"),
            self._image_token,
            self._full_counts(sizes),
            counts,
            padding_side,
        )
        dropped = {*ENCODER_KEYS, *ENCODER_OPTIONS, *placeholders.SEQUENCE_KEYS, "input_ids"}
        out = {key: value for key, value in inputs.items() if key not in dropped}
        out.update(placeholders.apply(plan, inputs, self._pad_token))
        if features:
            out["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}  # pyright: ignore[reportArgumentType]
        return Spliced(out, tuple(counts), placeholders.index(plan))

    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The newline vector belongs to the projector."""
        inner = self._model.model
        projector = (*inner.multi_modal_projector.parameters(), inner.image_newline)
        tower = tuple(inner.vision_tower.parameters())
        taken = {id(p) for p in (*projector, *tower)}
        rest = tuple(p for p in self._model.parameters() if id(p) not in taken)
        return {"vision_tower": tower, "projector": projector, "language_model": rest}

    def _published_instructions(self, inputs: HostInputs, embed: nn.Module) -> tuple[Instruction, ...]:
        full = self._full_counts(self._sizes(inputs))
        owners = placeholders.images_per_row(inputs["input_ids"], self._image_token, full)
        ids, mask = published_words(
            inputs["input_ids"],
            inputs.get("attention_mask"),
            inputs.get("labels"),
            image_token_id=self._image_token,
            pad_token_id=self._pad_token,
            images=[len(images) for images in owners],
        )
        with torch.no_grad():
            rows = embed(ids.clamp(min=0)).masked_fill(ids[..., None] == ZERO, 0.0)
        return tuple(Instruction(row, keep) for row, keep in zip(rows, mask, strict=True))

    @property
    def _image_token(self) -> int:
        return self._model.config.image_token_id

    @property
    def _pad_token(self) -> int:
        config = self._model.config
        pad = getattr(config, "pad_token_id", None)
        pad = pad if pad is not None else getattr(config.text_config, "pad_token_id", None)
        return pad if pad is not None and pad != self._image_token else 0

    def _sizes(self, inputs: HostInputs) -> list[tuple[int, int]]:
        """(height, width) in pixels of every image."""
        pixels, sizes = inputs.get("pixel_values"), inputs.get("image_sizes")
        if pixels is None:
            placeholders.images_per_row(inputs["input_ids"], self._image_token, [])
            return []
        if sizes is None or len(sizes) != len(pixels):
            raise InputError(
                f"pixel_values holds {len(pixels)} images, image_sizes "
                f"{'is missing' if sizes is None else f'holds {len(sizes)}'}; pass both as the processor made them."
            )
        return [(int(height), int(width)) for height, width in sizes]

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of the canvas a picture is fitted into."""
        height, width = select_best_resolution(size, self._model.config.image_grid_pinpoints)
        return height, width

    def tiles(self, size: tuple[int, int]) -> Grid:
        """Local tiles, down and across, of a picture of (height, width) pixels."""
        side = self._model.config.vision_config.image_size
        height, width = self._canvas(size)
        return Grid(height // side, width // side)

    def _full_counts(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        return [anyres_count(self.tiles(size), self.grid, self.grid, size, "geometric") for size in sizes]

    def _unpack(self, packed: Tensor, size: tuple[int, int]) -> Tensor:
        """``(views, tokens, dim)`` from the host's packing of a picture without padding."""
        grid, tiles = self.grid, self.tiles(size)
        lines = packed[grid.tokens :].view(tiles.rows * grid.rows, tiles.cols * grid.cols + 1, -1)[:, :-1]
        local = rearrange(lines, "(tr r) (tc c) d -> (tr tc) (r c) d", tr=tiles.rows, tc=tiles.cols, r=grid.rows)
        return torch.cat([packed[None, : grid.tokens], local])

    def _pack(self, scaled: ScaledTokens, size: tuple[int, int]) -> Tensor:
        """``(packed, dim)``, newlines in place."""
        kept = scaled.grid if scaled.grid is not None else scaled.features.shape[-2]
        order = anyres_order(self.tiles(size), self.grid, kept, size, self.unpad)
        flat = scaled.features.flatten(0, 1)
        newline = self._model.model.image_newline.to(flat)
        table = torch.cat([flat, newline[None]])
        return table[torch.where(order == NEWLINE, len(flat), order).to(flat.device)]


def _base(host: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return host.get_base_model() if hasattr(host, "get_base_model") else host

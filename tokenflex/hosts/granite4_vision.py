"""Granite 4 Vision on stock transformers: LLaVA-NeXT's tiles, with features that join at several decoder layers.

The host's encoder gives no features for the input embeddings but a list of (decoder layer, features per image), all
packed alike (DeepStack). The first of them is what scaler and router see; the others are `VisualTokens.planes` and
are averaged over the same tokens. For the host all images of a row are joined to one entry, since its beam search
repeats entries one by one, which would mix up the images of a row.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn

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
from tokenflex.hosts import anyres, placeholders, stock
from tokenflex.hosts.encoded import EncoderOutputs, moved
from tokenflex.hosts.instruction import Markers, Scope, markers, read_instructions
from tokenflex.hosts.runs import Tiled


class Granite4VisionAdapter(HostAdapter):
    """Serves ``Granite4VisionForConditionalGeneration``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope, marker: what counts as the instruction (see `tokenflex.hosts.instruction`).
    """

    model_types = ("granite4_vision",)

    def __init__(self, host: nn.Module, *, scope: str = "last-turn", marker: Markers = ()) -> None:
        super().__init__(host)
        if scope not in ("last-turn", "prompt"):
            raise ConfigError(f"scope={scope!r}; use 'last-turn' or 'prompt'.")
        self.scope: Scope = cast(Scope, scope)
        self.marker = markers(marker)

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """All of its checkpoints are served."""
        config: Any = stock.base_of(host).config
        if config.model_type not in cls.model_types:
            return f"its model_type is {config.model_type!r}, not 'granite4_vision'"
        return None

    @property
    def options(self) -> Mapping[str, Any]:
        """``scope`` and ``marker``."""
        return {"scope": self.scope, "marker": [list(one) for one in self.marker]}

    @property
    def model_type(self) -> str:
        """``granite4_vision``."""
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
        """The projector's queries of one tile."""
        rate = Fraction(self._model.config.downsample_rate)
        patches = anyres.square(self._model.config)
        return Grid(int(patches.rows * rate), int(patches.cols * rate))

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
    def resize_refusal(self) -> str | None:
        """Its views can't be encoded one by one, and it takes two at least."""
        return "its projectors read several layers of the tower, so the whole view can't be encoded alone"

    def read(self, inputs: HostInputs) -> HostBatch:
        """Images only."""
        config, cpu = self._model.config, placeholders.on_cpu(inputs, ("image_sizes",))
        images = [
            Tiled(grid=self.grid, tiles=anyres.local_tiles(config, size), size=size)
            for size in anyres.image_sizes(inputs, cpu)
        ]
        return anyres.read(inputs, cpu, {"image": images}, self._tokens)

    def encode(self, batch: HostBatch, attention: bool = False) -> tuple[VisualTokens, ...]:
        """One item per image: the whole of it, then its local tiles row-major; later layers' features as planes."""
        items = batch.items
        if not items:
            return ()
        layers = [packed for _, packed in anyres.encoded_images(self._model, batch).deepstack_features]
        found: list[VisualTokens] = []
        for item, packed in zip(items, zip(*layers, strict=True), strict=True):
            features, *planes = (item.run.unpack(layer) for layer in packed)
            found.append(VisualTokens(features, item.run.grid, row=item.span.row, planes=tuple(planes)))
        return tuple(found)

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
        """Pack the chosen tokens of every layer and shorten the text around them."""
        newline = self._model.model.image_newline
        short = anyres.shortened(
            batch, scaled, padding_side, rows, config=self._model.config, encoder_keys=anyres.IMAGE_KEYS
        )
        entries: list[tuple[int, list[Tensor]]] = []
        for depth, layer in enumerate(self._layers if short.chosen else ()):
            features = [moved(images[i], scaled[i], depth) for i in short.chosen]
            of_row: dict[int, list[Tensor]] = {}
            packed = anyres.gathered(batch, short.chosen, features, scaled, newline)
            for i, one in zip(short.chosen, packed, strict=True):
                of_row.setdefault(batch.spans[i].row, []).append(one)
            entries.append((layer, [torch.cat(row) for row in of_row.values()]))
        if entries:
            short.inputs["mm_encoder_outputs"] = {"image": EncoderOutputs(deepstack_features=entries)}
        return Spliced(short.inputs, tuple(short.kept), placeholders.index(short.plan))

    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The projectors of all layers, and the newline vector, are the projector."""
        return stock.parameter_groups(
            self._model,
            ("model.vision_tower",),
            ("model.layerwise_projectors", "model.spatial_projectors", "model.image_newline"),
        )

    @property
    def _model(self) -> Any:
        return stock.base_of(self.host)

    @property
    def _tokens(self) -> dict[str, int]:
        return {"image": self._model.config.image_token_id}

    @property
    def _layers(self) -> list[int]:
        """Decoder layers that features join at, in the encoder's order."""
        config = self._model.config
        return [*(layer for _, layer in config.deepstack_layer_map), *config.spatial_target_layers]

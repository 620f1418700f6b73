"""LLaVA-NeXT on stock transformers: tiles, newlines, unpadding; and the video model built on it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from torch import nn

from tokenflex.contracts import Grid, HostBatch, Instruction
from tokenflex.errors import ConfigError
from tokenflex.hosts import anyres
from tokenflex.hosts.instruction import Markers, Scope, published_instructions
from tokenflex.hosts.layouts import ImageLayout, TiledLayout
from tokenflex.hosts.modality import Inputs, Modality, Shown
from tokenflex.hosts.tiled_adapter import TiledAdapter
from tokenflex.ops.packing import Unpad


class LlavaNextAdapter(TiledAdapter):
    """Serves ``LlavaNextForConditionalGeneration`` and ``LlavaNextVideoForConditionalGeneration``.

    Args:
        host: the model, or a PEFT wrapper around it.
        unpad: ``geometric`` never cuts a cell that shows part of the image; ``released`` reproduces the
            published AVG-LLaVA checkpoints (see `tokenflex.ops.packing`).
        scope: what counts as the instruction (see `tokenflex.hosts.instruction`).
        marker: the ids that open a user's turn (see `tokenflex.hosts.instruction`).
        vocabulary: tokens that can be answers; the ids from there on are placeholders (see `HostAdapter.vocabulary`).
    """

    model_types = ("llava_next", "llava_next_video")
    derived_from = "llava_next"
    scopes = get_args(Scope)

    def __init__(
        self,
        host: nn.Module,
        *,
        unpad: str = "geometric",
        scope: str = "last-turn",
        marker: Markers = (),
        vocabulary: int | None = None,
    ) -> None:
        if unpad not in ("geometric", "released"):
            raise ConfigError(f"unpad={unpad!r}; use 'geometric', or 'released' for published checkpoints.")
        super().__init__(host, scope=scope, marker=marker)
        self.unpad: Unpad = "released" if unpad == "released" else "geometric"
        self._vocabulary = vocabulary

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings ``unpad``, ``scope``, ``marker`` and ``vocabulary``."""
        return {"unpad": self.unpad, **super().options, "vocabulary": self.vocabulary}

    @property
    def vocabulary(self) -> int | None:
        """The number of tokens that was given; None: all of the host's."""
        return self._vocabulary

    def instructions(self, batch: HostBatch) -> tuple[Instruction, ...]:
        """The input embeddings of each row's prompt tokens, detached."""
        if self.scope != "published":
            return super().instructions(batch)
        embed = self._model.get_input_embeddings()
        return published_instructions(batch, self._tokens, self._pad_token, embed)

    def tiles(self, size: tuple[int, int]) -> Grid:
        """Local tiles, down and across, of an image of (height, width) pixels."""
        return anyres.local_tiles(self._model.config, size)

    def _layouts(self, modality: Modality, inputs: Inputs, shown: Shown) -> Sequence[ImageLayout]:
        found = super()._layouts(modality, inputs, shown)
        return [replace(one, unpad=self.unpad) if isinstance(one, TiledLayout) else one for one in found]

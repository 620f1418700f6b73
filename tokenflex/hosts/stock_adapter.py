"""What the adapters of all stock hosts share: settings, counting, shortening and smaller images.

What differs between architectures is data (`Architecture`); what differs between families of them is left to
subclasses: how a batch is read, and how their encoders are called and their output written.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

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
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.hosts import appending, placeholders, stock
from tokenflex.hosts.architecture import Architecture
from tokenflex.hosts.architectures import ARCHITECTURES, unpackable
from tokenflex.hosts.encoded import kept_of
from tokenflex.hosts.instruction import Markers, Scope, markers, read_instructions
from tokenflex.hosts.modality import BatchImage, Modality
from tokenflex.hosts.placeholders import Shortening
from tokenflex.hosts.refusing import refusing
from tokenflex.hosts.resizing import Image, Resizing, check_images, check_shares, smaller_batch
from tokenflex.hosts.tower_attention import unreadable


class StockAdapter(HostAdapter):
    """Serves architectures of transformers by their rows in `tokenflex.hosts.architectures`.

    Subclasses name those that they serve as ``model_types``, and the values of ``scope`` that they know as ``scopes``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope: what counts as the instruction (see `tokenflex.hosts.instruction`).
        marker: the ids that open a user's turn (see `tokenflex.hosts.instruction`).
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    scopes: ClassVar[tuple[str, ...]] = ("last-turn", "prompt")

    def __init__(self, host: nn.Module, *, scope: str = "last-turn", marker: Markers = ()) -> None:
        super().__init__(host)
        if scope not in self.scopes:
            listed = f"one of {', '.join(self.scopes)}" if len(self.scopes) > 2 else " or ".join(map(repr, self.scopes))
            raise ConfigError(f"scope={scope!r}; use {listed}.")
        self.scope: Scope = cast(Scope, scope)
        self.marker = markers(marker)

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """The row of the host's architecture says which checkpoints aren't served."""
        config: Any = stock.base_of(host).config
        if config.model_type not in cls.model_types:
            return f"its model_type is {config.model_type!r}"
        return cls._row(config.model_type).refusal(config)

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings ``scope`` and ``marker``."""
        return {"scope": self.scope, "marker": [list(one) for one in self.marker]}

    @property
    def architecture(self) -> Architecture:
        """The row of data that this adapter works by."""
        return self._row(self.model_type)

    @property
    def model_type(self) -> str:
        """The ``model_type`` of the host's config."""
        return self._model.config.model_type

    @property
    def family(self) -> str:
        """The table that the architecture's row stands in."""
        return self.architecture.family

    @property
    def dim(self) -> int:
        """Width of the language model's embeddings."""
        return self._model.config.get_text_config().hidden_size

    @property
    def grid(self) -> Grid:
        """The grid of one view; of hosts of dynamic resolution, that of the usual one."""
        return self.architecture.canonical(self._model.config)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Those of all modalities, each of them once."""
        return tuple(dict.fromkeys(self._tokens))

    @property
    def packing_refusal(self) -> str | None:
        """What was measured of the architecture, and what its language model's layers say."""
        return unpackable(self._model.config)

    @property
    def attention_refusal(self) -> str | None:
        """What the architecture's row and the modules of its vision tower say."""
        refused = self.architecture.attention_refusal
        return refused or unreadable(self._model, self.architecture.vision_tower)

    @property
    def ragged_refusal(self) -> str | None:
        """None, since stock hosts' rows can be spliced apart."""
        return None

    @property
    def resize_refusal(self) -> str | None:
        """What the architecture's row says of its processor."""
        found = self.architecture.resizing
        return found if isinstance(found, str) else None

    def encode(self, batch: HostBatch, attention: bool = False) -> tuple[VisualTokens, ...]:
        """The tokens of all images, modality by modality; the whole of an image first, then its tiles row-major."""
        found: list[VisualTokens] = []
        for modality in self.architecture.modalities:
            own = [item for item in batch.items if item.modality is modality]
            found += self._encoded(modality, batch, own, attention) if own else []
        return tuple(found)

    def instructions(self, batch: HostBatch) -> tuple[Instruction, ...]:
        """The input embeddings of each row's prompt tokens, detached."""
        embed = self._model.get_input_embeddings()
        return read_instructions(batch, self._tokens, self.scope, self.marker, embed)

    def count(
        self,
        batch: HostBatch,
        kept: Sequence[Sequence[Grid | int]],
        frames: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Tokens of every image at every level, separators included."""
        merged = frames or [None] * len(batch.items)
        counts = [
            [item.layout.count(k, n) for k, n in zip(levels, each or [None] * len(levels), strict=True)]
            for item, levels, each in zip(batch.items, kept, merged, strict=True)
        ]
        return torch.tensor(counts, dtype=torch.long)

    def splice(
        self,
        batch: HostBatch,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        padding_side: PaddingSide | None = None,
        rows: Sequence[int] | None = None,
    ) -> Spliced:
        """Shorten the text around the chosen tokens, pack them in the host's order, and place them."""
        kept = [
            item.layout.per_run(kept_of(one), None if one.frames is None else one.frames.tolist())
            for item, one in zip(batch.items, scaled, strict=True)
        ]
        plan = placeholders.plan(batch, kept, padding_side, rows)
        chosen = placeholders.standing_in(batch, rows)
        tokens = tuple(sum(kept[i]) for i in chosen)
        dropped = {*self._encoded_inputs, *placeholders.SEQUENCE_KEYS, "input_ids"}
        out = {key: value for key, value in batch.inputs.items() if key not in dropped}
        out |= placeholders.apply(plan, self._counted(batch), self._pad_token)
        of_rows = [scaled[i] for i in chosen]
        out |= self._placed(batch, plan, chosen, of_rows, tokens)
        if chosen:
            out |= self.written(batch, images, scaled, chosen)
        return Spliced(out, tokens, placeholders.index(plan))

    @property
    def append_refusal(self) -> str | None:
        """What is known of the architecture's processor."""
        return self.architecture.append_refusal

    def appended(self, batches: Sequence[HostBatch]) -> HostBatch:
        """Images stay modality by modality, as in a batch that was read as a whole."""
        return appending.appended(batches, self.architecture, self._encoded_inputs)

    def written(
        self, batch: HostBatch, images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens], chosen: Sequence[int]
    ) -> Mapping[str, Any]:
        """As `splice` writes it, ``mm_encoder_outputs``."""
        items = [batch.items[i] for i in chosen]
        return {"mm_encoder_outputs": self._written(items, [images[i] for i in chosen], [scaled[i] for i in chosen])}

    def resized(self, batch: HostBatch, shares: Sequence[float]) -> HostBatch:
        """The batch of smaller images, as the architecture's `Resizing` makes them."""
        images = self._images(batch, shares)
        if all(share == 1 for share in shares):
            return batch
        own = batch.inputs.get(placeholders.POSITIONS)
        if self.architecture.rotary and own is not None:
            raise InputError(
                f"{placeholders.POSITIONS} {tuple(own.shape)} are the caller's own, and where the text tokens behind a "
                "smaller image sit isn't defined by them. Leave them out."
            )
        return smaller_batch(batch, images, dropped=self._pixel_inputs, pad_token_id=self._pad_token)

    def encode_resized(
        self, batch: HostBatch, shares: Sequence[float], images: Sequence[int]
    ) -> tuple[VisualTokens, ...]:
        """In as few calls of the encoder as the architecture's `Resizing` needs: one, or one per size."""
        resized_images = self._images(batch, shares)
        check_images(batch, images)
        if len(images) == len(resized_images) and all(share == 1 for share in shares):
            return self.encode(batch)
        made: dict[int, VisualTokens] = {}
        for modality in self.architecture.modalities:
            own = [i for i in images if batch.items[i].modality is modality]
            asked = [resized_images[i] for i in own]
            with refusing({modality.pixels: batch.inputs.get(modality.pixels)}):
                for call in self._resizing.calls(self._model.config, modality, batch, asked) if own else ():
                    items = [replace(batch.items[own[k]], layout=asked[k].layout) for k in call.which]
                    found = self._encoded_smaller(modality, call.inputs, items)
                    made.update(zip((own[k] for k in call.which), found, strict=True))
        return tuple(made[i] for i in images)

    def processor_kwargs(self, batch: HostBatch, image: int, tokens: int) -> Mapping[str, Any]:
        """The settings that the architecture's `Resizing` knows; none where images can't be made smaller."""
        check_images(batch, [image])
        if self.resize_refusal is not None:
            return {}
        resized = self._images(batch, [1.0] * len(batch.items))[image]
        return self._resizing.processor_kwargs(self._model.config, resized, tokens)

    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """By the paths in the architecture's row; what stands in none of them is the language model's."""
        found = self.architecture
        return stock.parameter_groups(self._model, found.vision_tower, found.projector)

    @abstractmethod
    def _encoded(
        self, modality: Modality, batch: HostBatch, items: Sequence[BatchImage], attention: bool
    ) -> Sequence[VisualTokens]:
        """The tokens of all images of one kind.

        Args:
            items: the batch's images of this kind, at least one.
            attention: see `HostAdapter.encode`.
        """

    @abstractmethod
    def _encoded_smaller(
        self, modality: Modality, inputs: HostInputs, items: Sequence[BatchImage]
    ) -> Sequence[VisualTokens]:
        """The tokens of some images of one kind, at the sizes they are to have.

        Args:
            inputs: as `Resizing.calls` gave them.
            items: the images, as they lie at these sizes.
        """

    @abstractmethod
    def _written(
        self, items: Sequence[BatchImage], images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens]
    ) -> Mapping[str, Any]:
        """What the host takes in place of pixels, by key.

        Args:
            items, images, scaled: one per image; at least one image.
        """

    @property
    @abstractmethod
    def _pad_token(self) -> int:
        """The id padding is written as, never a placeholder's."""

    def _counted(self, batch: HostBatch) -> HostBatch:
        """The batch as its text is shortened: with positions that merely count its tokens, if there are any."""
        return batch

    def _placed(
        self,
        batch: HostBatch,
        plan: Shortening,
        chosen: Sequence[int],
        scaled: Sequence[ScaledTokens],
        kept: Sequence[int],
    ) -> Mapping[str, Any]:
        """What the host needs to place the shortened batch's tokens; nothing where it simply counts them.

        Args:
            chosen: numbers of the images in the plan's rows.
            scaled, kept: of these.
        """
        return {}

    @classmethod
    def _row(cls, model_type: str) -> Architecture:
        return ARCHITECTURES[model_type]

    @property
    def _model(self) -> Any:
        return stock.base_of(self.host)

    @property
    def _tokens(self) -> list[int]:
        """The placeholder's id of every modality."""
        return [getattr(self._model.config, modality.token) for modality in self.architecture.modalities]

    @property
    def _encoder_keys(self) -> tuple[str, ...]:
        """Inputs of the encoders, modality by modality."""
        return tuple(name for modality in self.architecture.modalities for name in (modality.pixels, *modality.inputs))

    @property
    def _encoded_inputs(self) -> set[str]:
        """Inputs that a shortened batch has no use for, since its images are encoded."""
        return set(self._encoder_keys)

    @property
    def _pixel_inputs(self) -> set[str]:
        """Inputs that a batch of smaller images can't have, since it has no pixels."""
        return set(self._encoder_keys)

    @property
    def _resizing(self) -> Resizing:
        found = self.architecture.resizing
        if isinstance(found, str):
            raise UnsupportedHostError(f"{self.model_type!r} can't take smaller images: {found}.")
        return found

    def _images(self, batch: HostBatch, shares: Sequence[float]) -> list[Image]:
        """Every image at the size it is to have."""
        check_shares(batch, shares)
        resizing, config, found = self._resizing, self._model.config, list[Image]()
        taken = {modality.pixels: 0 for modality in self.architecture.modalities}
        for item, share in zip(batch.items, shares, strict=True):
            number = taken[item.modality.pixels]
            found.append(resizing.image(config, item.modality, batch, number, item.layout, share))
            taken[item.modality.pixels] += 1
        return found

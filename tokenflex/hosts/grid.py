"""One adapter for every architecture whose images are grids of tokens; what differs is data (`Architecture`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from tokenflex.contracts import HostBatch, HostInputs, ScaledTokens, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.hosts import encoded, placeholders
from tokenflex.hosts.architectures import GRIDS
from tokenflex.hosts.instruction import Markers
from tokenflex.hosts.layouts import ImageLayout
from tokenflex.hosts.modality import BatchImage, Modality, batch_of, located
from tokenflex.hosts.placeholders import Shortening
from tokenflex.hosts.positions import FRAME_SECONDS, Positions, compact_grids, full_positions, span_positions
from tokenflex.hosts.refusing import refusing, require_types, sized
from tokenflex.hosts.stock_adapter import StockAdapter
from tokenflex.hosts.tower_attention import attending


class GridAdapter(StockAdapter):
    """Serves the architectures whose images are grids of tokens, as loaded by transformers 5.18 or newer.

    An image here is what the processor writes as one stretch of the prompt: an image, or a tile where tiles have
    text tokens between them. All tiles of a stretch share one level, unless ``route_per`` is ``tile``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope: what counts as the instruction (see `tokenflex.hosts.instruction`).
        marker: the ids that open a user's turn (see `tokenflex.hosts.instruction`).
        positions: for hosts with M-RoPE, where kept tokens sit (see `tokenflex.hosts.positions`).
        route_per: ``stretch``, or ``tile``: tiles side by side in one stretch (InternVL) are images of their own.
    """

    model_types = tuple(GRIDS)

    def __init__(
        self,
        host: nn.Module,
        *,
        scope: str = "last-turn",
        marker: Markers = (),
        positions: str = "span",
        route_per: str = "stretch",
    ) -> None:
        super().__init__(host, scope=scope, marker=marker)
        if positions not in get_args(Positions):
            raise ConfigError(f"positions={positions!r}; use 'span' or 'compact'.")
        if route_per not in ("stretch", "tile"):
            raise ConfigError(f"route_per={route_per!r}; use 'stretch' or 'tile'.")
        self.positions: Positions = cast(Positions, positions)
        self.route_per = route_per

    @property
    def options(self) -> Mapping[str, Any]:
        """The settings ``scope``, ``marker``, ``positions`` and ``route_per``."""
        return {**super().options, "positions": self.positions, "route_per": self.route_per}

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels and further inputs of the encoders of all modalities."""
        return self._encoder_keys

    @property
    def position_inputs(self) -> tuple[str, ...]:
        """What hosts with M-RoPE compute positions from: the grids of images and videos."""
        if not self.architecture.rotary:
            return ()
        return tuple(modality.grids for modality in self.architecture.modalities if modality.grids)

    @property
    def resize_refusal(self) -> str | None:
        """What the architecture's row says of its processor; tiles that are routed one by one can't be fewer."""
        found = self.architecture.resizing
        if not isinstance(found, str) and self.route_per == "tile" and found.whole:
            return "tiles are routed one by one (route_per='tile'), and a smaller image has others"
        return super().resize_refusal

    def position_ids(self, inputs: HostInputs) -> Tensor | None:
        """For hosts with M-RoPE the positions that were given, or else the host's own; None for the others."""
        return full_positions(self._model, self._typed(inputs)) if self.architecture.rotary else None

    def read(self, inputs: HostInputs) -> HostBatch:
        """Images and videos, modality by modality.

        Raises:
            InputError: placeholders don't match what is to be seen.
        """
        self._refuse_unseen(inputs)
        modalities = self.architecture.modalities
        sizes = [name for m in modalities for name in (*m.sizes, m.grids) if name]
        sizes += FRAME_SECONDS if self.architecture.rotary else ()
        cpu = placeholders.on_cpu(inputs, sizes)
        known, ids, items, types = {**inputs, **cpu}, cpu["input_ids"], list[BatchImage](), None
        for modality in modalities:
            shown = ids == getattr(self._model.config, modality.token)
            if modality.type is not None:
                types = self._typed(cpu)[str(self.architecture.types)] if types is None else types
                shown = shown & (types == modality.type)
            layouts = self._layouts(modality, known, cpu, shown)
            if self.route_per == "tile":
                layouts = [tile for layout in layouts for tile in layout.apart()]
            items += located(modality, layouts, shown)
        if self.architecture.types in cpu:
            known_types = [modality.type for modality in modalities if modality.type is not None]
            require_types(cpu, str(self.architecture.types), tuple(dict.fromkeys(self._tokens)), known_types)
        return batch_of(inputs, cpu, items)

    def _layouts(
        self, modality: Modality, known: HostInputs, cpu: dict[str, Tensor], shown: Tensor
    ) -> list[ImageLayout]:
        """How the images of one kind lie that the batch shows, in order.

        Args:
            known: the batch, what says what is where on the CPU.
            cpu: what of it is there; sizes that aren't tensors are added.
            shown: where its placeholders are.

        Raises:
            InputError: sizes are none, or nothing in the text stands for the images.
        """
        pixels = known.get(modality.pixels)
        if pixels is None:
            return []
        names = (*modality.sizes, *((modality.grids,) if modality.grids else ()))
        sizes = sized(known, cpu, names)
        cpu |= sizes
        checked = {name: known.get(name) for name in (modality.pixels, *names)}
        with refusing(checked, "what counts the images' tokens"):
            layouts = list(modality.layouts(self._model.config, {**known, **sizes}, shown))
        for number, layout in enumerate(layouts):
            if min(layout.grid.rows, layout.grid.cols, layout.views) < 1:
                said = [f"{name} {value[number].tolist()}" for name, value in sizes.items()]
                said = said or [f"{int(shown.sum())} placeholders in input_ids"]
                raise InputError(
                    f"image {number} has no token by its size ({', '.join(said)}). Pass text, sizes and images as "
                    "the processor made them."
                )
        if not layouts:
            token = getattr(self._model.config, modality.token)
            raise InputError(
                f"{modality.pixels} {tuple(getattr(pixels, 'shape', ()))} came with a text that has no placeholder for "
                f"it (token {token}). Make text and images with the same processor call, or leave {modality.pixels} "
                "out."
            )
        return layouts

    def _encoded(
        self, modality: Modality, batch: HostBatch, items: Sequence[BatchImage], attention: bool
    ) -> Sequence[VisualTokens]:
        names = (modality.pixels, *modality.inputs, *((modality.grids,) if modality.grids else ()))
        selected = {name: batch.inputs[name] for name in names if batch.inputs.get(name) is not None}
        return self._called(modality, selected, items, attention)

    def _encoded_smaller(
        self, modality: Modality, inputs: HostInputs, items: Sequence[BatchImage]
    ) -> Sequence[VisualTokens]:
        return self._called(modality, inputs, items)

    def _called(
        self, modality: Modality, selected: HostInputs, items: Sequence[BatchImage], attention: bool = False
    ) -> list[VisualTokens]:
        """The tokens of the images that the host's encoder is given in one call."""
        asked = {"output_hidden_states": True} if attention else {}
        with refusing(selected):
            output = getattr(self._model.base_model, modality.encoder)(**selected, **asked, return_dict=True)
            images = encoded.read(output, items, self.architecture.mark_field)
        if attention:
            images = attending(images, self._model, self.architecture.vision_tower, output.hidden_states, selected)
        return images

    def _written(
        self, items: Sequence[BatchImage], images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens]
    ) -> Mapping[str, Any]:
        return encoded.write(self.architecture, items, images, scaled)

    @property
    def _encoded_inputs(self) -> set[str]:
        """The encoders' inputs, and the grids, which `_placed` gives again where positions are computed from them."""
        return {*self._encoder_keys, *(m.grids for m in self.architecture.modalities if m.grids)}

    @property
    def _pixel_inputs(self) -> set[str]:
        """All but the inputs that tell of sizes, which are those of the smaller images then."""
        sizes = {name for m in self.architecture.modalities for name in (*m.sizes, m.grids)}
        return set(self._encoder_keys) - sizes

    @property
    def _pad_token(self) -> int:
        config = self._model.config
        text = config.get_text_config()
        found = [getattr(c, "pad_token_id", None) for c in (self._model.generation_config, text, config)]
        usable = [pad for pad in found if isinstance(pad, int) and 0 <= pad < text.vocab_size]
        return next((pad for pad in usable if pad not in self._tokens), 0)

    def _refuse_unseen(self, inputs: HostInputs) -> None:
        known = self.encoder_inputs
        unseen = [n for n in inputs if n.startswith("pixel_values") and n not in known and inputs[n] is not None]
        if unseen:
            raise InputError(
                f"{', '.join(unseen)}: TokenFlex doesn't serve this input of {self.model_type!r}, only "
                f"{', '.join(modality.pixels for modality in self.architecture.modalities)}. Leave it out."
            )

    def _counted(self, batch: HostBatch) -> HostBatch:
        """Where positions have axes, `_placed` gives them."""
        if not self.architecture.rotary:
            return batch
        apart = placeholders.POSITIONS
        return replace(
            batch,
            inputs={key: value for key, value in batch.inputs.items() if key != apart},
            cpu={key: value for key, value in batch.cpu.items() if key != apart},
        )

    def _placed(
        self,
        batch: HostBatch,
        plan: Shortening,
        chosen: Sequence[int],
        scaled: Sequence[ScaledTokens],
        kept: Sequence[int],
    ) -> Mapping[str, Any]:
        """For hosts with M-RoPE positions, or grids to compute them from; token types with either."""
        if not self.architecture.rotary:
            return {}
        inputs, types, items = batch.inputs, self.architecture.types, [batch.items[i] for i in chosen]
        grids = self._grids(batch, chosen)
        own = inputs.get(placeholders.POSITIONS)
        if plan.unchanged or not items:
            if own is None:
                return grids | (self._types_left_out(batch, plan) if items else {})
            return grids | {placeholders.POSITIONS: own if plan.unchanged else placeholders.gathered(plan, own, 0)}
        if own is not None and (own.dim() == 2 or self.positions == "compact"):
            raise InputError(
                f"{placeholders.POSITIONS} {tuple(own.shape)} are the caller's own; an image of fewer tokens can be "
                "placed by them only if they have axes (axes, rows, length) and the adapter has positions='span'. "
                "Leave them out."
            )
        typed, device = self._typed(batch.cpu), inputs["input_ids"].device
        token_types = {} if types is None else {types: placeholders.gathered(plan, typed[types], 0).to(device)}
        if self.positions == "span":
            if placeholders.POSITIONS not in batch.made:  # rows may be spliced group by group
                batch.made[placeholders.POSITIONS] = full_positions(self._model, {**inputs, **typed}).to(device)
            full = batch.made[placeholders.POSITIONS]
            spans, layouts = [item.span for item in items], [item.layout for item in items]
            return token_types | {"position_ids": span_positions(full, plan, spans, layouts, scaled, kept)}
        for modality in self.architecture.modalities:
            these = [i for i, item in enumerate(items) if item.modality is modality]
            if modality.grids in grids and these:
                table = batch.cpu[modality.grids][self._numbers(batch, modality, [chosen[i] for i in these])]
                layouts, kept_of = [items[i].layout for i in these], [scaled[i] for i in these]
                grids[modality.grids] = compact_grids(table, layouts, kept_of).to(device)
        return grids | token_types

    def _grids(self, batch: HostBatch, chosen: Sequence[int]) -> dict[str, Any]:
        """The inputs of grids, of the chosen images only, in their order."""
        found: dict[str, Any] = {}
        for modality in self.architecture.modalities:
            if not modality.grids or batch.inputs.get(modality.grids) is None:
                continue
            table = batch.inputs[modality.grids]
            picked = self._numbers(batch, modality, [i for i in chosen if batch.items[i].modality is modality])
            if picked != list(range(len(table))):
                table = table[torch.tensor(picked, dtype=torch.long).to(table.device)] if picked else None
            if table is not None:
                found[modality.grids] = table
        return found

    def _numbers(self, batch: HostBatch, modality: Modality, chosen: Sequence[int]) -> list[int]:
        """Numbers of images among those of their modality."""
        first = [item.modality is modality for item in batch.items].index(True) if chosen else 0
        return [i - first for i in chosen]

    def _types_left_out(self, batch: HostBatch, plan: Shortening) -> dict[str, Tensor]:
        """Token types that the host asks for and the caller left out."""
        types = self.architecture.types
        if types is None or batch.inputs.get(types) is not None:
            return {}
        made = placeholders.gathered(plan, self._typed(batch.cpu)[types], 0)
        return {types: made.to(batch.inputs["input_ids"].device)}

    def _typed(self, inputs: HostInputs) -> HostInputs:
        types = self.architecture.types
        if types is None or inputs.get(types) is not None:
            return inputs
        ids, known = inputs["input_ids"], enumerate(dict.fromkeys(self._tokens), 1)
        return {**inputs, types: torch.stack([number * (ids == token).long() for number, token in known]).sum(0)}

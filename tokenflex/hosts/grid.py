"""One adapter for every architecture whose images are grids of tokens; what differs is data (`Architecture`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

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
    Span,
    Spliced,
    VisualTokens,
)
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.hosts import encoded, placeholders, stock
from tokenflex.hosts.architecture import Architecture, Modality, Unit
from tokenflex.hosts.architectures import ARCHITECTURES, READABLE, unpackable
from tokenflex.hosts.encoded import Item, layout_of
from tokenflex.hosts.instruction import Markers, Scope, markers, read_instructions
from tokenflex.hosts.placeholders import Shortening
from tokenflex.hosts.positions import FRAME_SECONDS, Positions, compact_grids, full_positions, span_positions
from tokenflex.hosts.refusing import refusing, require_types, sized
from tokenflex.hosts.resizing import Image, Resizing, check_images, check_shares, smaller_batch
from tokenflex.hosts.resizings import resizing_of
from tokenflex.hosts.tower_attention import attending, unreadable


class GridAdapter(HostAdapter):
    """Serves the architectures in `tokenflex.hosts.architectures`, as loaded by transformers 5.18 or newer.

    A routing unit is what the processor writes as one stretch of the prompt: an image, or a tile where tiles have
    text tokens between them. All tiles of a stretch share one level, unless ``route_per`` is ``tile``.

    Args:
        host: the model, or a PEFT wrapper around it.
        scope, marker: what counts as the instruction (see `tokenflex.hosts.instruction`).
        positions: for hosts with M-RoPE, where kept tokens sit (see `tokenflex.hosts.positions`).
        route_per: ``run``, or ``tile``: tiles side by side in one stretch (InternVL) are units of their own.
    """

    model_types = tuple(ARCHITECTURES)

    def __init__(
        self,
        host: nn.Module,
        *,
        scope: str = "last-turn",
        marker: Markers = (),
        positions: str = "span",
        route_per: str = "stretch",
    ) -> None:
        super().__init__(host)
        if scope not in ("last-turn", "prompt"):
            raise ConfigError(f"scope={scope!r}; use 'last-turn' or 'prompt'.")
        if positions not in get_args(Positions):
            raise ConfigError(f"positions={positions!r}; use 'span' or 'compact'.")
        self.scope: Scope = cast(Scope, scope)
        self.marker = markers(marker)
        if route_per not in ("stretch", "tile"):
            raise ConfigError(f"route_per={route_per!r}; use 'stretch' or 'tile'.")
        self.positions: Positions = cast(Positions, positions)
        self.route_per = route_per

    @classmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """What the architecture's entry says of this checkpoint's settings."""
        config: Any = stock.base_of(host).config
        found = ARCHITECTURES.get(config.model_type)
        return f"its model_type is {config.model_type!r}" if found is None else found.refusal(config)

    @property
    def options(self) -> Mapping[str, Any]:
        """``scope``, ``marker``, ``positions`` and ``route_per``."""
        return {
            "scope": self.scope,
            "marker": [list(one) for one in self.marker],
            "positions": self.positions,
            "route_per": self.route_per,
        }

    @property
    def architecture(self) -> Architecture:
        """The data this adapter works by."""
        return ARCHITECTURES[self.model_type]

    @property
    def model_type(self) -> str:
        """The host's."""
        return self._model.config.model_type

    @property
    def family(self) -> str:
        """The architecture's table."""
        return self.architecture.family

    @property
    def dim(self) -> int:
        """Width of the language model's embeddings."""
        return self._model.config.get_text_config().hidden_size

    @property
    def grid(self) -> Grid:
        """The grid of one view at the usual resolution."""
        return self.architecture.canonical(self._model.config)

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Of all modalities."""
        return tuple(name for modality in self.architecture.modalities for name in (modality.pixels, *modality.inputs))

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Of all modalities."""
        return tuple(dict.fromkeys(self._tokens))

    @property
    def packing_refusal(self) -> str | None:
        """What was measured of the architecture."""
        return unpackable(self._model.config)

    @property
    def attention_refusal(self) -> str | None:
        """What is known of the architecture's vision tower."""
        if self.model_type not in READABLE:
            return "its vision tower isn't a plain stack of layers over square views"
        return unreadable(self._model, self.architecture.vision_tower)

    @property
    def position_inputs(self) -> tuple[str, ...]:
        """What hosts with M-RoPE compute positions from."""
        if not self.architecture.rotary:
            return ()
        return tuple(modality.grids for modality in self.architecture.modalities if modality.grids)

    @property
    def ragged_refusal(self) -> str | None:
        """None: rows can be spliced apart."""
        return None

    def position_ids(self, inputs: HostInputs) -> Tensor | None:
        """The host's own, or those given, for hosts with M-RoPE."""
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
        known, ids, items, types = {**inputs, **cpu}, cpu["input_ids"], list[Item](), None
        for modality in modalities:
            shown = ids == getattr(self._model.config, modality.token)
            if modality.type is not None:
                types = self._typed(cpu)[str(self.architecture.types)] if types is None else types
                shown = shown & (types == modality.type)
            units = self._units(modality, known, cpu, shown)
            if self.route_per == "tile":
                units = [tile for unit in units for tile in unit.tiles()]
            spans = placeholders.locate(shown, [unit.placeholders for unit in units])
            spans = [replace(span, leads=unit.runs == "views") for span, unit in zip(spans, units, strict=True)]
            items += [(modality, unit, span) for unit, span in zip(units, spans, strict=True)]
        if self.architecture.types in cpu:
            known_types = [modality.type for modality in modalities if modality.type is not None]
            require_types(cpu, str(self.architecture.types), tuple(dict.fromkeys(self._tokens)), known_types)
        return HostBatch(
            inputs,
            cpu,
            tuple(span for _, _, span in items),
            tuple(unit.grid for _, unit, _ in items),
            tuple(unit.views * unit.video for _, unit, _ in items),
            tuple(items),
        )

    def _units(self, modality: Modality, known: HostInputs, cpu: dict[str, Tensor], shown: Tensor) -> list[Unit]:
        """What of one kind the batch shows, in order.

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
            units = list(modality.units(self._model.config, {**known, **sizes}, shown))
        for number, unit in enumerate(units):
            if min(unit.grid.rows, unit.grid.cols, unit.views) < 1:
                said = [f"{name} {value[number].tolist()}" for name, value in sizes.items()]
                said = said or [f"{int(shown.sum())} placeholders in input_ids"]
                raise InputError(
                    f"image {number} has no token by its size ({', '.join(said)}). Pass text, sizes and images as "
                    "the processor made them."
                )
        if not units:
            token = getattr(self._model.config, modality.token)
            raise InputError(
                f"{modality.pixels} {tuple(getattr(pixels, 'shape', ()))} came with a text that has no placeholder for "
                f"it (token {token}). Make text and images with the same processor call, or leave {modality.pixels} "
                "out."
            )
        return units

    def encode(self, batch: HostBatch, attention: bool = False) -> tuple[VisualTokens, ...]:
        """One item per unit; videos after images."""
        found: list[VisualTokens] = []
        inputs = batch.inputs
        for modality in self.architecture.modalities:
            own = [(unit, span) for its, unit, span in batch.items if its is modality]
            if not own:
                continue
            names = (modality.pixels, *modality.inputs, *((modality.grids,) if modality.grids else ()))
            selected = {name: inputs[name] for name in names if inputs.get(name) is not None}
            units, spans = zip(*own, strict=True)
            found += self._encoded(modality, selected, units, spans, attention)
        return tuple(found)

    def _encoded(
        self,
        modality: Modality,
        selected: HostInputs,
        units: Sequence[Unit],
        spans: Sequence[Span],
        attention: bool = False,
    ) -> list[VisualTokens]:
        asked = {"output_hidden_states": True} if attention else {}
        with refusing(selected):
            output = getattr(self._model.base_model, modality.encoder)(**selected, **asked, return_dict=True)
            images = encoded.read(output, units, spans, self.architecture.mark_field)
        if attention:
            images = attending(images, self._model, self.architecture.vision_tower, output.hidden_states, selected)
        return images

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
        """Tokens of every unit at every level, the encoder's own marks included."""
        units = [unit for _, unit, _ in batch.items]
        merged = frames or [None] * len(units)
        counts = [
            [
                replace(unit, views=views or unit.views).placeholders_of(k)
                for k, views in zip(levels, each or [0] * len(levels), strict=True)
            ]
            for unit, levels, each in zip(units, kept, merged, strict=True)
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
        """Pack the chosen tokens, shorten the text around them, and place them."""
        kept = [unit.kept(layout_of(one), _frames(one)) for (_, unit, _), one in zip(batch.items, scaled, strict=True)]
        plan = placeholders.plan(batch, kept, padding_side, rows)
        chosen = placeholders.standing_in(batch, rows)
        items, tokens = [batch.items[i] for i in chosen], [sum(kept[i]) for i in chosen]
        grids = {modality.grids for modality in self.architecture.modalities if modality.grids}
        dropped = {*self.encoder_inputs, *grids, *placeholders.SEQUENCE_KEYS, "input_ids"}
        out = {key: value for key, value in batch.inputs.items() if key not in dropped}
        counted = _without_positions(batch) if self.architecture.rotary else batch
        out.update(placeholders.apply(plan, counted, self._pad_token))
        scaled = [scaled[i] for i in chosen]
        if self.architecture.rotary:
            out.update(self._placed(batch, plan, chosen, scaled, tokens))
        if items:
            images = [images[i] for i in chosen]
            out["mm_encoder_outputs"] = encoded.write(self.architecture, items, images, scaled)
        return Spliced(out, tuple(tokens), placeholders.index(plan))

    @property
    def resize_refusal(self) -> str | None:
        """What is known of the architecture's processor."""
        found = resizing_of(self._model.config)
        if isinstance(found, str):
            return found
        if self.route_per == "tile" and found.whole:
            return "tiles are routed one by one (route_per='tile'), and a smaller image has others"
        return None

    def resized(self, batch: HostBatch, shares: Sequence[float]) -> HostBatch:
        """By the architecture's `Resizing`."""
        images = self._images(batch, shares)
        if all(share == 1 for share in shares):
            return batch
        modalities = self.architecture.modalities
        grids = {modality.grids for modality in modalities if modality.grids}
        own = batch.inputs.get(placeholders.POSITIONS)
        if self.architecture.rotary and own is not None:
            raise InputError(
                f"{placeholders.POSITIONS} {tuple(own.shape)} are the caller's own, and where the text tokens behind a "
                "smaller image sit isn't defined by them. Leave them out."
            )
        dropped = tuple({*self.encoder_inputs} - {name for m in modalities for name in m.sizes} - grids)
        return smaller_batch(batch, batch.items, images, dropped=dropped, pad_token_id=self._pad_token)

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
            own = [i for i in images if batch.items[i][0] is modality]
            asked = [resized_images[i] for i in own]
            with refusing({modality.pixels: batch.inputs.get(modality.pixels)}):
                for call in self._resizing.calls(self._model.config, modality, batch, asked) if own else ():
                    units, spans = [asked[k].unit for k in call.which], [batch.spans[own[k]] for k in call.which]
                    found = self._encoded(modality, call.inputs, units, spans)
                    made.update(zip((own[k] for k in call.which), found, strict=True))
        return tuple(made[i] for i in images)

    def processor_kwargs(self, batch: HostBatch, image: int, tokens: int) -> Mapping[str, Any]:
        """By the architecture's `Resizing`."""
        check_images(batch, [image])
        if self.resize_refusal is not None:
            return {}
        resized = self._images(batch, [1.0] * len(batch.items))[image]
        return self._resizing.processor_kwargs(self._model.config, resized, tokens)

    @property
    def _resizing(self) -> Resizing:
        found = resizing_of(self._model.config)
        if isinstance(found, str):
            raise UnsupportedHostError(f"{self.model_type!r} can't take smaller images: {found}.")
        return found

    def _images(self, batch: HostBatch, shares: Sequence[float]) -> list[Image]:
        """Every image at the size it is to have."""
        check_shares(batch, shares)
        resizing, config, found = self._resizing, self._model.config, list[Image]()
        taken = {modality.pixels: 0 for modality in self.architecture.modalities}
        for (modality, unit, _), share in zip(batch.items, shares, strict=True):
            found.append(resizing.image(config, modality, batch, taken[modality.pixels], unit, share))
            taken[modality.pixels] += 1
        return found

    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """By the architecture's paths; what stands in none of them is the language model's."""
        found = self.architecture
        return stock.parameter_groups(self._model, found.vision_tower, found.projector)

    @property
    def _model(self) -> Any:
        return stock.base_of(self.host)

    @property
    def _pad_token(self) -> int:
        config = self._model.config
        text = config.get_text_config()
        found = [getattr(c, "pad_token_id", None) for c in (self._model.generation_config, text, config)]
        usable = [pad for pad in found if isinstance(pad, int) and 0 <= pad < text.vocab_size]
        return next((pad for pad in usable if pad not in self._tokens), 0)

    @property
    def _tokens(self) -> list[int]:
        return [getattr(self._model.config, modality.token) for modality in self.architecture.modalities]

    def _refuse_unseen(self, inputs: HostInputs) -> None:
        known = self.encoder_inputs
        unseen = [n for n in inputs if n.startswith("pixel_values") and n not in known and inputs[n] is not None]
        if unseen:
            raise InputError(
                f"{', '.join(unseen)}: TokenFlex doesn't serve this input of {self.model_type!r}, only "
                f"{', '.join(modality.pixels for modality in self.architecture.modalities)}. Leave it out."
            )

    def _placed(
        self,
        batch: HostBatch,
        plan: Shortening,
        chosen: Sequence[int],
        scaled: Sequence[ScaledTokens],
        kept: Sequence[int],
    ) -> dict[str, Any]:
        """What the host needs to place the shortened batch's tokens: positions, or grids to compute them from.

        Args:
            chosen: numbers of the images in the plan's rows.
            scaled, kept: of these.
        """
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
            spans, units = [span for _, _, span in items], [unit for _, unit, _ in items]
            return token_types | {"position_ids": span_positions(full, plan, spans, units, scaled, kept)}
        for modality in self.architecture.modalities:
            these = [i for i, (its, _, _) in enumerate(items) if its is modality]
            if modality.grids in grids and these:
                table = batch.cpu[modality.grids][self._numbers(batch, modality, [chosen[i] for i in these])]
                units, kept_of = [items[i][1] for i in these], [scaled[i] for i in these]
                grids[modality.grids] = compact_grids(table, units, kept_of).to(device)
        return grids | token_types

    def _grids(self, batch: HostBatch, chosen: Sequence[int]) -> dict[str, Any]:
        """The inputs of grids, of the chosen images only, in their order."""
        found: dict[str, Any] = {}
        for modality in self.architecture.modalities:
            if not modality.grids or batch.inputs.get(modality.grids) is None:
                continue
            table = batch.inputs[modality.grids]
            picked = self._numbers(batch, modality, [i for i in chosen if batch.items[i][0] is modality])
            if picked != list(range(len(table))):
                table = table[torch.tensor(picked, dtype=torch.long).to(table.device)] if picked else None
            if table is not None:
                found[modality.grids] = table
        return found

    def _numbers(self, batch: HostBatch, modality: Modality, chosen: Sequence[int]) -> list[int]:
        """Numbers of images among those of their modality."""
        first = [its is modality for its, _, _ in batch.items].index(True) if chosen else 0
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


def _frames(scaled: ScaledTokens) -> list[int] | None:
    return None if scaled.frames is None else scaled.frames.tolist()


def _without_positions(batch: HostBatch) -> HostBatch:
    """Where positions have axes, `_placed` gives them."""
    apart = placeholders.POSITIONS
    return replace(
        batch,
        inputs={key: value for key, value in batch.inputs.items() if key != apart},
        cpu={key: value for key, value in batch.cpu.items() if key != apart},
    )

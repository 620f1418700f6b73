"""``FlexModel``: decides how many visual tokens each image needs, then calls the unmodified host."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationMixin
from transformers.utils import ModelOutput

from tokenflex import checkpoint
from tokenflex.compressor import Compressor
from tokenflex.contracts import (
    READ_OFF,
    Decision,
    HostAdapter,
    HostInputs,
    PaddingSide,
    Spliced,
)
from tokenflex.contracts.levels import spread
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.hosts import continuing, grouped, stock
from tokenflex.model import (
    aligned,
    callbacks,
    compiling,
    continued,
    door,
    encoding,
    exporting,
    generation,
    peft_hosts,
    prefixed,
    request,
)
from tokenflex.model.config import FlexConfig
from tokenflex.model.encoding import Encoded
from tokenflex.model.escalation import climbing
from tokenflex.model.escalation.settings import Allowed
from tokenflex.model.host_weights import in_float32
from tokenflex.model.hosting import Hosting
from tokenflex.model.request import Budgets, Level
from tokenflex.model.signature import HostSignature

Objective = Callable[["FlexModel", HostInputs], ModelOutput]


class FlexModel(aligned.Headless, Hosting, GenerationMixin):
    """A host and the parts that shorten its input, as one transformers model.

    ``flex.host`` is the host itself and works as before; nothing of it is changed. Make one with
    `tokenflex.wrap` or `tokenflex.load_parts`, or load one that `save_pretrained` wrote, with
    ``AutoModelForImageTextToText.from_pretrained`` after ``import tokenflex``.

    ``generation_config`` begins as a copy of the host's and is this model's own. Modes are the host's: `train` and
    `eval` set the host's too, so of several models over one host, those that share it train or none does.
    """

    config_class = FlexConfig
    base_model_prefix = "tokenflex"
    main_input_name = "input_ids"
    input_modalities: ClassVar = ("image", "text")  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: ClassVar = ["compressor"]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        config: FlexConfig,
        host: nn.Module | None = None,
        compressor: Compressor | None = None,
        adapter: HostAdapter | None = None,
    ) -> None:
        super().__init__(config)
        spec: Any = config.parts
        self.host: Any = host
        if host is None:
            plain = AutoModelForImageTextToText.from_config(copy.deepcopy(config.host))
            config.host = plain.config
            self.host = plain if config.adapters is None else peft_hosts.rebuild(plain, config.adapters)
        built = host is None
        self.adapter = adapter or checkpoint.adapter_for(self.host, spec["host"]["options"])
        with in_float32():
            self.compressor = compressor or checkpoint.assemble(spec, self.adapter)
        _require_served(self.compressor, self.adapter)
        self.batching = "auto"
        self.accepts_loss_kwargs = _accepts_loss_kwargs(self.host)
        for name in ("loss_type", "input_modalities"):
            setattr(self, name, getattr(stock.base_of(self.host), name, getattr(self, name)))
        self.generation_config = copy.deepcopy(getattr(self.host, "generation_config", self.generation_config))
        self.post_init()
        if self._wraps:
            tied = peft_hosts.tied_when_built(self.host) if built else peft_hosts.tied(self.host)
            self.all_tied_weights_keys = {f"host.{name}": f"host.{first}" for name, first in tied.items()}
            if (config.adapters or {}).get("float32"):
                kept: Any = self._keep_in_fp32_modules_strict
                self._keep_in_fp32_modules_strict = {*kept, "lora_"}
        self._no_split_modules = _units(self)
        placed = getattr(stock.base_of(self.host), "hf_device_map", None)
        if placed is not None:
            self.hf_device_map = {".".join(filter(None, (self._inner, path))): to for path, to in placed.items()}

    @property
    def batching(self) -> str:
        """How rows of different length go through the host; a setting of the session, which isn't saved.

        - ``"auto"``, the default: in groups of similar length where images were shortened and that costs less than
          padding rows to the longest.
        - ``"padded"``: all rows padded to the longest, in one call.
        - ``"grouped"``: every length by itself, whatever a call costs.

        Outputs are those of the padded call. Where they couldn't be, rows are padded all the same (docs/hosts.md).

        Raises:
            ConfigError: it is set to something else.
        """
        return self._batching

    @batching.setter
    def batching(self, value: str) -> None:
        if value not in grouped.BATCHING:
            raise ConfigError(f"batching={value!r:.200}; use one of {', '.join(map(repr, grouped.BATCHING))}.")
        self._batching = value

    def encode(self, inputs: HostInputs | Any = None, look: bool = True, **batch: Any) -> Encoded:
        """Read the batch and run the vision tower once: over the images, or over the coarsest ones of a scaler with
        `Scaler.shares`, whose finer ones are encoded when they are wanted.

        Args:
            inputs, batch: the batch as the host's processor made it, as a mapping or by keywords.
            look: whether anyone will look at the images before levels are chosen, as the router does.

        Raises:
            InputError: images and placeholders don't match, labels stand on placeholders, or the batch isn't one.
        """
        inputs = door.given_once(inputs, batch)
        door.check(inputs, self.adapter)
        return encoding.encode(self, inputs, look)

    def scores(self, encoded: Encoded) -> Float[Tensor, "images levels"]:
        """The voter's scores, with gradients to router and voter."""
        return encoding.scores(self, encoded)

    def at_levels(
        self,
        inputs: HostInputs,
        encoded: Encoded,
        levels: Sequence[int],
        padding_side: PaddingSide | None = None,
        rows: Sequence[int] | None = None,
    ) -> Spliced:
        """The batch with each image at its level, ready for the host.

        Args:
            inputs: what was encoded, or the same with other labels, which is read again.
            padding_side: where shortened rows are padded; None keeps the side the batch has.
            rows: of the batch, for hosts without a `HostAdapter.ragged_refusal`; None: all.
        """
        return encoding.at_levels(self, inputs, encoded, levels, padding_side, rows)

    def prepare(
        self,
        inputs: HostInputs | Any = None,
        level: Level = None,
        padding_side: PaddingSide | None = None,
        budget: Budgets = None,
        **batch: Any,
    ) -> tuple[Spliced, tuple[Decision, ...]]:
        """Encode, decide, apply.

        Args:
            inputs, batch: as for `encode`.
            level: one for all images, or one per image; None lets the router decide. A level is an integer, from 0
                (fewest tokens) to the last (all tokens; -1 for short), ``"coarsest"`` or ``"finest"``.
            budget: settings of the policy to use instead of the assembly's own, e.g. ``Budget(ratio=0.3)``; a float is
                a ratio, a mapping holds the settings of a ``Budget``.

        Raises:
            InputError: level or budget isn't one, an input is a misspelt ``level`` or ``budget``, the images don't fit,
                or the router can't judge one (see `Compressor.on_bad_scores`).
            ConfigError: a setting of the budget can't be honoured.
        """
        inputs = door.given_once(inputs, batch)
        request.check(self, inputs, level, budget)
        door.check(inputs, self.adapter)
        rows, decisions = self.in_rows(inputs, level, padding_side, budget)
        return rows.whole, decisions

    def in_rows(
        self, inputs: HostInputs, level: Level, padding_side: PaddingSide | None, budget: Budgets
    ) -> tuple[grouped.Rows, tuple[Decision, ...]]:
        """As `prepare`, of a batch that was checked; its rows can be had apart.

        Under ``torch.compile`` it stays as it is, since it reads ids and counts as numbers; the host is compiled.
        """
        eagerly: Any = self._in_rows
        return eagerly(inputs, level, padding_side, budget)

    @torch.compiler.disable
    def _in_rows(self, inputs: HostInputs, level: Level, padding_side: PaddingSide | None, budget: Budgets) -> Any:
        levels, policy = request.read(level, budget, self.compressor.num_levels)
        encoded = encoding.encode(self, inputs, look=levels is None)
        decisions = encoding.decide(self, encoded, levels, policy)
        chosen = [decision.level for decision in decisions]
        return encoding.in_rows(self, inputs, encoded, chosen, padding_side), decisions

    @torch.no_grad()
    def decide(self, *, level: Level = None, budget: Budgets = None, **inputs: Any) -> list[Decision]:
        """What would be done with each image, without running the language model.

        These decisions carry `Decision.processor`: settings by which a processor makes images of the chosen size.

        Args:
            inputs: the batch as the host's processor made it.
            level: forces a level, for its token counts.
            budget: as for `prepare`.

        Raises:
            InputError: the batch has no images, or as for `prepare`.
            ConfigError: as for `prepare`.
        """
        request.check(self, inputs, level, budget)
        levels, policy = request.read(level, budget, self.compressor.num_levels)
        encoded = self.encode(inputs, look=levels is None)
        batch = encoded.batch
        if batch is None or not batch.spans:
            raise InputError(
                "the batch has no images, so there is nothing to decide. Pass pixel_values and image_sizes as "
                "the processor made them."
            )
        found = encoding.decide(self, encoded, levels, policy)
        return [replace(d, processor=self.adapter.processor_kwargs(batch, i, d.tokens)) for i, d in enumerate(found)]

    @torch.no_grad()
    def export(self, *, level: Level = None, budget: Budgets = None, **inputs: Any) -> tuple[exporting.Request, ...]:
        """The batch as requests for a serving engine, one per row, without running the language model.

        Args:
            inputs: the batch as the host's processor made it.
            level, budget: as for `prepare`.

        Raises:
            InputError: the engine couldn't be told all that the host is told (see `tokenflex.model.exporting`), or as
                for `prepare`.
            ConfigError: as for `prepare`.
        """
        return exporting.export(self, inputs, level, budget)

    @HostSignature
    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Tensor | None = None,
        level: Level = None,
        budget: Budgets = None,
        objective: Objective | None = None,
        align: str | None = None,
        **inputs: Any,
    ) -> Any:
        """The host's own output on the shortened batch, plus ``decisions``.

        Labels are shortened alike, so the loss is the host's loss. Text-only rows and batches pass through.

        Args:
            input_ids: ``(rows, length)`` with the processor's full placeholders.
            attention_mask: ``(rows, length)``, 0 for padding; on text alone whatever the host takes.
            labels: ``(rows, length)``, -100 where nothing is supervised.
            level: one for all images, or one per image, 0 = fewest tokens; None lets the router decide.
            budget: as for `prepare`.
            objective: a training objective to evaluate instead, given this model and the batch. Going through
                ``forward`` keeps wrappers such as DistributedDataParallel in charge.
            align: where logits and hidden states stand: ``compact``, in the shortened sequence; ``input``, at the
                caller's positions, zeros where a position has no output; None: as ``flex.config.align`` says.

        Raises:
            InputError: images, placeholders and levels don't fit together, or as for `prepare`.
            ConfigError: as for `prepare`.
        """
        request.check(self, inputs, level, budget)
        at_positions = aligned.asked(align, self.config)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **inputs}
        batch = {key: value for key, value in batch.items() if value is not None}
        held = continuing.held_by(batch)
        prefix = prefixed.is_prefix(batch, held, bool(door.visual_inputs(batch, self.adapter)), self.adapter)
        door.check(batch, self.adapter, held, prefix)
        if objective is not None:
            if level is not None or budget is not None or align is not None:
                raise InputError("the objective chooses its levels itself; give no level, budget or align with it.")
            return objective(self, batch)
        if prefix:
            return prefixed.forward(self, batch, held, level, budget, at_positions)
        if input_ids is None or held or not door.shortens(batch):
            return self.host(**self.as_it_is(batch, held, level, budget))
        rows, decisions = self.in_rows(batch, level, None, budget)
        if at_positions:
            output = aligned.forward(self, rows, batch)
        else:
            aligned.refuse_loss_outside(rows, batch)
            inputs = {**generation.with_logits(rows.whole, batch), **aligned.shifted(rows)}
            output = grouped.forward(rows, inputs, self.batching)
        if isinstance(output, ModelOutput):
            continuing.remember(continuing.cache_of(output), rows.whole.inputs, self.adapter)
            output["decisions"] = decisions
        return output

    def as_it_is(self, batch: dict[str, Any], held: int, level: Level, budget: Budgets) -> dict[str, Any]:
        """The host's inputs for embeddings, or for what follows a filled cache: there is nothing to shorten in either.

        Args:
            held: tokens that the cache holds.
        """
        self.nothing_to_choose(batch, level, budget)
        if held and "input_ids" in batch:
            continuing.require_continuation(batch, held, self.adapter, new_only=True)
            batch = batch | continuing.positions(batch, held, self.adapter, new_only=True)
        return batch

    def nothing_to_choose(self, batch: HostInputs, level: Level, budget: Budgets) -> None:
        """Check level and budget where they meet no image.

        Raises:
            InputError: they can't be honoured, since embeddings came in place of ids, or aren't a level or budget.
        """
        if "input_ids" not in batch and (level is not None or budget is not None):
            raise InputError(
                "level and budget shorten images in input_ids, and the batch has inputs_embeds only. Pass input_ids "
                "as the processor made them, or neither level nor budget."
            )
        levels, _ = request.read(level, budget, self.compressor.num_levels)
        if levels is not None:
            spread(levels, 0)

    @torch.no_grad()
    def generate(
        self,
        inputs: Any = None,
        *,
        level: Level = None,
        budget: Budgets = None,
        escalate: Allowed = None,
        **kwargs: Any,
    ) -> Any:
        """The host's ``generate`` on the shortened batch.

        Returns the caller's prompt ids followed by the new tokens, as the host does. With
        ``return_dict_in_generate=True`` the output also has ``decisions``, and ``compact_sequences`` and
        ``compact_attention_mask``: the ids that match the returned cache, to continue a conversation from it.

        Args:
            level: one for all images, or one per image, 0 = fewest tokens; None lets the router decide.
            budget: as for `prepare`.
            escalate: answer at a coarse level, and at finer ones where the language model is unsure; True: as
                ``flex.escalate`` says (see docs/escalate.md).
            kwargs: the batch, and anything the host's ``generate`` takes. ``max_length`` and ``min_length``
                count the caller's prompt.

        Raises:
            InputError: images, placeholders and levels don't fit together; ids don't continue what a filled cache
                holds; or as for `prepare`.
            ConfigError: as for `prepare`.
        """
        request.check(self, kwargs, level, budget)
        allowed = climbing.asked(self, escalate, level)
        prefixed.require_own_preparation(self)
        door.refuse_whole_batch(inputs)
        if inputs is not None:
            kwargs["input_ids"] = inputs
        own = getattr(self.host, "generation_config", None)
        batch, options = generation.split(kwargs, self.adapter.encoder_inputs)
        if own is not None and self.generation_config != own:
            options = generation.with_config(options, self.generation_config)
        if generation.assists(options):
            return self.host.generate(**batch, **options)
        held = continuing.held_by(batch)
        door.check(batch, self.adapter, held, prefixed=held > 0)
        batch = dict(generation.with_mask(batch, self.host, options))
        embedded = "inputs_embeds" in batch and not held  # ids beside embeddings are for bookkeeping only
        if "input_ids" not in batch or embedded or not door.shortens(batch) or self._is_paged(batch, options):
            climbing.require_ids(allowed, batch)
            self.nothing_to_choose(batch, level, budget)
            return self.host.generate(**batch, **options)
        if allowed is not None:
            return climbing.generate(self, batch, allowed, budget, options, own)
        if held:
            return continued.generate(self, batch, held, level, budget, options)
        rows, decisions = self.in_rows(batch, level, "left", budget)
        spliced, ids = rows.whole, rows.whole.inputs["input_ids"]
        options = generation.lengths(options, own, batch["input_ids"].shape[1] - ids.shape[1])
        options = callbacks.in_the_callers_prompt(options, batch["input_ids"], ids, own)
        output = grouped.generate(rows, generation.with_logits(spliced, batch), options, self.batching)
        for found in (batch, output if isinstance(output, ModelOutput) else {}):
            continuing.remember(continuing.cache_of(found), spliced.inputs, self.adapter)
        return generation.restore(output, batch["input_ids"], spliced, decisions)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile what decides each image's level: scaler, router and voter, as one graph; see `compile_parts`.

        The host keeps its own ways: ``flex.host.compile()``, or ``generate`` with ``cache_implementation="static"``.

        Args:
            options: of ``torch.compile``; ``disable=True`` undoes it.
        """
        compiling.compile_parts(self.compressor, *args, **options)


def _require_served(parts: Compressor, adapter: HostAdapter) -> None:
    _require_sizes(parts, adapter)
    wanted, refusal = parts.needs.intersection(READ_OFF), adapter.attention_refusal
    if wanted and refusal:
        who = [part for part in (parts.scaler, parts.router) if part.needs.intersection(READ_OFF)]
        raise UnsupportedHostError(
            f"{' and '.join(type(part).__name__ for part in who)} need(s) the vision tower's "
            f"{' and '.join(sorted(wanted))}, which {adapter.model_type!r} doesn't give: {refusal}. Use parts that "
            "need features only ('tokenflex plugins' lists needs), or another host."
        )


def _require_sizes(parts: Compressor, adapter: HostAdapter) -> None:
    """Refuse a scaler that wants smaller images where it can't have them, or where parts read what they don't give.

    Raises:
        UnsupportedHostError: the host can't be given smaller images.
        ConfigError: parts read the vision tower, or compare levels that the router isn't shown.
    """
    if not parts.scaler.shares:
        return
    name = type(parts.scaler).__name__
    if adapter.resize_refusal:
        raise UnsupportedHostError(
            f"{name} makes images smaller before they are encoded, which {adapter.model_type!r} can't take: "
            f"{adapter.resize_refusal}. Use a scaler that shortens what was encoded, such as 'average-pool', or a "
            "host that docs/resolution.md lists."
        )
    read = sorted(parts.needs.intersection(READ_OFF))
    if read:
        raise ConfigError(
            f"{type(parts.router).__name__} needs the vision tower's {' and '.join(read)}, which isn't read of the "
            f"smaller images that {name} makes. Use a router that needs features only, such as 'avg'."
        )
    if parts.router.compares_levels:
        raise ConfigError(
            f"{type(parts.router).__name__} compares an image's levels, and with {name} it would see the coarsest "
            "image only. Use a router that votes by what it sees, such as 'avg', or another scaler."
        )


def _units(flex: FlexModel) -> set[str]:
    """Classes of modules that stay whole when parameters are sharded or placed: the host's, router and voter.

    Only those that are there; router and voter apart, because their type needn't be the host's.
    """
    present = {type(module).__name__ for module in flex.host.modules()}
    named = set(getattr(flex.host, "_no_split_modules", None) or ()) & present
    parts = (flex.compressor.router, flex.compressor.voter)
    return named | {type(part).__name__ for part in parts if any(True for _ in part.parameters())}


def _accepts_loss_kwargs(host: Any) -> bool:
    """Whether the host's loss can be a mean over all answer tokens of a step; ``Trainer`` asks the same way."""
    inner = host.get_base_model() if hasattr(host, "get_base_model") else host
    declared = getattr(inner, "accepts_loss_kwargs", None)
    if declared is not None:
        return bool(declared)
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(inner.forward).parameters.values())

"""Rows of different length in groups of similar length, so that a batch costs what its tokens cost.

A padded batch costs its rows times the longest of them. Here rows are put into groups (`tokenflex.ops.partition`), each
group goes through the host's own ``forward`` or ``generate`` by itself, and what comes out is put together to what the
padded batch gives: logits, loss and cache. New tokens are generated for all rows together, behind the joined cache.

Where no image is shortened ``auto`` calls the plain host as it is, whose outputs it gives to the bit. Whatever can't be
right in groups takes the padded way too; `refusal`, `refused_forward` and `refused_generate` say why. The
law ``ragged`` (see `tokenflex.testing.ragged_checks`) compares the two ways on every host.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from tokenflex.contracts import HostAdapter, HostBatch, PaddingSide, ScaledTokens, Spliced, VisualTokens
from tokenflex.hosts import continuing, joining, stock
from tokenflex.hosts.architectures import ungroupable
from tokenflex.hosts.placeholders import IGNORE, POSITIONS, SEQUENCE_KEYS, TOKEN_KEYS, padding_side
from tokenflex.ops.partition import CALL, partition

BATCHING = ("auto", "padded", "grouped")
IDS, MASK, LABELS, ENCODED = "input_ids", "attention_mask", "labels", "mm_encoder_outputs"
KEEP, SHARE = "logits_to_keep", "num_items_in_batch"
OF_ONE_CALL = ("output_attentions", "output_hidden_states", "output_router_logits")
"""Outputs that are left as one call of the host makes them; settings of ``forward`` or of a config."""
READS = (
    "assistant_early_exit", "assistant_model", "constraints", "custom_generate", "dola_layers", "force_words_ids",
    "guidance_scale", "is_assistant", "low_memory", "negative_prompt_ids", "output_attentions", "output_hidden_states",
    "penalty_alpha", "prefill_chunk_size", "prompt_lookup_num_tokens", "synced_gpus", "token_healing",
)  # fmt: skip
"""Options of ``generate`` that read the prompt themselves, or say how it is read."""
NOTHING: Mapping[str, Any] = {}
HEAD = 2
"""What the logits of one token cost at most, in tokens of the language model: vocabularies are large, models small."""
JOINING = 10
"""Where new tokens follow, groups must save one in so many of the padded batch's tokens, since their caches are copied
into one, and every row's last token is read by itself. On a CPU a batch of 32 took a tenth longer in groups that saved
two in a hundred."""


@dataclass(frozen=True)
class Rows:
    """A shortened batch whose rows can be had apart.

    Attributes:
        host: the model to call.
        adapter: of this host.
        batch: as it was read.
        whole: all rows, padded.
        side: where they are padded.
        splice: gives some of the rows, padded to the longest of them on the same side.
    """

    host: Any
    adapter: HostAdapter
    batch: HostBatch
    whole: Spliced
    side: PaddingSide
    splice: Callable[[Sequence[int]], Spliced]

    @classmethod
    def of(
        cls,
        host: Any,
        adapter: HostAdapter,
        batch: HostBatch,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        side: PaddingSide | None,
    ) -> "Rows":
        """Those of a batch.

        Args:
            images, scaled: as for `HostAdapter.splice`.
            side: where shortened rows are padded; None keeps the side the batch has.
        """
        kept = side or padding_side(batch.attended)

        def splice(rows: Sequence[int]) -> Spliced:
            return adapter.splice(batch, images, scaled, kept, rows)

        return cls(host, adapter, batch, adapter.splice(batch, images, scaled, kept), kept, splice)

    @property
    def count(self) -> int:
        """The number of rows."""
        return self.whole.index.shape[0]

    @property
    def length(self) -> int:
        """The number of columns of the padded rows."""
        return self.whole.index.shape[1]

    @property
    def text(self) -> Tensor:
        """``(rows, length)``, True for tokens that are neither padding nor visual; on the CPU."""
        index = self.whole.index
        return (index >= 0) & self.batch.attended.gather(1, index.clamp(min=0))

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row that aren't padding."""
        sizes = self.text.sum(-1).tolist()
        for row, tokens in zip(self.batch.rows, self.whole.tokens, strict=True):
            sizes[row] += tokens
        return sizes

    @property
    def targets(self) -> list[int] | None:
        """Tokens of every row that its loss is a mean of; None where padding takes part in it."""
        index = self.whole.index
        labels = self.batch.cpu[LABELS].gather(1, index.clamp(min=0)).masked_fill(index < 0, IGNORE)
        is_target, counts = labels != IGNORE, list[int]()
        for row, size in enumerate(self.lengths):
            first = self.length - size if self.side == "left" else 0
            if bool(is_target[row, first]) and first:
                return None
            counts.append(int(is_target[row].sum()) - bool(is_target[row, first]))
        return None if bool((is_target & ~self.text).any()) else counts

    @property
    def holed(self) -> bool:
        """Whether a row's tokens don't stand together at their side."""
        sizes, columns = torch.tensor(self.lengths)[:, None], torch.arange(self.length)
        inside = columns >= self.length - sizes if self.side == "left" else columns < sizes
        return bool((self.text & ~inside).any())

    def setting(self, name: str, default: Any = None) -> list[Any]:
        """A setting's values in the host's config and in its language model's."""
        config = stock.base_of(self.host).config
        return [getattr(one, name, default) for one in (config, config.get_text_config())]


@dataclass(frozen=True)
class FilledCache:
    """The cache of some rows.

    Attributes:
        name: that it has among the host's inputs.
        cache: as the host filled it.
        columns: that it holds.
    """

    name: str
    cache: Any
    columns: int


class Options:
    """Options of ``generate`` as they are in force: of the call, of the config it is given, of the host's."""

    def __init__(self, host: Any, options: Mapping[str, Any]) -> None:
        own = getattr(host, "generation_config", None)
        self.options, self.configs = options, (options.get("generation_config"), own)

    def __call__(self, name: str) -> Any:
        """An option's value in the first place that has one; None where none does."""
        found = (self.options.get(name), *(getattr(config, name, None) for config in self.configs))
        return next((value for value in found if value is not None), None)

    @property
    def copies(self) -> int:
        """Rows that ``generate`` makes of each row."""
        return max(self("num_beams") or 1, self("num_return_sequences") or 1)


def forward(rows: Rows, inputs: Mapping[str, Any], batching: str = "auto") -> Any:
    """The host's output on a shortened batch.

    Args:
        inputs: of its ``forward``, all rows padded.
        batching: ``auto``, ``padded`` or ``grouped``.
    """
    groups = groups_of(rows, batching, lambda: refusal(rows, inputs) or refused_forward(rows, inputs))
    return _forward(rows, inputs, groups) if groups else rows.host(**inputs)


def generate(rows: Rows, inputs: Mapping[str, Any], options: Mapping[str, Any], batching: str = "auto") -> Any:
    """What the host generates behind a shortened batch.

    Args:
        inputs, batching: as for `forward`.
        options: of its ``generate``.
    """
    settings = Options(rows.host, options)
    apart = CALL + HEAD * rows.count + rows.count * rows.length // JOINING
    groups = groups_of(rows, batching, lambda: refusal(rows, inputs) or refused_generate(rows, settings), apart)
    filled = [prefilled(rows.splice(group).inputs, settings, rows.host) for group in groups]
    return behind(rows, inputs, groups, filled, options)


def behind(
    rows: Rows,
    inputs: Mapping[str, Any],
    groups: Sequence[Sequence[int]],
    filled: Sequence[FilledCache],
    options: Mapping[str, Any],
) -> Any:
    """What the host generates behind caches of all rows without their last token, which are used up.

    Args:
        inputs, options: as for `generate`.
        groups: numbers of the rows of each cache.
        filled: one per group.
    """
    caches, sizes = [one.cache for one in filled], [one.columns for one in filled]
    cache = joining.join(caches, groups, sizes, rows.length - 1, rows.side) if filled else None
    if cache is None:
        return rows.host.generate(**inputs, **options)
    batch = continued(rows, inputs, filled[0].name, cache)
    joining.repeat(cache, Options(rows.host, options).copies)
    return rows.host.generate(**batch, **options)


def continued(rows: Rows, inputs: Mapping[str, Any], name: str, cache: Any) -> dict[str, Any]:
    """Inputs for ``generate`` behind a cache that holds all of ``inputs`` but the last token.

    Args:
        name: of the cache among the host's inputs.
    """
    continuing.remember(cache, inputs, rows.adapter)
    batch = {key: inputs[key] for key in (IDS, MASK, *TOKEN_KEYS) if key in inputs and key != LABELS}
    batch[name] = cache
    return batch | continuing.positions(batch, inputs[IDS].shape[1] - 1, rows.adapter, new_only=False)


def groups_of(rows: Rows, batching: str, refused: Callable[[], str | None], apart: int = 0) -> list[list[int]]:
    """The groups that rows are put into; none where they stay together.

    Args:
        refused: why they must, as a clause; asked only where they needn't otherwise.
        apart: see `tokenflex.ops.partition.partition`.
    """
    unchanged = rows.whole.inputs[IDS] is rows.batch.inputs[IDS]  # then the padded call is the plain host's, to the bit
    if batching == "padded" or (batching == "auto" and unchanged) or rows.count < 2 or MASK not in rows.whole.inputs:
        return []
    found = partition(rows.lengths, CALL, apart) if batching == "auto" else partition(rows.lengths, 0)
    return found if len(found) > 1 and refused() is None else []


def apart(rows: Rows, batching: str = "auto") -> list[tuple[list[int], dict[str, Any]]]:
    """(numbers of rows, inputs for ``forward``) of every group, for who needs no outputs of the whole batch."""
    groups = groups_of(rows, batching, lambda: refusal(rows, rows.whole.inputs))
    if not groups:
        return [(list(range(rows.count)), dict(rows.whole.inputs))]
    return [(group, dict(rows.splice(group).inputs)) for group in groups]


def backbone_parts(rows: Rows, batching: str = "auto") -> list[tuple[list[int], dict[str, Any], int]]:
    """(Numbers of rows, inputs, columns of the padded batch in front of theirs) of every group, for a host's backbone.

    Empty where rows stay together, as they do where the backbone is to fill a cache.
    """
    inputs = rows.whole.inputs
    cached = inputs["use_cache"] if inputs.get("use_cache") is not None else any(rows.setting("use_cache"))
    groups = groups_of(rows, batching, lambda: refusal(rows, inputs) or ("a cache is filled" if cached else None))
    plain = {name: value for name, value in inputs.items() if _is_plain(value)}
    found = list[tuple[list[int], dict[str, Any], int]]()
    for group in groups:
        part = rows.splice(group).inputs | plain
        before = rows.length - part[IDS].shape[1] if rows.side == "left" else 0
        found.append((group, {**part, **_placed(rows, group, part)}, before))
    return found


def refusal(rows: Rows, inputs: Mapping[str, Any]) -> str | None:
    """Why neither ``forward`` nor ``generate`` can take a batch apart, as a clause; None when they can."""
    adapter = rows.adapter
    known = {IDS, ENCODED, *SEQUENCE_KEYS, *adapter.position_inputs}
    other = [name for name, value in inputs.items() if name not in known and not _is_plain(value)]
    asked = [name for name in OF_ONE_CALL if inputs.get(name) or any(rows.setting(name))]
    config = stock.base_of(rows.host).config
    reasons = (
        (adapter.ragged_refusal, adapter.ragged_refusal),
        (ungroupable(config), ungroupable(config)),
        (any(rows.setting("is_encoder_decoder")), "the host has an encoder of its own"),
        (other, f"it isn't known how {', '.join(other)} is taken apart"),
        (rows.batch.inputs.get(POSITIONS) is not None, f"{POSITIONS} are the caller's own"),
        (asked, f"{', '.join(asked)} belong to one call"),
        (rows.holed, "padding stands between tokens"),
        (in_step(rows.host), "every process must call the host equally often"),
        (torch.compiler.is_compiling(), "it is being compiled"),
    )
    return next((str(reason) for holds, reason in reasons if holds), None)


def refused_forward(rows: Rows, inputs: Mapping[str, Any]) -> str | None:
    """Why ``forward`` can't take a batch apart, where `refusal` has no reason, as a clause; None when it can."""
    keep, targets = inputs.get(KEEP), rows.targets if LABELS in inputs else [1]
    cached = inputs["use_cache"] if inputs.get("use_cache") is not None else any(rows.setting("use_cache"))
    named = inputs["return_dict"] if inputs.get("return_dict") is not None else all(rows.setting("return_dict", True))
    reasons = (
        (not named, "outputs without names can't be put together"),
        (isinstance(keep, Tensor) or (keep and rows.side == "right"), f"{KEEP} names columns of the padded batch"),
        (targets is None, "the padded batch's loss is also of labels on padding, or next to it"),
        (targets is not None and not sum(targets), "there is nothing to take the mean loss of"),
    )
    unjoined = joining.refusal(stock.base_of(rows.host), rows.side) if cached else None
    return next((reason for holds, reason in reasons if holds), unjoined)


def refused_generate(rows: Rows, settings: Options) -> str | None:
    """Why ``generate`` can't take a batch apart, where `refusal` has no reason, as a clause; None when it can."""
    reads = [name for name in READS if settings(name) not in (None, False)]
    kind = settings("cache_implementation")
    reasons = (
        (KEEP in rows.whole.inputs, f"{KEEP} names columns of the padded batch"),
        (reads, f"{', '.join(reads)} reads the prompt in a way of its own"),
        (settings("use_cache") is False, "there is no cache to join"),
        (kind not in (None, "hybrid"), f"a cache of the kind {kind!r} isn't joined"),
        (bool((rows.whole.index[:, -1] < 0).any()), "a row doesn't end with a word"),
        (_ends_with_mark(rows), "a row ends with a mark whose embedding comes with its image"),
        (min(rows.lengths) < 2, "a row has nothing in front of its last word"),
    )
    unjoined = joining.refusal(stock.base_of(rows.host), rows.side)
    return next((reason for holds, reason in reasons if holds), unjoined)


def _ends_with_mark(rows: Rows) -> bool:
    """Whether a last token, which is read by itself once more, is embedded by the host's encoder."""
    indicators = getattr(stock.base_of(rows.host).config, "visual_indicator_token_ids", None)
    return bool(indicators) and not set(indicators).isdisjoint(rows.whole.inputs[IDS][:, -1].tolist())


def _forward(rows: Rows, inputs: Mapping[str, Any], groups: Sequence[Sequence[int]]) -> Any:
    """Call the host group by group, and put what comes out together to the padded batch's output."""
    width = min(int(inputs.get(KEEP) or rows.length), rows.length)
    targets = rows.targets if LABELS in inputs else None
    plain = {name: value for name, value in inputs.items() if _is_plain(value)}
    losses, caches, sizes, output, logits = list[Tensor](), list[Any](), list[int](), None, None
    for group in groups:
        part = rows.splice(group).inputs | plain
        sizes.append(part[IDS].shape[1])
        share = sum(targets[row] for row in group) / sum(targets) if targets else 0.0
        if not share:
            part.pop(LABELS, None)
        output = rows.host(**part, **_placed(rows, group, part))
        found: Tensor = output.logits
        if logits is None:
            logits = found.new_zeros(rows.count, width, found.shape[-1])
        joining.lay(found, logits, group, 1, width - found.shape[1] if rows.side == "left" else 0)
        if share:
            losses.append(output.loss if inputs.get(SHARE) is not None else output.loss * share)
        if continuing.cache_of(output) is not None:
            caches.append(continuing.cache_of(output))
    fields = _passed_on(output, inputs.get(ENCODED) or {}) | {"logits": logits}
    if losses:
        fields["loss"] = torch.stack(losses).sum()
    if caches:
        fields[continuing.name_of_cache(output)] = joining.join(caches, groups, sizes, rows.length, rows.side)
    if caches and fields[continuing.name_of_cache(output)] is None:
        return rows.host(**inputs)
    return type(output)(**fields)


def _placed(rows: Rows, group: Sequence[int], part: Mapping[str, Any]) -> dict[str, Any]:
    """Positions of a group's columns, where the host would place them otherwise than in the padded batch."""
    size, positions = part[IDS].shape[1], rows.whole.inputs.get(POSITIONS)
    columns = slice(rows.length - size, rows.length) if rows.side == "left" else slice(size)
    if POSITIONS in part or POSITIONS not in inspect.signature(stock.base_of(rows.host).forward).parameters:
        return {}
    if positions is not None:
        return {POSITIONS: positions[..., torch.tensor(group, device=positions.device), columns]}
    if rows.adapter.position_inputs and rows.batch.spans:
        return {POSITIONS: rows.adapter.position_ids(part)}
    if rows.side == "right":
        return {}
    counted = torch.arange(columns.start, columns.stop, device=part[IDS].device)
    return {POSITIONS: counted[None].expand(len(group), -1)}


def _passed_on(output: Any, encoded: Mapping[str, Any]) -> dict[str, Any]:
    """What an output passes on of the encoders', for the whole batch."""
    found: dict[str, Any] = {}
    for name in output.keys():  # noqa: SIM118 (asking by the older name of a cache warns)
        modality, _, field = name.partition("_")
        if field == "outputs":
            found[name] = encoded.get(modality)
        elif field == "hidden_states":
            found[name] = getattr(encoded.get(modality), "pooler_output", None)
        elif name == "deepstack_features":
            found[name] = getattr(encoded.get("image"), name, None)
    return found


def prefilled(
    inputs: Mapping[str, Any], settings: Options, host: Any, begun: Mapping[str, Any] = NOTHING
) -> FilledCache:
    """The cache of some rows without their last token.

    Args:
        inputs: of these rows.
        settings: options of ``generate`` in force.
        begun: a cache that holds their first columns already, by its name among the host's inputs.
    """
    config = GenerationConfig(
        max_new_tokens=1,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        return_dict_in_generate=True,
        output_scores=False,
        output_logits=False,
        **{name: settings(name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")},
    )
    part = {name: value for name, value in inputs.items() if name != LABELS}
    short = {name: value[..., :-1] if name in (IDS, *SEQUENCE_KEYS) else value for name, value in part.items()}
    output = host.generate(**short, **begun, generation_config=config)
    return FilledCache(continuing.name_of_cache(output), continuing.cache_of(output), short[IDS].shape[1])


def _is_plain(value: Any) -> bool:
    plain = value is None or isinstance(value, bool | int | float | str)
    return plain or (isinstance(value, Tensor) and value.dim() == 0)


def in_step(host: Any) -> bool:
    """Whether processes have to call the host equally often: they train together, or each holds a share of it."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return False
    sharded = any(hasattr(p, "ds_id") or type(p).__name__ == "DTensor" for p in host.parameters())
    wrapped = any(type(module).__name__ == "FullyShardedDataParallel" for module in host.modules())
    return torch.is_grad_enabled() or sharded or wrapped

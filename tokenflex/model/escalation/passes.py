"""Passes of the language model over some rows of a batch, each image at a level that is given for the pass.

Rows go in groups of similar length, as in `tokenflex.hosts.grouped`; what a sure row has read is kept, and new tokens
are generated for all rows together behind it. Where rows can't be taken apart, a pass is one over all rows, and only
those asked for are looked at.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from tokenflex.contracts import Confidence, Spliced
from tokenflex.hosts import continuing, grouped, joining, stock
from tokenflex.hosts.grouped import IDS, LABELS, MASK, FilledCache, Options, Rows
from tokenflex.model import callbacks, encoding, generation
from tokenflex.model.escalation.prefixes import WORTH, Prefixes
from tokenflex.model.escalation.watching import AfterOne, AnswerWatch, answer_mask
from tokenflex.ops.partition import CALL, partition

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any

Group = list[int]
ONE_PASS: Mapping[str, Any] = {
    "return_dict_in_generate": True, "output_scores": False, "output_logits": False, "output_attentions": False,
    "output_hidden_states": False,
}  # fmt: skip
"""What a pass leaves out that nobody sees of it."""


@dataclass(frozen=True)
class Kept:
    """What some rows have read.

    Attributes:
        rows: their numbers.
        filled: their cache, without the last token.
        spliced: what was read; None once rows have settled.
    """

    rows: Group
    filled: FilledCache
    spliced: Spliced | None = None


@dataclass(frozen=True)
class Attempt:
    """What one row answers in one pass.

    Attributes:
        new: ``(steps,)``, up to the token that ends it; one token where no more were asked for.
        confidence: None where it wasn't asked.
    """

    new: Tensor
    confidence: float | None


class Passes:
    """The passes of one batch.

    Args:
        batch: with an attention mask.
        encoded: of this batch.
        options: of ``generate``.
        own: the generation config in force where ``options`` has none.
    """

    def __init__(
        self, flex: FlexModel, batch: Mapping[str, Any], encoded: encoding.Encoded, options: Mapping[str, Any], own: Any
    ) -> None:
        self.flex, self.batch, self.encoded, self.options, self.own = flex, batch, encoded, dict(options), own
        self.settings = Options(flex.host, options)
        self.crops = joining.croppable(stock.base_of(flex.host))
        self._kept: list[Kept] = []
        self._prefixes = Prefixes(flex.host, 1 if flex.batching == "grouped" else WORTH)
        self._apart: bool | None = None

    def attempt(
        self,
        levels: Sequence[int],
        wanted: Sequence[int],
        measure: Confidence | None,
        *,
        first: bool = False,
        keep: bool = False,
    ) -> dict[int, Attempt]:
        """Answers of some rows, by their number.

        Args:
            levels: of every image of the batch.
            wanted: numbers of the rows.
            measure: reads how sure they are; None: nobody asks.
            first: whether answers end with their first token.
            keep: whether the caches of the prompts are to be kept for `finish`; `keep_only` says of which rows.
        """
        rows = self._rows(levels)
        if not self._takes_apart(rows):
            found = self._padded(rows, measure, first)
            return {row: found[row] for row in wanted}
        answers: dict[int, Attempt] = {}
        for group in self._groups(rows, wanted):
            answers |= dict(zip(group, self._pass(rows, group, measure, first, keep), strict=True))
        return answers

    def keep_only(self, sure: set[int], asked: set[int]) -> None:
        """Let go of what the other rows have read, but for what stands before their first image.

        Args:
            sure: rows of the last pass that have settled, if they are to be kept.
            asked: all rows of it.
        """
        kept: list[Kept] = []
        for one in self._kept:
            stay = [i for i, row in enumerate(one.rows) if row in sure or row not in asked]
            for place, row in enumerate(one.rows):
                if place not in stay and one.spliced is not None:
                    self._prefixes.remember(row, place, one.spliced, one.filled)
            if stay and len(stay) < len(one.rows):
                joining.select(one.filled.cache, stay)
            if stay:
                kept.append(Kept([one.rows[i] for i in stay], one.filled))
        self._kept = kept

    def finish(self, levels: Sequence[int]) -> tuple[Rows, Any]:
        """(the whole batch at its levels, what the host generates for it), from the caches that were kept."""
        rows = self._rows(levels)
        inputs, ids = rows.whole.inputs, rows.whole.inputs[IDS]
        options = generation.lengths(self.options, self.own, self.batch[IDS].shape[1] - ids.shape[1])
        options = callbacks.in_the_callers_prompt(options, self.batch[IDS], ids, self.own)
        known = {row for one in self._kept for row in one.rows}
        rest = self._groups(rows, [row for row in range(rows.count) if row not in known])
        if not self._kept:
            begun = self._prefixes.behind(rest[0], inputs) if len(rest) == 1 and self._apart else {}
            if begun:
                return rows, self.flex.host.generate(**inputs, **begun, **options)
            return rows, grouped.generate(rows, inputs, options, self.flex.batching)
        kept = [*self._kept, *(Kept(group, self._prefilled(rows, group)) for group in rest)]
        self._kept = []
        return rows, grouped.behind(rows, inputs, [one.rows for one in kept], [one.filled for one in kept], options)

    def _prefilled(self, rows: Rows, group: Group) -> FilledCache:
        part = dict(rows.splice(group).inputs)
        return grouped.prefilled(part, self.settings, rows.host, self._prefixes.behind(group, part))

    def _rows(self, levels: Sequence[int]) -> Rows:
        return encoding.in_rows(self.flex, self.batch, self.encoded, levels, "left")

    def _takes_apart(self, rows: Rows) -> bool:
        """Whether rows can be read in groups; the same in all passes."""
        if self._apart is None:
            inputs = rows.whole.inputs
            refused = grouped.refusal(rows, inputs) or grouped.refused_generate(rows, self.settings)
            self._apart = self.flex.batching != "padded" and MASK in inputs and refused is None
        return self._apart

    def _groups(self, rows: Rows, wanted: Sequence[int]) -> list[Group]:
        lengths = rows.lengths
        call = 0 if self.flex.batching == "grouped" else CALL
        return [[wanted[i] for i in group] for group in partition([lengths[row] for row in wanted], call)]

    def _padded(self, rows: Rows, measure: Confidence | None, first: bool) -> list[Attempt]:
        every, inputs = list(range(rows.count)), dict(rows.whole.inputs)
        return self._read(inputs, self._asked(every, inputs[IDS], first), inputs[IDS].shape[1], measure)[1]

    def _pass(self, rows: Rows, group: Group, measure: Confidence | None, first: bool, keep: bool) -> list[Attempt]:
        """Answers of a group; its cache is kept without the last token of the prompt, which is read again with it."""
        spliced = rows.splice(group)
        part = dict(spliced.inputs)
        part.pop(LABELS, None)
        length, options = part[IDS].shape[1], self._asked(group, part[IDS], first)
        if keep and not self.crops:
            filled = grouped.prefilled(part, self.settings, rows.host)
            self._kept.append(Kept(group, filled))
            part = grouped.continued(rows, part, filled.name, copy.deepcopy(filled.cache))
        else:
            part |= self._prefixes.behind(group, part)
        output, answers = self._read(part, options, length, measure)
        if self.crops and (keep or self._prefixes.shares):
            cache = continuing.cache_of(output)
            joining.crop(cache, length - 1)
            self._kept.append(Kept(group, FilledCache(continuing.name_of_cache(output), cache, length - 1), spliced))
        return answers

    def _asked(self, group: Group, ids: Tensor, first: bool) -> dict[str, Any]:
        """The caller's options for a pass over some rows."""
        options = generation.lengths(self.options, self.own, self.batch[IDS].shape[1] - ids.shape[1])
        allowed = options.get("prefix_allowed_tokens_fn")
        if allowed is not None:
            options["prefix_allowed_tokens_fn"] = lambda place, said: allowed(group[place], said)
        options = callbacks.in_the_callers_prompt(options, self.batch[IDS][group], ids, self.own)
        options.pop("streamer", None)
        if first:
            criteria = options.get("stopping_criteria") or ()
            options["stopping_criteria"] = StoppingCriteriaList([*criteria, AfterOne()])
        own_config = options.get("generation_config")
        if own_config is None:
            return {**options, **ONE_PASS}
        config = copy.deepcopy(own_config)
        for name, value in ONE_PASS.items():
            setattr(config, name, value)
        rest = {name: value for name, value in options.items() if name not in ONE_PASS}
        return {**rest, "generation_config": config}

    def _read(
        self, inputs: Mapping[str, Any], options: dict[str, Any], length: int, measure: Confidence | None
    ) -> tuple[Any, list[Attempt]]:
        """(the host's output, the answer of every row)."""
        watch = None if measure is None else AnswerWatch(measure)
        if watch is not None:
            options["logits_processor"] = LogitsProcessorList([*(options.get("logits_processor") or ()), watch])
        output = self.flex.host.generate(**inputs, **options)
        new = output.sequences[:, length:]
        mask = answer_mask(new, self.settings)
        sure = [None] * len(new) if watch is None else watch.read(new, mask).float().tolist()
        ids, sizes = new.cpu(), mask.sum(-1).tolist()
        return output, [Attempt(ids[i, :size], sure[i]) for i, size in enumerate(sizes)]

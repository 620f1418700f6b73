"""``generate`` that answers at a coarse level and goes on to finer ones for the rows that are unsure.

The vision tower runs once. At every level the rows that are left are read; one whose confidence reaches the threshold
settles, and what it has read is kept; the others go on. What comes out is what ``generate`` gives at every row's last
level. That a model may look again, finer, where it is unsure is the idea of kindred methods that train for it:
LazyMCoT (arXiv 2606.16158), CARES (2510.19496), Q-Zoom (2604.06912), AwaRes (2603.16932), VisionThink (2507.13348);
nothing is trained here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import Confidence, Decision
from tokenflex.errors import InputError
from tokenflex.hosts import continuing
from tokenflex.hosts.grouped import IDS, Options, Rows, in_step
from tokenflex.model import encoding, generation, request
from tokenflex.model.escalation import fingerprint, settings
from tokenflex.model.escalation.passes import Attempt, Passes
from tokenflex.model.escalation.rungs import Climb, rungs_of
from tokenflex.model.escalation.settings import Escalate
from tokenflex.model.escalation.watching import padding, side_by_side

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any

DECODING = (
    "assistant_early_exit", "assistant_model", "constraints", "custom_generate", "dola_layers", "force_words_ids",
    "guidance_scale", "negative_prompt_ids", "penalty_alpha", "prompt_lookup_num_tokens",
)  # fmt: skip
"""Options by which tokens are chosen otherwise than one by one from the scores that confidences read."""


@dataclass(frozen=True)
class Ladder:
    """A batch that is about to be answered.

    Attributes:
        encoded: its images.
        decided: every image's start.
        climb: of its rows.
    """

    encoded: encoding.Encoded
    decided: tuple[Decision, ...]
    climb: Climb

    @property
    def counts(self) -> list[list[int]]:
        """Tokens of every image and level."""
        return self.encoded.counts.tolist()

    @property
    def levels(self) -> list[int]:
        """The level at which every image is now, one number per image."""
        return self.climb.levels(len(self.decided))


def generate(
    flex: FlexModel, batch: Mapping[str, Any], escalate: Escalate, budget: Any, options: Mapping[str, Any], own: Any
) -> Any:
    """The host's ``generate``, row by row at the coarsest level that is sure.

    Args:
        batch: with an attention mask.
        escalate: with a threshold.
        budget: of the router's start; None without.
        options: of ``generate``.
        own: the generation config in force where ``options`` has none.

    Raises:
        InputError: the batch or an option can't be honoured.
    """
    decoding = Options(flex.host, options)
    require_served(batch, decoding, escalate)
    if in_step(flex.host):
        raise InputError(
            "escalate calls the host as often as its rows need, and processes that share it must call it equally "
            "often. Load the whole host in each process, or choose levels with level= or a router."
        )
    fingerprint.require_same(flex, escalate, decoding, budget)
    threshold = math.inf if escalate.threshold is None else escalate.threshold
    ladder = begin(flex, batch, escalate, budget, finest=threshold == math.inf)
    passes = Passes(flex, batch, ladder.encoded, options, own)
    measure: Confidence = escalate.config.build().to(flex.device)
    # What nobody can put together of the answers themselves is generated again, for all rows, behind what they read.
    again = measure.first_only or bool(decoding("return_dict_in_generate")) or decoding("streamer") is not None
    if again and not measure.first_only and decoding("do_sample"):
        raise InputError(
            "escalate with a measure of whole answers, sampling and return_dict_in_generate or a streamer would "
            "return other samples than it judged. Use a measure of the first token, or leave one of them out."
        )
    answers = _climb(ladder, passes, measure, threshold, again)
    decisions = ladder.climb.decisions(ladder.decided, ladder.counts, threshold)
    if again:
        return _finished(flex, batch, *passes.finish(ladder.levels), decisions)
    rest = [row for row in range(batch[IDS].shape[0]) if row not in answers]
    if rest:
        answers |= passes.attempt(ladder.levels, rest, None)
    new = side_by_side([answers[row].new for row in sorted(answers)], padding(decoding))
    return torch.cat([batch[IDS], new.to(batch[IDS])], dim=1)


def asked(flex: FlexModel, escalate: Any, level: Any) -> Escalate | None:
    """What a call asks for; None where it asks for nothing.

    Raises:
        InputError: it isn't an `Escalate` with a threshold, or a level comes with it.
    """
    found = settings.read(escalate, flex.escalate)
    if found is not None and level is not None:
        raise InputError(f"level={level!r:.200} forces the level, so nothing could escalate; give one of the two.")
    return found


def require_ids(escalate: Escalate | None, batch: Mapping[str, Any]) -> None:
    """Refuse embeddings.

    Raises:
        InputError: there are no ids, and escalation is asked for.
    """
    if escalate is not None and IDS not in batch:
        raise InputError(
            "escalate shortens images in input_ids, and the batch has inputs_embeds only. Pass input_ids as the "
            "processor made them."
        )


def begin(flex: FlexModel, batch: Mapping[str, Any], escalate: Escalate, budget: Any, finest: bool = False) -> Ladder:
    """Encode the batch, and place its rows at their first pass.

    Args:
        finest: or at their last.

    Raises:
        InputError: there is no such level, or a budget meets no router.
    """
    levels = escalate.ladder(flex.compressor.num_levels)
    routed = escalate.start == "router"
    _, policy = request.read(None, _start_budget(budget, routed), flex.compressor.num_levels)
    encoded = encoding.encode(flex, batch, look=routed and not finest)
    start = levels[-1] if finest else levels[0]
    decided = encoding.decide(flex, encoded, None if routed and not finest else start, policy)
    rows = () if encoded.batch is None else encoded.batch.rows
    rungs = rungs_of(rows, [one.level for one in decided], levels)
    return Ladder(encoded, decided, Climb.begin(rungs, finest))


def require_served(batch: Mapping[str, Any], decoding: Options, escalate: Escalate) -> None:
    """Refuse what escalation has no answer to.

    Raises:
        InputError: names the option.
    """
    if decoding.copies > 1:
        raise InputError(
            f"escalate judges one answer per row, and num_beams or num_return_sequences ask for {decoding.copies}. "
            "Leave them at 1."
        )
    asked = [name for name in DECODING if decoding(name) not in (None, False)]
    if asked:
        raise InputError(f"escalate reads tokens that are chosen one by one; leave out {', '.join(asked)}.")
    names = (*continuing.CACHES, "logits_to_keep")
    refused = [name for name in names if batch.get(name) is not None or decoding.options.get(name) is not None]
    if refused:
        raise InputError(
            f"escalate calls the host once per level, and {', '.join(refused)} belongs to one call. Leave it out; "
            "an answer behind a conversation's cache is written once."
        )
    if decoding("do_sample") and (escalate.calibrated is not None or escalate.threshold is None):
        raise InputError(
            "what is calibrated are greedy answers, and do_sample is on (the host's own generation config may turn it "
            "on). Pass do_sample=False, or a threshold set by hand, which promises nothing."
        )


def _climb(ladder: Ladder, passes: Passes, measure: Confidence, threshold: float, keep: bool) -> dict[int, Attempt]:
    """Pass after pass until every row has settled; the answers of rows that were sure, by their number."""
    climb, answers = ladder.climb, dict[int, Attempt]()
    pending = climb.below_the_last(list(climb.rungs))
    while pending:
        found = passes.attempt(ladder.levels, pending, measure, first=measure.first_only, keep=keep)
        sure: set[int] = set()
        for row, answer in found.items():
            climb.sure[row].append(answer.confidence)
            if is_sure(answer.confidence, threshold):
                sure.add(row)
                answers[row] = answer
            else:
                climb.at[row] += 1
        passes.keep_only(sure if keep else set(), set(pending))
        pending = climb.below_the_last([row for row in pending if row not in sure])
    for row in climb.rungs:
        if row not in answers:
            climb.sure[row].append(None)
    return answers


def is_sure(confidence: float | None, threshold: float) -> bool:
    """Whether an answer settles; a confidence that isn't finite never does."""
    return confidence is not None and math.isfinite(confidence) and confidence >= threshold


def _finished(flex: FlexModel, batch: Mapping[str, Any], rows: Rows, output: Any, decisions: Sequence[Decision]) -> Any:
    spliced = rows.whole
    if isinstance(output, ModelOutput):
        continuing.remember(continuing.cache_of(output), spliced.inputs, flex.adapter)
    prompt: Tensor = batch[IDS]
    return generation.restore(output, prompt, spliced, decisions)


def _start_budget(budget: Any, routed: bool) -> Any:
    """The budget of the router's start.

    Raises:
        InputError: no router runs, or there is a ceiling.
    """
    if budget is None:
        return None
    if not routed:
        raise InputError("budget limits the router, which doesn't run: use Escalate(start='router'), or no budget.")
    if getattr(request.read_budget(budget), "ceiling", -1) != -1:
        raise InputError(
            "the budget's ceiling would end where escalation goes on: answers end at the finest level. Leave the "
            "ceiling out; a budget with escalate is that of the first pass."
        )
    return budget

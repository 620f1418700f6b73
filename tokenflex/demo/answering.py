"""Questions about one image as the page asks them: plain functions, which know nothing of the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from tokenflex.contracts import Decision
from tokenflex.demo.samples import as_asked
from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation.answering import Answer, Batch
from tokenflex.evaluation.drawing import Cells
from tokenflex.evaluation.settings import Setting, parse
from tokenflex.model import Budget, FlexModel
from tokenflex.profiling.timing import Times, clock_for, interleaved
from tokenflex.training.data import Sample, read_text

LONGEST = 2000
"""Characters that a question may have."""
NEW_TOKENS, RUNS = 32, 3
"""Of an answer, at most; and how often each side is timed, where nothing else is asked for."""


@dataclass(frozen=True)
class Model:
    """What answers.

    Attributes:
        flex, processor: on their device, as `tokenflex.evaluation.load` gives them.
        name: as the page calls it.
        new_tokens: of an answer, at most.
    """

    flex: FlexModel
    processor: Any
    name: str
    new_tokens: int = NEW_TOKENS

    @property
    def levels(self) -> int:
        """How many levels the model has."""
        return self.flex.compressor.num_levels

    @property
    def tokenizer(self) -> Any:
        """The processor's, or the processor itself where it is one."""
        return getattr(self.processor, "tokenizer", self.processor)


@dataclass(frozen=True)
class Turn:
    """A question of a conversation, and what was answered."""

    question: str
    answer: str


@dataclass(frozen=True)
class Asked:
    """A question about an image; made by `ask`.

    Attributes:
        before: the turns of the same conversation that came first. The image belongs to the first question of all.
    """

    image: Image.Image
    question: str
    before: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Reply:
    """An answer, and what was decided for it.

    Attributes:
        decisions: one for the image, or one per tile where the host's adapter routes tiles.
        cells: what became of the tokens of the view that shows the whole image; None where tiles are routed.
        unknown: words of the question that the tokenizer has no token for.
    """

    text: str
    decisions: tuple[Decision, ...]
    cells: Cells | None
    unknown: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Visual tokens that the language model saw."""
        return sum(one.tokens for one in self.decisions)

    @property
    def of(self) -> int:
        """Visual tokens of the finest level."""
        return sum(one.of for one in self.decisions)

    @property
    def levels(self) -> tuple[int, ...]:
        """The chosen levels, one per decision."""
        return tuple(one.level for one in self.decisions)

    @property
    def scores(self) -> tuple[float, ...] | None:
        """The voter's score of each level, the mean over decisions; None where no router was asked."""
        rows = [one.scores for one in self.decisions if one.scores is not None]
        if not rows or len(rows) != len(self.decisions):
            return None
        return tuple(torch.stack([row.double().cpu() for row in rows]).mean(dim=0).tolist())

    @property
    def kept(self) -> int | None:
        """Tokens of the view that is drawn."""
        return None if self.cells is None else len({place for place in self.cells.into if place >= 0})

    @property
    def dropped(self) -> bool:
        """Whether tokens of the view that is drawn went into none that is kept."""
        return self.cells is not None and min(self.cells.into, default=0) < 0


@dataclass(frozen=True)
class Side:
    """What whole answers took.

    Attributes:
        new_tokens: of the answer.
        times: seconds of ``generate``, with vision tower, router and language model; the processor isn't in it.
    """

    new_tokens: int
    times: Times


@dataclass(frozen=True)
class Timing:
    """The chosen level beside the finest one, timed in turns."""

    chosen: Side
    finest: Side


def ask(model: Model, image: Image.Image | None, question: str, before: Sequence[Turn] = ()) -> Asked:
    """A question that can be put to the model.

    Raises:
        DataError: there is no image, or the question is empty, too long, no Unicode text or holds one of the model's
            placeholders.
    """
    if image is None:
        raise DataError("there is no image yet: choose one of the sample images, or upload one.")
    asked = Asked(image, read_text(question.strip(), "the question"), tuple(before))
    if not asked.question:
        raise DataError("the question is empty; write one.")
    if len(question) > LONGEST:
        raise DataError(f"the question has {len(question)} characters; at most {LONGEST} are taken. Shorten it.")
    said = [asked.question, *(text for turn in asked.before for text in (turn.question, turn.answer))]
    placeholders = set(model.flex.adapter.placeholder_ids)
    if any(placeholders.intersection(_ids(model, text)) for text in said):
        raise DataError(
            "the question holds the text that stands for an image in this model's prompts. Leave it out; the image is "
            "added without it."
        )
    return asked


def answer(model: Model, asked: Asked, share: float = 1.0) -> Reply:
    """Answer at the level that the router chooses within a budget.

    Args:
        share: of the finest level's tokens that may be used; 1: as the model decides by itself.

    Raises:
        TokenFlexError: the share is none, or the model can't be asked this.
    """
    return _reply(model, asked, _batch(model, asked), _routed(model, share))


def at_every_level(model: Model, asked: Asked) -> tuple[Reply, ...]:
    """One reply per level, from the coarsest; the router isn't asked.

    Raises:
        TokenFlexError: the model can't be asked this.
    """
    batch = _batch(model, asked)
    return tuple(_reply(model, asked, batch, setting) for setting in parse(model.flex, ["levels"]))


def timed(model: Model, asked: Asked, share: float = 1.0, runs: int = RUNS) -> Timing:
    """Whole answers as the router decides and at the finest level, in turns, after one of each that doesn't count.

    Args:
        share: as of `answer`.
        runs: of each side, 1 or more.

    Raises:
        TokenFlexError: the share is none, or the model can't be asked this.
    """
    if runs < 1:
        raise ConfigError(f"runs={runs} measures nothing; use 1 or more.")
    flex, routed, made = model.flex, _routed(model, share), dict[str, int]()
    inputs = _batch(model, asked).inputs(flex, (0,))

    def call(side: str, **choice: Any) -> Any:
        def run() -> None:
            ids = flex.generate(**inputs, **choice, max_new_tokens=model.new_tokens, do_sample=False, num_beams=1)
            made[side] = ids.shape[1] - inputs["input_ids"].shape[1]

        return {"answer": run}

    sides = {"chosen": call("chosen", budget=routed.budget), "finest": call("finest", level="finest")}
    took = interleaved(sides, runs, 1, clock_for(flex.device))
    return Timing(*(Side(made[side], took[side]["answer"]) for side in ("chosen", "finest")))


def _routed(model: Model, share: float) -> Setting:
    if not 0 < share <= 1:
        raise ConfigError(f"a share of {share} of the tokens can't be a budget; use more than 0 and at most 1.")
    if share == 1:
        return Setting("router", "router", model.flex)
    return Setting(f"router@ratio={share}", "budget", model.flex, budget=Budget(ratio=float(share)))


def _batch(model: Model, asked: Asked) -> Batch:
    messages: list[dict[str, Any]] = []
    for turn in asked.before:
        messages += [_message("user", as_asked(model.processor, turn.question)), _message("assistant", turn.answer)]
    messages.append(_message("user", as_asked(model.processor, asked.question)))
    messages[0]["content"].insert(0, {"type": "image"})
    sample = Sample("the conversation", (asked.image,), tuple(messages))
    return Batch(model.processor, {0: sample}, shown=(0,))


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _reply(model: Model, asked: Asked, batch: Batch, setting: Setting) -> Reply:
    (found,) = batch.answers(setting, [0], model.new_tokens)
    return Reply(
        found.text, tuple(found.decisions), _cells(found), _unknown(model, as_asked(model.processor, asked.question))
    )


def _cells(found: Answer) -> Cells | None:
    """Which tokens of the answer's only image were kept; None where that isn't told."""
    return None if found.cells is None else Cells(**json.loads(found.cells)[0])


def _ids(model: Model, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _unknown(model: Model, text: str) -> tuple[str, ...]:
    mark = getattr(model.tokenizer, "unk_token_id", None)
    words = dict.fromkeys(text.split())
    return () if mark is None else tuple(word for word in words if mark in _ids(model, word))

"""The exam: held-out conversations, answered under every setting through the library's own calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.fading.pictures import NAMES, Picture, draw
from benchmarks.fading.questions import ABSENT, KINDS, Asked, any_question, ask
from tokenflex.chat import written
from tokenflex.contracts import Decision
from tokenflex.model import FlexModel

BATCH = 48
Choose = Callable[[Sequence["Prompt"]], dict[str, Any]]
EQUAL = tuple(1 / len(KINDS) for _ in KINDS)


@dataclass(frozen=True)
class Prompt:
    """A conversation up to a question.

    Attributes:
        pictures: shown so far, oldest first.
        history: the questions so far, one per picture but the last, with their right answers.
        asked: the question behind the last picture.
    """

    pictures: tuple[Picture, ...]
    history: tuple[Asked, ...]
    asked: Asked

    def messages(self, first: int = 0) -> list[dict[str, Any]]:
        """In chat format, for the host's processor.

        Args:
            first: of the pictures that are shown; older ones are deleted, what was said stays.
        """
        found: list[dict[str, Any]] = []
        for i, asked in enumerate([*self.history, self.asked]):
            content = [{"type": "image"}] * (i >= first) + [{"type": "text", "text": asked.text}]
            found.append({"role": "user", "content": content})
            if i < len(self.history):
                found.append({"role": "assistant", "content": [{"type": "text", "text": asked.answer}]})
        return found


@dataclass(frozen=True)
class Graded:
    """One setting's answers, in the order of the prompts.

    Attributes:
        right: whether each is.
        tokens: visual tokens of each prompt.
        levels: of each prompt's pictures that were shown, oldest first.
        reasons: of these levels, the library's own words.
    """

    right: np.ndarray
    tokens: np.ndarray
    levels: list[list[int]]
    reasons: list[list[str]]


def conversation(rng: np.random.Generator, count: int) -> tuple[list[Picture], list[Asked]]:
    """``count`` held-out pictures of different names, and a question behind each."""
    pictures = [draw(rng, "test", int(name)) for name in rng.permutation(len(NAMES))[:count]]
    return pictures, [any_question(rng, pictures[: i + 1], EQUAL) for i in range(count)]


def last_questions(seed: int, conversations: int, each: int, count: int = len(NAMES)) -> list[Prompt]:
    """Questions behind the last of ``count`` pictures, kinds in turn; none was asked before in its conversation.

    Args:
        each: questions per conversation.
    """
    rng, found = np.random.default_rng((seed, conversations, 7)), []
    for _ in range(conversations):
        pictures, before = conversation(rng, count)
        said = {(one.about, one.text.split()[-1], one.answer) for one in before}
        for i in range(each):
            kind, asked = list(KINDS)[i % len(KINDS)], None
            while asked is None or (asked.about, asked.text.split()[-1], asked.answer) in said:
                asked = ask(rng, pictures, kind, int(rng.integers(count)))
            found.append(Prompt(tuple(pictures), tuple(before[:-1]), asked))
    return found


def every_turn(seed: int, conversations: int, count: int = len(NAMES)) -> list[Prompt]:
    """The question behind every picture of new conversations, turn by turn."""
    rng, found = np.random.default_rng((seed, conversations, 8)), []
    for _ in range(conversations):
        pictures, asked = conversation(rng, count)
        found += [Prompt(tuple(pictures[: i + 1]), tuple(asked[:i]), asked[i]) for i in range(count)]
    return found


@torch.no_grad()
def answered(flex: FlexModel, processor: Any, prompts: Sequence[Prompt], choose: Choose) -> Graded:
    """Answer every prompt with one word, which is never "absent": nothing is asked about what wasn't shown.

    Args:
        choose: from a batch to the keywords by which ``generate`` chooses levels, and perhaps ``shown``: how many of
            the newest pictures are left in the prompt.
    """
    right, tokens, levels, reasons = list[bool](), list[int](), list[list[int]](), list[list[str]]()
    never = processor.tokenizer.convert_tokens_to_ids(ABSENT)
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        how = choose(batch)
        shown = how.pop("shown", None)
        inputs = inputs_of(processor, batch, shown)
        output: Any = flex.generate(
            **inputs, **how, max_new_tokens=1, suppress_tokens=[never], return_dict_in_generate=True
        )
        words = processor.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :])
        right += [word.strip() == prompt.asked.answer for word, prompt in zip(words, batch, strict=True)]
        for decisions in by_row(output.decisions, batch, shown):
            tokens.append(sum(one.tokens for one in decisions))
            levels.append([one.level for one in decisions])
            reasons.append([one.reason for one in decisions])
    return Graded(np.array(right), np.array(tokens), levels, reasons)


def inputs_of(processor: Any, prompts: Sequence[Prompt], shown: int | None = None) -> dict[str, Any]:
    """Prompts as the processor makes them, padded on the left.

    Args:
        shown: how many of the newest pictures are left in each; None: all.
    """
    firsts = [0 if shown is None else max(0, len(one.pictures) - shown) for one in prompts]
    texts = [
        written(processor, one.messages(first), f"prompt {i}", reply=True)
        for i, (one, first) in enumerate(zip(prompts, firsts, strict=True))
    ]
    images = [[one.image for one in prompt.pictures[first:]] for prompt, first in zip(prompts, firsts, strict=True)]
    return dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))


def by_row(decisions: Sequence[Decision], prompts: Sequence[Prompt], shown: int | None) -> list[Sequence[Decision]]:
    """The decisions of a batch, prompt by prompt."""
    found, at = [], 0
    for one in prompts:
        count = len(one.pictures) if shown is None else min(shown, len(one.pictures))
        found.append(decisions[at : at + count])
        at += count
    return found

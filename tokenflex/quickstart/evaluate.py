"""The exam: every held-out question answered with ``generate``, at every level and routed."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import ProcessorMixin

from tokenflex.chat import special_tokens, written
from tokenflex.contracts import Decision
from tokenflex.model import FlexModel
from tokenflex.quickstart.pictures import COARSE_KINDS, FINE_KINDS, Picture, Question, row

BATCH, SHUFFLES = 96, 200
Exam = Sequence[tuple[Picture, Question]]


@dataclass(frozen=True)
class Answers:
    """One setting's answers to the whole exam, in order."""

    texts: tuple[str, ...]
    right: np.ndarray
    tokens: np.ndarray
    levels: np.ndarray


def answer(
    flex: FlexModel, processor: ProcessorMixin, exam: Exam, level: int | None, tick: Callable[[], None]
) -> Answers:
    """Generate an answer to every question.

    Args:
        level: None lets the router decide.
        tick: called after every batch.
    """
    texts: list[str] = []
    decisions: list[Decision] = []
    for start in range(0, len(exam), BATCH):
        batch = exam[start : start + BATCH]
        prompts = [row(picture, [question])["messages"][:1] for picture, question in batch]
        questions = [written(processor, p, f"question {start + i}", reply=True) for i, p in enumerate(prompts)]
        images = [picture.image for picture, _ in batch]
        options: Any = {"padding": True, "return_tensors": "pt", **special_tokens(processor, questions)}
        inputs: Any = processor(images=images, text=questions, **options).to(flex.device)
        output = flex.generate(**inputs, level=level, max_new_tokens=3, return_dict_in_generate=True)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        decisions += output.decisions
        tick()
    right = np.array([text == question.answer for text, (_, question) in zip(texts, exam, strict=True)])
    return Answers(tuple(texts), right, np.array([d.tokens for d in decisions]), np.array([d.level for d in decisions]))


def summarise(right: np.ndarray, tokens: np.ndarray, exam: Exam) -> dict[str, Any]:
    """Mean tokens, accuracy, and accuracy by kind."""
    kinds = np.array([question.kind for _, question in exam])
    return {
        "tokens_mean": round(float(tokens.mean()), 3),
        "accuracy": round(float(right.mean()), 4),
        "accuracy_by_kind": {
            kind: round(float(right[kinds == kind].mean()), 4) for kind in (*FINE_KINDS, *COARSE_KINDS)
        },
    }


def compare(levels: Sequence[Answers], routed: Answers, untrained: Answers, exam: Exam, seed: int) -> dict[str, Any]:
    """Every fixed level, the trained router, one without training, the choices of each dealt out at random, the oracle.

    Random choices are the mean over 200 shuffles of a router's own among the questions; the oracle takes the coarsest
    level that answers right (the coarsest of all where none does).

    Args:
        untrained: the reconstruction router's answers.
    """
    table = np.stack([answers.right for answers in levels])
    costs = np.stack([answers.tokens for answers in levels])
    places = np.arange(len(exam))
    best = np.where(table.any(0), table.argmax(0), 0)

    def dealt(answers: Answers) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        shuffles = [rng.permutation(answers.levels) for _ in range(SHUFFLES)]
        chance = np.mean([table[deal, places] for deal in shuffles], axis=0)
        return summarise(chance, np.mean([costs[deal, places] for deal in shuffles], axis=0), exam)

    def chosen(answers: Answers) -> dict[str, Any]:
        choices: dict[str, Counter[int]] = defaultdict(Counter)
        for level, (_, question) in zip(answers.levels.tolist(), exam, strict=True):
            choices[question.kind][level] += 1
        counts = {kind: [count[level] for level in range(len(levels))] for kind, count in sorted(choices.items())}
        return {**summarise(answers.right, answers.tokens, exam), "choices_by_kind": counts}

    return {
        "levels": [summarise(answers.right, answers.tokens, exam) for answers in levels],
        "router": chosen(routed),
        "random_router": dealt(routed),
        "reconstruction_router": chosen(untrained),
        "random_reconstruction": dealt(untrained),
        "oracle": summarise(table[best, places], costs[best, places], exam),
    }

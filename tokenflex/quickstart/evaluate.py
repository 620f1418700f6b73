"""The exam: every held-out question answered with ``generate``, at every level and routed."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from tokenflex.chat import special_tokens, written
from tokenflex.contracts import Decision
from tokenflex.evaluation.summary import Column, Table
from tokenflex.model import Budget, Escalate, FlexModel
from tokenflex.quickstart.images import CELL, COARSE_KINDS, FINE_KINDS, SPACINGS, Scene, SceneQuestion, row
from tokenflex.quickstart.lines import AT
from tokenflex.quickstart.tower import tower_work

BATCH, SHUFFLES, RESAMPLES = 96, 200, 2000
ANSWER = 3
"""Tokens of an answer, at most."""
NEARLY = 0.005
Exam = Sequence[tuple[Scene, SceneQuestion]]


@dataclass(frozen=True)
class GradedAnswers:
    """One setting's answers to the whole exam, in order.

    Attributes:
        tokens: visual tokens of all passes of the language model.
        levels: of the answers.
        passes: of the language model.
        tower: FLOPs of the vision tower.
        scores: ``(questions, levels)`` of a router; None where none was asked.
    """

    texts: tuple[str, ...]
    right: np.ndarray
    tokens: np.ndarray
    levels: np.ndarray
    passes: np.ndarray
    tower: np.ndarray
    scores: np.ndarray | None = None


def batches(flex: FlexModel, processor: ProcessorMixin, exam: Exam) -> Iterator[dict[str, Any]]:
    """The exam's questions as the processor makes them, without their answers."""
    for start in range(0, len(exam), BATCH):
        batch = exam[start : start + BATCH]
        prompts = [row(image, [question])["messages"][:1] for image, question in batch]
        questions = [written(processor, p, f"question {start + i}", reply=True) for i, p in enumerate(prompts)]
        images = [image.image for image, _ in batch]
        options: Any = {"padding": True, "return_tensors": "pt", **special_tokens(processor, questions)}
        yield dict(processor(images=images, text=questions, **options).to(flex.device))


def answer(
    flex: FlexModel,
    processor: ProcessorMixin,
    exam: Exam,
    level: int | None,
    tick: Callable[[], None],
    escalate: Escalate | None = None,
) -> GradedAnswers:
    """Generate an answer to every question.

    Args:
        level: None lets the router decide.
        tick: called after every batch.
        escalate: go on to finer levels where the language model is unsure.
    """
    texts: list[str] = []
    decisions: list[Decision] = []
    work = tower_work(flex, next(batches(flex, processor, exam[:1])))
    for inputs in batches(flex, processor, exam):
        asked: dict[str, Any] = {"level": level} if escalate is None else {"escalate": escalate}
        output = flex.generate(**inputs, **asked, max_new_tokens=ANSWER, return_dict_in_generate=True)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        decisions += output.decisions
        tick()
    scores = [decision.scores for decision in decisions]
    return GradedAnswers(
        texts=tuple(texts),
        right=np.array([text == question.answer for text, (_, question) in zip(texts, exam, strict=True)]),
        tokens=np.array([d.tokens for d in decisions]),
        levels=np.array([d.level for d in decisions]),
        passes=np.array([len(d.tried) or 1 for d in decisions]),
        tower=np.array([work.of(d) for d in decisions], dtype=np.float64),
        scores=None if None in scores else np.stack([one.numpy() for one in scores if one is not None]),
    )


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


@dataclass(frozen=True)
class Results:
    """The exam in all settings.

    Attributes:
        levels: at every level.
        routers: by name, ``router`` or ``..._router``.
        escalated: by name, answers and what they were allowed to.
        smaller: with the smallest image that the host takes, encoded as such; None where that is a level, or there
            is one size only.
        ablations: by routers that see less, by name.
    """

    levels: Sequence[GradedAnswers]
    routers: Mapping[str, GradedAnswers]
    escalated: Mapping[str, tuple[GradedAnswers, Escalate]]
    smaller: GradedAnswers | None = None
    ablations: Mapping[str, GradedAnswers] = field(default_factory=dict[str, GradedAnswers])

    @property
    def others(self) -> dict[str, GradedAnswers]:
        """All settings but the levels."""
        smaller = {} if self.smaller is None else {"smaller_image": self.smaller}
        escalated = {name: answers for name, (answers, _) in self.escalated.items()}
        return {**smaller, **self.routers, **self.ablations, **escalated}


def compare(results: Results, exam: Exam, seed: int) -> dict[str, Any]:
    """Every setting, the choices of each router dealt out at random, the best level of each kind, the oracle.

    Random choices, ``random_...``, are the mean over 200 shuffles of a router's own among the questions; the oracle
    takes the coarsest level that answers right (the coarsest of all where none does). ``level_per_kind``: see
    `best_per_kind`. Routers that see less are also compared at the router's tokens: see `within`. Towers are compared
    with that of the finest level.
    """
    levels = results.levels
    table = np.stack([answers.right for answers in levels])
    costs = np.stack([answers.tokens for answers in levels])
    work = np.stack([answers.tower for answers in levels]) / levels[-1].tower
    places = np.arange(len(exam))
    per_kind = best_per_kind(table, exam)

    sure = intervals(levels, results.others, seed)

    def entry(answers: GradedAnswers, name: str) -> dict[str, Any]:
        tower = float(answers.tower.mean() / levels[-1].tower.mean())
        return {**summarise(answers.right, answers.tokens, exam), **sure[name], "tower": round(tower, 4)}

    def mean_of(picks: Sequence[np.ndarray]) -> dict[str, Any]:
        right, tokens, tower = (np.mean([of[pick, places] for pick in picks], axis=0) for of in (table, costs, work))
        return {**summarise(right, tokens, exam), "tower": round(float(tower.mean()), 4)}

    def dealt(answers: GradedAnswers) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return mean_of([rng.permutation(answers.levels) for _ in range(SHUFFLES)])

    def chosen(answers: GradedAnswers, name: str) -> dict[str, Any]:
        return {**entry(answers, name), **choices(answers, exam, len(levels))}

    def seeing_less(answers: GradedAnswers, name: str) -> dict[str, Any]:
        if answers.scores is None:
            return chosen(answers, name)
        allowed = int(results.routers["router"].tokens.sum())
        return {**chosen(answers, name), AT: mean_of([within(answers.scores, costs.T, allowed)])}

    def promised(name: str, answers: GradedAnswers, escalate: Escalate) -> dict[str, Any]:
        differs = np.array([one != other for one, other in zip(answers.texts, levels[-1].texts, strict=True)])
        return {
            **chosen(answers, name),
            "passes_mean": round(float(answers.passes.mean()), 4),
            "differs_from_finest": round(float(differs.mean()), 4),
            "escalate": escalate.to_dict(),
        }

    return {
        "levels": [entry(answers, f"level:{level}") for level, answers in enumerate(levels)],
        **({} if results.smaller is None else {"smaller_image": entry(results.smaller, "smaller_image")}),
        **{name: chosen(answers, name) for name, answers in results.routers.items()},
        **{name: seeing_less(answers, name) for name, answers in results.ablations.items()},
        **{f"random_{name.removesuffix('_router')}": dealt(answers) for name, answers in results.routers.items()},
        "level_per_kind": {
            **mean_of([np.array([per_kind[question.kind] for _, question in exam])]),
            "levels_by_kind": per_kind,
        },
        **{name: promised(name, *found) for name, found in results.escalated.items()},
        "oracle": mean_of([np.where(table.any(0), table.argmax(0), 0)]),
    }


def within(scores: np.ndarray, costs: np.ndarray, allowed: int) -> np.ndarray:
    """Levels by a router's scores at the lowest price per token at which all questions fit into ``allowed`` tokens.

    Args:
        scores, costs: ``(questions, levels)``.
    """
    shared = Budget(tokens=allowed, per="request").build()
    return shared(torch.from_numpy(scores), torch.from_numpy(costs)).numpy()


def best_per_kind(right: np.ndarray, exam: Exam) -> dict[str, int]:
    """The level that a user who knows the kind of a question would fix for it: the coarsest within half a point of the
    kind's best accuracy, on the exam itself, which favours it.

    Args:
        right: ``(levels, questions)``, whether each level answers right.
    """
    kinds = np.array([question.kind for _, question in exam])
    found: dict[str, int] = {}
    for kind in dict.fromkeys(kinds.tolist()):
        accuracy = right[:, kinds == kind].mean(axis=1)
        found[kind] = int((accuracy >= accuracy.max() - NEARLY).argmax())
    return found


def choices(answers: GradedAnswers, exam: Exam, levels: int) -> dict[str, dict[str, list[int]]]:
    """How many questions got each level: by kind and, of the fine ones, by how dense the digits are."""
    by_kind: dict[str, list[int]] = defaultdict(lambda: [0] * levels)
    by_spacing = {window_name(window): [0] * levels for window in SPACINGS}
    for level, (scene, question) in zip(answers.levels.tolist(), exam, strict=True):
        by_kind[question.kind][level] += 1
        if question.fine:
            by_spacing[window_name(SPACINGS[scene.spacing])][level] += 1
    return {"choices_by_kind": dict(sorted(by_kind.items())), "choices_by_spacing": by_spacing}


def window_name(window: tuple[int, int]) -> str:
    """Of a window of cells, down and across: its height and width in pixels."""
    return f"{window[0] * CELL} x {window[1] * CELL}"


def intervals(
    levels: Sequence[GradedAnswers], others: Mapping[str, GradedAnswers], seed: int
) -> dict[str, dict[str, Any]]:
    """Per setting the accuracy's 95 % interval, and the difference to the finest level's accuracy with its own.

    All settings see the same draws of questions, so differences are paired (see `tokenflex.evaluation.summary`).

    Args:
        levels: named ``level:0`` and so on in what is returned.
        seed: of the draws.
    """
    # Only the finest is named as a level: all of them would bring the oracle and the frontier, which nobody asks for.
    last, named = len(levels) - 1, {f"level {level}": answers for level, answers in enumerate(levels[:-1])}
    of = levels[-1].tokens.astype(np.float64)
    columns = {
        name: Column(answers.right.astype(np.float64), answers.tokens.astype(np.float64), of)
        for name, answers in {**named, f"level:{last}": levels[-1], **others}.items()
    }
    found = Table(columns, last + 1, [""] * len(of), RESAMPLES, seed).summary()["settings"]
    return {
        name.replace("level ", "level:"): {
            "accuracy_ci95": entry["score_ci95"],
            "minus_finest": entry["minus_finest"],
            "minus_finest_ci95": entry["minus_finest_ci95"],
        }
        for name, entry in found.items()
    }

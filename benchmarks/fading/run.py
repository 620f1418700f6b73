"""One seed: everything from pictures to answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.fading import exam, host, learning, pictures, routing, settings, tower
from benchmarks.fading.learning import Practice
from benchmarks.fading.questions import KINDS

CURVES = ("all fine", "fade + router, 35%", "fade by age, 35%", "delete oldest, 35%", "all at 4 tokens")
"""Settings whose answers are counted turn by turn."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Plan:
    """Sizes and rates.

    Attributes:
        stock: training pictures.
        tower_steps, tower_rate: of stage 0.
        practices: how the language model learns, in order.
        router_rows, router_steps, router_rate: of the router's training.
        conversations, each: of the exam behind the last picture, and questions per conversation.
        walks: conversations whose questions are asked in every turn.
    """

    stock: int = 6000
    tower_steps: int = 700
    tower_rate: float = 3e-3
    practices: tuple[Practice, ...] = ()
    router_rows: int = 14000
    router_steps: int = 5000
    router_rate: float = 2e-3
    conversations: int = 80
    each: int = 8
    walks: int = 40


def run(plan: Plan, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train with a seed, and answer the exam under every setting.

    Args:
        tell: is told what was done.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Any:
        begun = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - begun, 1)
        tell(f"seed {seed}, {name}: {seconds[name]} s")

    model, processor = host.seeded(seed)
    with stage("pictures"):
        stock = pictures.stock(seed, plan.stock)
    with stage("vision tower"):
        tower.pretrain(model, processor, stock, steps=plan.tower_steps, rate=plan.tower_rate, seed=seed)
        tower.align(model, processor, stock)
    with stage("language model"):
        pyramids = learning.Pyramids(stock, tower.all_seen(model, processor, stock))
        writer = learning.Writer(processor.tokenizer, pyramids)
        for practice in plan.practices:
            learning.learn(model, writer, practice, seed=seed, tell=tell)
    model.eval()
    flex = routing.flex_of(model, processor)
    with stage("router"):
        needed = routing.train_router(
            flex, processor, seed=seed, count=plan.router_rows, steps=plan.router_steps, rate=plan.router_rate
        )
    with stage("exam"):
        found = examined(flex, processor, plan, seed, tell)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in
             (("host", model), ("vision tower", model.model.visual), ("router", flex.compressor))}  # fmt: skip
    return {"seed": seed, "seconds": seconds, "parameters": sizes, "router rows": needed, **found}


def examined(flex: Any, processor: Any, plan: Plan, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every setting's answers behind the last picture, and some turn by turn."""
    last = exam.last_questions(seed, plan.conversations, plan.each)
    walks = exam.every_turn(seed, plan.walks)
    ways, graded, curves = settings.settings(flex, processor, seed), dict[str, exam.Graded](), dict[str, list[float]]()
    for name, choose in ways.items():
        graded[name] = exam.answered(flex, processor, last, choose)
        tell(f"seed {seed}, {name}: {graded[name].right.mean():.3f} right, {graded[name].tokens.mean():.1f} tokens")
        if name in CURVES:
            turns = exam.answered(flex, processor, walks, choose).right.reshape(plan.walks, -1)
            curves[name] = turns.mean(0).round(4).tolist()
    return {"table": table(graded, last, plan.each, seed), "curves": curves, "seen": seen(graded, last)}


def table(
    graded: Mapping[str, exam.Graded], prompts: Sequence[exam.Prompt], each: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Per setting the accuracy, with an interval and by kind, and what it is below all fine.

    Intervals are of 95 %, over draws of whole conversations, the same for all settings.
    """
    rng, kinds = np.random.default_rng((seed, 11)), np.array([one.asked.kind for one in prompts])
    conversations = len(prompts) // each
    draws = rng.integers(0, conversations, (RESAMPLES, conversations))
    best = graded["all fine"].right.reshape(conversations, each).mean(1)

    def interval(values: np.ndarray) -> list[float]:
        return np.quantile(values[draws].mean(1), (0.025, 0.975)).round(4).tolist()

    found = {}
    for name, one in graded.items():
        right = one.right.reshape(conversations, each).mean(1)
        found[name] = {
            "accuracy": round(float(right.mean()), 4),
            "accuracy_ci95": interval(right),
            "minus_all_fine": round(float((right - best).mean()), 4),
            "minus_all_fine_ci95": interval(right - best),
            "tokens": round(float(one.tokens.mean()), 2),
            "share": round(float(one.tokens.mean() / graded["all fine"].tokens.mean()), 4),
            "kinds": {kind: round(float(one.right[kinds == kind].mean()), 4) for kind in KINDS},
        }
    return found


def seen(graded: Mapping[str, exam.Graded], prompts: Sequence[exam.Prompt]) -> dict[str, dict[str, float]]:
    """Of questions about details: how often the picture asked about was finest, and how many older ones were raised."""
    fine = [i for i, one in enumerate(prompts) if one.asked.fine]
    found = {}
    for name, one in graded.items():
        if not name.startswith("fade"):
            continue
        about = [one.levels[i][prompts[i].asked.about or 0] == learning.FINEST for i in fine]
        raised = [sum(reason.startswith("raised") for reason in row) for row in one.reasons]
        found[name] = {"asked about and finest": float(np.mean(about)), "raised": float(np.mean(raised))}
    return found

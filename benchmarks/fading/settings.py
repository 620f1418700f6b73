"""What a conversation's pictures may cost, and who says which of them are shown finely."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fading.exam import Choose, Prompt, inputs_of
from benchmarks.fading.pictures import NAMES, SIDE
from tokenflex import Fade
from tokenflex.model import FlexModel

FINE = SIDE * SIDE
"""Visual tokens of a picture at the finest level."""
ALL = len(NAMES) * FINE
SHARES = (0.25, 0.35, 0.5)
"""Budgets, as shares of what all pictures cost at the finest level."""
MAIN = 0.35
SURE = 10.0
"""A score by which a level is wanted without doubt."""
AT: Mapping[float, Mapping[str, Any]] = {
    0.25: {"newest": 0.4, "step": 1, "recall": 0.35},
    0.35: {},
    0.5: {},
}
"""Settings of `Fade` besides its tokens. A quarter has no room for two fine pictures and one that is asked about."""
Scores = Callable[[Sequence[Prompt]], Sequence[Tensor]]


def fade(share: float, **other: Any) -> Fade:
    """The budget of that share."""
    return Fade(tokens=int(share * ALL), **{**AT[share], **other})


def deleted(share: float) -> int:
    """How many fine pictures fit."""
    return int(share * ALL) // FINE


def settings(flex: FlexModel, processor: Any, seed: int) -> dict[str, Choose]:
    """Every setting of the table, by name."""
    levels = flex.compressor.num_levels
    found: dict[str, Choose] = {"all fine": always(level="finest")}
    for level in reversed(range(levels - 1)):
        found[f"all at {FINE >> (levels - 1 - level)} tokens"] = always(level=level)
    for share in SHARES:
        found[f"delete oldest, {share:.0%}"] = always(level="finest", shown=deleted(share))
    for share in SHARES:
        found[f"fade by age, {share:.0%}"] = always(budget=fade(share, recall=0.0))
    for share in SHARES:
        found[f"fade + router, {share:.0%}"] = always(budget=fade(share))
    rng = np.random.default_rng((seed, 9))
    found[f"fade + shuffled router, {MAIN:.0%}"] = by_scores(
        flex, lambda batch: [one[torch.from_numpy(rng.permutation(len(one)))] for one in judged(flex, processor, batch)]
    )
    found[f"fade + the truth, {MAIN:.0%}"] = by_scores(flex, lambda batch: [truth(one, levels) for one in batch])
    return found


def always(**how: Any) -> Choose:
    """The same keywords for every batch."""
    return lambda batch: dict(how)


def judged(flex: FlexModel, processor: Any, prompts: Sequence[Prompt]) -> list[Tensor]:
    """The router's scores, ``(pictures, levels)`` per prompt."""
    rows = [one.scores for one in flex.decide(**inputs_of(processor, prompts)) if one.scores is not None]
    return list(torch.stack(rows).split([len(one.pictures) for one in prompts]))


def truth(prompt: Prompt, levels: int) -> Tensor:
    """Scores of a router that knows which picture is asked about, and whether in detail."""
    scores = torch.zeros(len(prompt.pictures), levels)
    scores[:, 0] = SURE
    if prompt.asked.about is not None and prompt.asked.fine:
        scores[prompt.asked.about] = torch.tensor([0.0] * (levels - 1) + [SURE])
    return scores


def by_scores(flex: FlexModel, scores: Scores) -> Choose:
    """Levels that `Fade` gives for scores that aren't the router's own, at the main budget."""
    policy = fade(MAIN).build(num_levels=flex.compressor.num_levels)
    tokens = torch.tensor([FINE >> i for i in reversed(range(flex.compressor.num_levels))])

    def choose(batch: Sequence[Prompt]) -> dict[str, Any]:
        chosen = [policy(one, tokens.expand(len(one), -1)) for one in scores(batch)]
        return {"level": tuple(torch.cat(chosen).tolist())}

    return choose

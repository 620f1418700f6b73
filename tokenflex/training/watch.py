"""What a run spends and chooses, as figures beside its loss.

Objectives tell, per image of a batch, what each level costs (``tokens``), which levels were run or chosen
(``chosen``) and, where a router is judged, the loss at every level (``feedback``). Here they become means over
images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenflex.ops.frontier import Frontier, regret
from tokenflex.ops.ranking import best_first, forgive, usable

EVALUATED = ("visual_tokens", "visual_tokens_share", "agreement", "regret", "regret_tokens")
"""Figures of an evaluation of a router, besides the share of each level."""


HELD = 64
"""Batches that are kept where they were computed, so that a device isn't waited for at every step."""


class TrainingWatch:
    """Figures of the batches since they were last told.

    Args:
        levels: how many there are.
        tolerance: of the objective: losses within so many nats per token of the best level tie with it.
    """

    def __init__(self, levels: int, tolerance: float = 0.0) -> None:
        self.levels, self.tolerance = levels, tolerance
        self._total = torch.zeros(5 + levels, dtype=torch.float64)
        self._batches: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def add(self, output: Mapping[str, Any]) -> None:
        """Keep what an objective told of a batch; nothing, where it told nothing."""
        if output.get("tokens") is not None and len(output["tokens"]):
            self._batches.append((output["tokens"], output["chosen"], output.get("feedback")))
        if len(self._batches) >= HELD:
            self._add_up()

    def figures(self, summed: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all images since the last time, of all processes; then it begins anew.

        ``visual_tokens``: what the language model saw of an image; ``visual_tokens_share``: the same over the finest
        level's; ``level_0``, ...: how often each level was run, where it isn't always the same; ``agreement``: how
        often the router's level is the one of least loss, among images whose losses differ.

        Args:
            summed: adds a vector of every process up.
        """
        self._add_up()
        runs, spent, finest, judged, agreed, *counts = summed(self._total).tolist()
        self._total = torch.zeros_like(self._total)
        return _metrics(runs, spent, finest, judged, agreed, counts)

    def _add_up(self) -> None:
        for tokens, chosen, feedback in self._batches:
            self._total += _sums(tokens.cpu(), chosen.cpu(), feedback, self.tolerance)
        self._batches = []


def _sums(tokens: Tensor, chosen: Tensor, feedback: Tensor | None, tolerance: float) -> Float[Tensor, " figures"]:
    runs = chosen.shape[1]
    found = [float(chosen.numel()), float(tokens.gather(1, chosen).sum()), float(tokens[:, -1].sum() * runs)]
    labelled = torch.zeros(len(tokens), dtype=torch.bool)
    right = labelled
    if feedback is not None:
        losses = feedback.float().cpu()
        labelled = usable(losses) & (losses.amax(-1) > losses.amin(-1))
        right = labelled & (best_first(forgive(losses, tolerance))[:, 0] == chosen[:, 0])
    head = torch.tensor([*found, float(labelled.sum()), float(right.sum())], dtype=torch.float64)
    return torch.cat([head, torch.bincount(chosen.flatten(), minlength=tokens.shape[1]).double()])


def _metrics(
    runs: float, spent: float, finest: float, judged: float, agreed: float, counts: Sequence[float]
) -> dict[str, float]:
    if not runs:
        return {}
    metrics = {"visual_tokens": spent / runs, "visual_tokens_share": spent / finest if finest else 1.0}
    if judged or sum(count > 0 for count in counts) > 1:
        metrics |= {f"level_{level}": count / runs for level, count in enumerate(counts)}
    return metrics | ({"agreement": agreed / judged} if judged else {})


def judged_rows(output: Mapping[str, Any], rows: int, levels: int, apart: bool = False) -> Tensor:
    """A router's choices of a batch, row by row, so that processes can put theirs together.

    Args:
        output: of an objective that judges a router.
        rows: of the batch.
        apart: give every image a row of its own.

    Returns:
        ``(rows, images, 1 + 2 * levels)``: the level, tokens and losses at each level; NaN where there is no image.
    """
    if output.get("scores") is None:
        return torch.full((rows, 1, 1 + 2 * levels), torch.nan)
    gathered = [output["chosen"][:, :1], output["tokens"], output["feedback"]]
    each = torch.cat([one.float() for one in gathered], dim=-1)
    owners: list[int] = list(range(len(each))) if apart else output["rows"].tolist()
    places = [owners[:i].count(row) for i, row in enumerate(owners)]
    table = each.new_full((len(each) if apart else rows, max(places) + 1, each.shape[1]), torch.nan)
    table[owners, places] = each
    return table


def evaluated(tables: Sequence[Tensor], levels: int, tolerance: float = 0.0) -> dict[str, float]:
    """Figures of a router on an evaluation set: as `TrainingWatch` has them, and its regret.

    ``regret``: nats per answer token that better choices would gain for the same mean tokens; ``regret_tokens``: tokens
    that they would save at the same mean loss (`tokenflex.ops.frontier`). Each image counts alike, with its row's
    losses.

    Args:
        tables: of `judged_rows`, of all processes.
    """
    each = torch.cat([table.flatten(0, 1).double().cpu() for table in tables]) if tables else torch.zeros(0, 1)
    each = each[~each[:, 0].isnan()]
    if not len(each):
        return {}
    chosen, tokens, losses = each[:, :1].long(), each[:, 1 : 1 + levels].long(), each[:, 1 + levels :]
    runs, spent, finest, judged, agreed, *counts = _sums(tokens, chosen, losses, tolerance).tolist()
    metrics = _metrics(runs, spent, finest, judged, agreed, counts)
    known = usable(losses)
    if not bool(known.any()):
        return metrics
    cost, score = tokens[known].numpy().T, -losses[known].numpy().T
    places = chosen[known, 0].numpy(), np.arange(cost.shape[1])
    curve = Frontier(score, cost).curve(np.full(cost.shape[1], 1 / cost.shape[1]))
    missed, excess = regret(curve, float(cost[places].mean()), float(score[places].mean()))
    return metrics | {"regret": missed, "regret_tokens": excess}

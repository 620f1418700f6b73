"""What each stage minimises, as functions of a `FlexModel` and a batch.

An objective runs inside ``FlexModel.forward``, so that wrappers around the model keep working. Each encodes
the batch's pictures once, however many levels it looks at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.model import Encoded, FlexModel
from tokenflex.ops.ranking import rglf_loss

IGNORE = -100


def answer_nll(
    logits: Float[Tensor, "rows length vocabulary"], labels: Int[Tensor, "rows length"]
) -> Float[Tensor, " rows"]:
    """Mean negative log-likelihood of each row's answer tokens, in nats per token; NaN without any."""
    targets = labels[:, 1:]
    supervised = targets != IGNORE
    losses = F.cross_entropy(logits[:, :-1][supervised].float(), targets[supervised], reduction="none")
    rows = supervised.nonzero()[:, 0]
    total = losses.new_zeros(len(labels)).index_add(0, rows, losses)
    return total / supervised.sum(-1)


@dataclass(frozen=True)
class LanguageObjective:
    """The host's own language-model loss at one level (stages 1 and 2).

    Attributes:
        level: negative counts from the finest, -1.
    """

    level: int = -1

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``: as the host computes it; 0 when the batch has no answer tokens."""
        encoded = flex.encode(batch)
        return ModelOutput(loss=_language_loss(flex, batch, encoded, self.level))


@dataclass(frozen=True)
class MultiGranularityObjective:
    """The mean over levels of the language-model loss (stage 3; AVG-LLaVA, section 3.3)."""

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``: the mean; ``level_losses``: one per level, detached."""
        encoded = flex.encode(batch)
        levels = range(flex.compressor.num_levels) if encoded.images else [-1]
        losses = torch.stack([_language_loss(flex, batch, encoded, level) for level in levels])
        return ModelOutput(loss=losses.mean(), level_losses=losses.detach())


@dataclass(frozen=True)
class RGLFObjective:
    """Rank the levels by the frozen LMM's own losses (stage 4; AVG-LLaVA, section 3.3).

    Attributes:
        margin: scale of the ranking margins, in log-probability per nat.
        rank_weight, ce_weight: weights of the ranking and the cross-entropy term.
        tolerance: losses within so many nats per answer token of the best level tie with it, and ties go to the
            coarser level; 0 as published.
        guard: see `tokenflex.ops.ranking.rglf_loss`; False as published.
    """

    margin: float = 1.0
    rank_weight: float = 1.0
    ce_weight: float = 0.1
    tolerance: float = 0.0
    guard: bool = True

    def __call__(self, flex: FlexModel, batch: Mapping[str, Any]) -> ModelOutput:
        """``loss``, and per image ``feedback`` and ``scores``, both ``(images, levels)``."""
        flex.host.eval()
        with torch.no_grad():
            encoded = flex.encode(batch)
            if encoded.images:
                feedback = level_feedback(flex, batch, encoded)
        if not encoded.images:
            return ModelOutput(loss=sum(p.sum() for p in flex.compressor.parameters()) * 0.0)
        scores = flex.scores(encoded)
        loss = rglf_loss(
            scores,
            feedback,
            margin=self.margin,
            rank_weight=self.rank_weight,
            ce_weight=self.ce_weight,
            tolerance=self.tolerance,
            guard=self.guard,
        )
        return ModelOutput(loss=loss, feedback=feedback, scores=scores.detach())


def level_feedback(flex: FlexModel, batch: Mapping[str, Any], encoded: Encoded) -> Float[Tensor, "images levels"]:
    """The host's mean answer loss at every level, per image (that of its row), longest level first."""
    columns: list[Tensor] = []
    for level in reversed(range(flex.compressor.num_levels)):
        inputs = _at_level(flex, batch, encoded, level)
        labels = inputs.pop("labels")
        inputs.pop("num_items_in_batch", None)
        logits = flex.host(**inputs, use_cache=False).logits[..., : flex.adapter.vocabulary]
        columns.append(answer_nll(logits, labels))
    rows = [image.row for image in encoded.images]
    return torch.stack(columns[::-1], dim=-1)[rows]


def _language_loss(flex: FlexModel, batch: Mapping[str, Any], encoded: Encoded, level: int) -> Tensor:
    inputs = _at_level(flex, batch, encoded, level)
    vocabulary = flex.adapter.vocabulary
    held = {} if vocabulary is None else {key: inputs.pop(key, None) for key in ("labels", "num_items_in_batch")}
    output = flex.host(**inputs, use_cache=False)
    if not bool((batch["labels"][:, 1:] != IGNORE).any()):
        return output.logits.sum() * 0.0
    if vocabulary is None:
        return output.loss
    return flex.host.loss_function(logits=output.logits[..., :vocabulary], vocab_size=vocabulary, **held)


def _at_level(flex: FlexModel, batch: Mapping[str, Any], encoded: Encoded, level: int) -> dict[str, Any]:
    level %= flex.compressor.num_levels
    return flex.at_levels(batch, encoded, [level] * len(encoded.images), "right").inputs

"""What a model predicts for the answers of a batch, at given levels, and how far two predictions are apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.model import Encoded, FlexModel
from tokenflex.training import shifted, target_logits

IGNORE = -100
"""Label of positions that aren't supervised."""


@dataclass(frozen=True)
class Answers:
    """Predictions at the positions that predict answer tokens, row after row.

    Attributes:
        logits: limited to the words that can be answers.
        targets: the answer tokens themselves.
        rows: row of the batch each belongs to.
        of: number of rows of the batch.
    """

    logits: Float[Tensor, "answers vocabulary"]
    targets: Int[Tensor, " answers"]
    rows: Int[Tensor, " answers"]
    of: int

    def losses(self) -> Float[Tensor, " answers"]:
        """Negative log-likelihood of each answer token, in float32."""
        return F.cross_entropy(self.logits.float(), self.targets, reduction="none")

    def per_row(self, values: Float[Tensor, " answers"]) -> Float[Tensor, " rows"]:
        """The mean of ``values`` over each row's answer tokens; NaN where a row has none."""
        empty = values.new_zeros(self.of)
        return empty.index_add(0, self.rows, values) / empty.index_add(0, self.rows, values.new_ones(len(values)))


def answers(flex: FlexModel, batch: Mapping[str, Any], encoded: Encoded, levels: Sequence[int]) -> Answers:
    """One pass through the language model.

    Args:
        batch: with ``labels``, from which ``encoded`` was made.
        levels: one per image of the batch.
    """
    inputs = dict(flex.at_levels(batch, encoded, levels, "right").inputs)
    wanted = shifted(inputs.pop("labels"))
    inputs.pop("num_items_in_batch", None)
    predicts = wanted != IGNORE
    logits = target_logits(flex.host, inputs, predicts)
    rows = predicts.nonzero()[:, 0]
    return Answers(logits[..., : flex.adapter.vocabulary], wanted[predicts], rows, len(wanted))


def divergence(
    reference: Float[Tensor, "answers vocabulary"], given: Float[Tensor, "answers vocabulary"]
) -> Float[Tensor, " answers"]:
    """KL(reference || given) of each position in nats, from logits, in float32."""
    wanted, found = reference.float().log_softmax(-1), given.float().log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1)

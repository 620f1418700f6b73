"""Confidences in whole answers: known once an answer is written."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Confidence
from tokenflex.ops.sureness import log_probability, margin


class MeanLogProbability(Confidence):
    """Mean log-probability of the answer's tokens, the one that ends it among them, in nats."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    @property
    def first_only(self) -> bool:
        """False: every token of the answer counts."""
        return False

    def of_tokens(
        self, scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Logarithm of each row's probability of the token that was chosen, in nats."""
        return log_probability(scores, chosen)

    def of_answer(
        self, values: Float[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]
    ) -> Float[Tensor, " rows"]:
        """Mean over the tokens of each row's answer, which ``mask`` tells."""
        return values.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)


class MinMargin(Confidence):
    """The smallest margin between the two likeliest tokens at any step: as sure as the least sure token."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    @property
    def first_only(self) -> bool:
        """False: every token of the answer counts."""
        return False

    def of_tokens(
        self, scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Difference between each row's two highest probabilities, 0 to 1."""
        return margin(scores)

    def of_answer(
        self, values: Float[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]
    ) -> Float[Tensor, " rows"]:
        """Least value over the tokens of each row's answer, which ``mask`` tells."""
        return values.masked_fill(~mask, float("inf")).amin(-1)

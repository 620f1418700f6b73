"""Confidences in the first token of an answer: known as soon as the prompt is read.

Where an answer is one word, a letter or a number, its first token decides it.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Confidence
from tokenflex.ops.sureness import log_probability, margin, negative_entropy


class FirstMargin(Confidence):
    """By how much the likeliest first token is ahead of the second, in probability."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    @property
    def first_only(self) -> bool:
        """True: only the answer's first token counts."""
        return True

    def of_tokens(
        self, scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Difference between each row's two highest probabilities, 0 to 1."""
        return margin(scores)

    def of_answer(
        self, values: Float[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]
    ) -> Float[Tensor, " rows"]:
        """Each row's value at the first step."""
        return values[:, 0]


class FirstProbability(Confidence):
    """Probability of the first token."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    @property
    def first_only(self) -> bool:
        """True: only the answer's first token counts."""
        return True

    def of_tokens(
        self, scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Each row's probability of the token that was chosen, 0 to 1."""
        return log_probability(scores, chosen).exp()

    def of_answer(
        self, values: Float[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]
    ) -> Float[Tensor, " rows"]:
        """Each row's value at the first step."""
        return values[:, 0]


class FirstEntropy(Confidence):
    """Minus the entropy of the first token's distribution, in nats: 0 is the surest."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """It has no settings."""

    @property
    def first_only(self) -> bool:
        """True: only the answer's first token counts."""
        return True

    def of_tokens(
        self, scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Minus the entropy of each row's distribution over the vocabulary, in nats."""
        return negative_entropy(scores)

    def of_answer(
        self, values: Float[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]
    ) -> Float[Tensor, " rows"]:
        """Each row's value at the first step."""
        return values[:, 0]

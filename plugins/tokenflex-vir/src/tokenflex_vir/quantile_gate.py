"""More tokens only where they are likely to be needed, and if wanted only for so many images of a request."""

import math
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Policy, Rule

Probability = Annotated[float, Rule(lambda value: 0 <= value <= 1, "is no probability; use a number from 0 to 1.")]
Quantile = Annotated[float, Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1; None leaves it out.")]


class QuantileGatePolicy(Policy):
    """The coarsest level that is enough with a probability of more than 1 - ``threshold``.

    The softmax of the scores is taken as the probability that a level is the one needed. Step l, from level l to
    something finer, is needed with probability ``P(level > l)``; it is taken if that is at least ``threshold``, and the
    chosen level is that before the first step not taken. With two levels the probability is the sigmoid of the margin
    between fine and coarse, and an image is compressed unless it reaches the threshold.

    With a ``quantile`` q, a step must also reach the q-quantile of its probabilities over the request's n images: the
    value that ``floor(q n)`` of them precede when sorted. So at most ``ceil((1 - q) n)`` images take a step, more only
    if they tie with the last of them. Then an image's level depends on the other images of its request.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            threshold: probability, 0 to 1, from which on a finer level is taken; 0 always takes the finest.
            quantile: share of the request's images, 0 or more and below 1, that isn't refined whatever they score;
                None: images are judged one by one.
        """

        threshold: Probability = 0.5
        quantile: Quantile | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.threshold, self.quantile = config.threshold, config.quantile

    @property
    def couples(self) -> bool:
        """With a quantile, images of a request are weighed against one another."""
        return self.quantile is not None

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """The level before the first step not taken; counts don't matter."""
        finer = step_probabilities(scores)
        taken = finer >= self.threshold
        if self.quantile is not None and len(finer):
            taken = taken & (finer >= finer.sort(dim=0).values[rank_of(self.quantile, len(finer))])
        return taken.long().cumprod(-1).sum(-1)


def step_probabilities(scores: Float[Tensor, "images levels"]) -> Float[Tensor, "images steps"]:
    """For every level but the last the probability that a finer one is needed, never increasing."""
    shares = scores.float().softmax(-1)
    return shares.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def rank_of(quantile: float, count: int) -> int:
    """How many of ``count`` sorted values precede the quantile; a product that is whole up to rounding is whole."""
    return min(math.floor(quantile * count + 1e-9), count - 1)

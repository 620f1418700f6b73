"""Never coarser than any confident voter wants it."""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Rule, Voter
from tokenflex.ops.ballots import favourites

Probability = Annotated[float, Rule(lambda value: 0 <= value <= 1, "is no probability; use a number from 0 to 1.")]


class MaxDetailVoter(Voter):
    """The finest of the levels that confident voters like best.

    A voter is confident if the softmax of its ballot gives one level ``confidence`` or more; where nobody is, everybody
    counts. A level's score is minus the share of counted voters that like a finer one best, so the policy ``argmax``,
    which gives ties to the coarser level, picks the coarsest level that nobody of them finds too coarse. It counts
    without gradients.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``confidence``, a probability; 0 counts every voter."""

        confidence: Probability = 0.5

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.confidence = config.confidence

    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """Minus the share that wants more detail; the same for all levels where every ballot is masked."""
        sure = ballots.mask & (ballots.logits.float().softmax(-1).amax(-1) >= self.confidence)
        counted = sure | (ballots.mask & ~sure.any(-1, keepdim=True).any(-2, keepdim=True))
        finer = favourites(ballots, counted).flip(-1).cumsum(-1).flip(-1)
        return -F.pad(finer[..., 1:], (0, 1))

"""The more the prompt tokens say about where to look, the fewer tokens are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Positive, Router, ScaledTokens
from tokenflex.ops.ballots import shortfall
from tokenflex.ops.keeping import cosines
from tokenflex.ops.needed import prompt_count, prompt_per_view


class MutualInformationRouter(Router):
    """Maps the mutual information of prompt and image to a share of the tokens (after AutoPrune, arXiv 2509.23931).

    A word is drawn uniformly, then a token by the softmax of cosine / temperature. The mutual information of the two,
    as a share m of the largest possible, asks for 1 / (1 + exp(steepness * (m - midpoint))) of the tokens. Without
    words m is 0.
    """

    compares_levels: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            temperature: of the softmax over the tokens; the smaller, the larger the information.
            steepness: of the logistic curve.
            midpoint: information, 0 to 1, at which half of the tokens are asked for.
        """

        temperature: Positive = 0.05
        steepness: Positive = 10.0
        midpoint: float = 0.5

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.temperature, self.steepness, self.midpoint = config.temperature, config.steepness, config.midpoint

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """One voter per view."""
        return (Grid(1, 1),)

    @torch.no_grad()
    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Vote against levels that keep fewer tokens than the finest level's information asks for."""
        features = pyramid[-1].features
        prompt, mask = prompt_per_view(instruction, features)
        information = _information(cosines(prompt, features) / self.temperature, mask)
        share = torch.sigmoid(self.steepness * (self.midpoint - information))
        return shortfall(share * features.shape[-2], pyramid)


def _information(
    logits: Float[Tensor, "*batch prompt tokens"], mask: Bool[Tensor, "*batch prompt"]
) -> Float[Tensor, " *batch"]:
    """Mutual information of word and token, from 0 to 1; 0 where one of the two has nothing to tell apart."""
    tokens, rows = logits.shape[-1], prompt_count(mask)
    given_word = logits.log_softmax(-1)
    drawn = mask.float() / rows[..., None]
    joint = given_word.exp() * drawn[..., None]
    overall = joint.sum(-2, keepdim=True).clamp(min=1e-30).log()
    found = (joint * (given_word - overall)).sum((-2, -1)).clamp(min=0)
    most = rows.clamp(max=tokens).log()
    return torch.where(most > 0, (found / most.clamp(min=1e-30)).clamp(max=1), 0.0)

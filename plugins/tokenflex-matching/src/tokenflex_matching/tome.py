"""Token merging: the most similar pairs become one, round by round."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import Need, VisualTokens
from tokenflex.scalers import MergingScaler
from tokenflex_matching.bipartite import match_down
from tokenflex_matching.inputs import Metric, metric_needs, metric_vectors


class ToMeScaler(MergingScaler):
    """Bipartite soft matching (ToMe, arXiv 2210.09461, section 3) until the count of the level is reached.

    Each round splits the remaining tokens alternately into A and B, finds for each of A its most similar one of B, and
    merges the pairs of highest cosine, at most half of the tokens. A merged token is the plain mean of its sources.
    Kept tokens are in the order of the grid, by the first source of each.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MergingScaler.Config):
        """Settings.

        Attributes:
            metric: vectors compared: ``features``, or ``keys`` of the vision tower's attention as published.
        """

        metric: Metric = "features"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.metric = config.metric

    @property
    def needs(self) -> frozenset[Need]:
        """``keys`` where they are compared."""
        return metric_needs(self.metric)

    def assignments(self, image: VisualTokens, counts: Sequence[int]) -> list[Int[Tensor, "*batch views tokens"]]:
        """Merged down to each count; the halvings are done once."""
        found = match_down(metric_vectors(image, self.metric), counts)
        return [found[count] for count in counts]

"""Token merging: the most similar pairs become one, round by round."""

from dataclasses import dataclass

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, check_ratios, everything, kept_layouts, merged
from tokenflex_matching.bipartite import match_down
from tokenflex_matching.inputs import METRICS, check_choice, metric_needs, metric_vectors


class ToMeScaler(Scaler):
    """Bipartite soft matching (ToMe, arXiv 2210.09461, section 3) until the count of the level is reached.

    Each round splits the remaining tokens alternately into A and B, finds for each of A its most similar one of B, and
    merges the pairs of highest cosine, at most half of the tokens. A merged token is the plain mean of its sources.
    Kept tokens are in the order of the grid, by the first source of each.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            ratios: share of the tokens kept per level, coarse to fine; the last is 1.
            metric: vectors compared: ``features``, or ``keys`` of the vision tower's attention as published.
        """

        ratios: tuple[float, ...] = RATIOS
        metric: str = "features"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_choice("metric", config.metric, METRICS)
        self.ratios, self.metric = check_ratios(config.ratios), config.metric

    @property
    def needs(self) -> frozenset[Need]:
        """``keys`` where they are compared."""
        return metric_needs(self.metric)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Counts; the grid where all tokens are kept."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Merge down to the count of ``level``.

        Raises:
            InputError: keys are to be compared and there are none.
        """
        return self._at(tokens, [self.granularities(tokens.grid)[level]])[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level; the halvings are done once."""
        return self._at(tokens, self.granularities(tokens.grid))

    def _at(self, tokens: VisualTokens, counts: list[int] | tuple[int, ...]) -> tuple[ScaledTokens, ...]:
        fewer = [count for count in counts if count < tokens.grid.tokens]
        found = match_down(metric_vectors(tokens, self.metric), fewer) if fewer else {}
        return tuple(merged(tokens, found[n], n) if n in found else everything(tokens) for n in counts)

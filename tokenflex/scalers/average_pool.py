"""Average pooling over windows: the published pyramid."""

from dataclasses import dataclass

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import over_views
from tokenflex.ops.pooling import (
    PYRAMID,
    Windows,
    check_windows,
    pool_windows,
    pooled_grid,
    window_assignment,
)


class AveragePoolScaler(Scaler):
    """One average pool from the finest grid per level (AVG-LLaVA, arXiv 2410.02745, section 3.1).

    The default windows keep 36/72/144/288/576 tokens of a 24 x 24 grid and work on any other; partial cells
    at the edges are averaged over the tokens that exist.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``windows``, (rows, cols) in tokens per level, coarse to fine."""

        windows: Windows = PYRAMID

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_windows(config.windows)
        self.windows = config.windows

    @property
    def num_levels(self) -> int:
        """One level per window."""
        return len(self.windows)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grid that each window leaves."""
        return tuple(pooled_grid(grid, window) for window in self.windows)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Average each window of ``level``."""
        window = self.windows[level]
        return ScaledTokens(
            features=pool_windows(tokens.features, tokens.grid, window),
            assignment=over_views(window_assignment(tokens.grid, window), tokens.features),
            grid=pooled_grid(tokens.grid, window),
        )

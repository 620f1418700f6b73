"""Average pooling over windows: the published pyramid."""

from dataclasses import dataclass

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.assignment import over_views
from tokenflex.ops.pooling import (
    PYRAMID,
    TimedWindows,
    Windows,
    check_windows,
    in_time,
    pool_frames,
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
        """Settings.

        Attributes:
            windows: (rows, cols) in tokens per level, coarse to fine; or (time, rows, cols), which also merges so many
                neighbouring frames of videos. Images have no time.
        """

        windows: TimedWindows = PYRAMID

        def __post_init__(self) -> None:
            super().__post_init__()
            check_windows(self.windows, timed=True)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.windows: Windows = tuple(in_time(window)[1:] for window in config.windows)
        self.times = tuple(in_time(window)[0] for window in config.windows)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grid that each window leaves."""
        return tuple(pooled_grid(grid, window) for window in self.windows)

    def kept_views(self, views: int, level: int) -> int:
        """How many views are left of so many frames: one per window of frames, the last one partial."""
        return -(-views // self.times[level])

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Average the tokens in each window of ``level``; a window makes one token."""
        window = self.windows[level]
        features = pool_windows(tokens.features, tokens.grid, window)
        features, frames = pool_frames(features, self.times[level]) if tokens.video else (features, None)
        return ScaledTokens(
            features=features,
            assignment=over_views(window_assignment(tokens.grid, window), tokens.features),
            grid=pooled_grid(tokens.grid, window),
            frames=frames,
            averages=frames is None,
            nested=self._nested(level),
        )

    def _nested(self, level: int) -> bool:
        """Whether each window of the level is made of whole windows of the next finer one."""
        finer = self.windows[min(level + 1, self.num_levels - 1)]
        return all(side % inner == 0 for side, inner in zip(self.windows[level], finer, strict=True))

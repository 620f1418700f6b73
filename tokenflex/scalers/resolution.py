"""Smaller images: levels before the vision tower, which pooling after it can't save."""

import itertools
from dataclasses import dataclass

from tokenflex.contracts import ComponentConfig, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.assignment import over_views
from tokenflex.ops.pooling import Windows, check_windows, pool_windows, pooled_grid, window_assignment

WHOLE = (1, 1)


class ResolutionScaler(Scaler):
    """Every level is the image made smaller before it is encoded; a level may also pool the tokens of its image.

    The coarsest image is encoded first, and router, voter and policy read its tokens with the instruction; a finer
    one is encoded only if they choose it. So coarse levels save the vision tower's work besides the language model's.
    Hosts of dynamic resolution (the Qwen-VL kind) were trained on images of many sizes; on hosts of tiles a level is
    a smaller canvas (docs/resolution.md).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            shares: per level, how many of the image's pixels are encoded, coarse to fine; the last is 1. The default
                leaves about as many tokens as the published pyramid: 36, 64, 144, 256 and 576 of 24 x 24, as sides are
                whole tokens.
            pooling: per level the (rows, cols) of tokens that are averaged into one; empty: none are. The last is
                (1, 1), and share divided by the window's area never decreases.
            view_windows: windows over the tokens of the coarsest image, coarse to fine, that make what the router
                sees.
        """

        shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
        pooling: Windows = ()
        view_windows: Windows = ((2, 2), WHOLE)

        def __post_init__(self) -> None:
            super().__post_init__()
            _check_shares(self.shares)
            _check_ladder(self.shares, _windows(self))
            check_windows(self.view_windows)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.windows = _windows(config)
        self.view_windows = config.view_windows
        self._shares = config.shares

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the image's pixels, by level, as the settings name them."""
        return self._shares

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grid that each level's window leaves of its image's."""
        return tuple(pooled_grid(grid, window) for window in self.windows)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """Average each window of ``level`` over the tokens of its image."""
        return _pooled(tokens, self.windows[level])

    def viewed(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grids that ``view_windows`` leave of the coarsest image's."""
        return tuple(pooled_grid(self.image_grids(grid)[0], window) for window in self.view_windows)

    def view(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """The coarsest image's tokens, averaged over each of ``view_windows``."""
        return tuple(_pooled(tokens, window) for window in self.view_windows)


def _windows(config: ResolutionScaler.Config) -> Windows:
    """The windows that are averaged, one per level."""
    return config.pooling or (WHOLE,) * len(config.shares)


def _pooled(tokens: VisualTokens, window: tuple[int, int]) -> ScaledTokens:
    return ScaledTokens(
        features=pool_windows(tokens.features, tokens.grid, window),
        assignment=over_views(window_assignment(tokens.grid, window), tokens.features),
        grid=pooled_grid(tokens.grid, window),
        averages=True,
    )


def _check_shares(shares: tuple[float, ...]) -> None:
    """Refuse shares that aren't shares, coarse to fine, up to the whole image.

    Raises:
        ConfigError: with the offending share and the rule it breaks.
    """
    if not shares:
        raise ConfigError("shares is empty; give one per level, coarse to fine, e.g. (0.25, 1.0).")
    for share in shares:
        if not 0 < share <= 1:
            raise ConfigError(f"share {share} is none of an image's pixels; use numbers above 0, at most 1.")
    if list(shares) != sorted(shares):
        raise ConfigError(f"shares {shares} must go from coarse to fine, e.g. {tuple(sorted(shares))}.")
    if shares[-1] != 1:
        raise ConfigError(
            f"shares {shares} end with {shares[-1]}; the last level is the image as it is, so add 1.0 at the end."
        )


def _check_ladder(shares: tuple[float, ...], windows: Windows) -> None:
    """Refuse windows that don't make one ladder with the shares, ordered by cost.

    Raises:
        ConfigError: with the offending level and the rule it breaks.
    """
    if len(windows) != len(shares):
        raise ConfigError(f"pooling has {len(windows)} windows for {len(shares)} shares; give one per level, or none.")
    for window in windows:
        check_windows((window,))
    if windows[-1] != WHOLE:
        raise ConfigError(
            f"the last window of pooling is {windows[-1]}; the last level keeps all tokens, so let it be {WHOLE}."
        )
    kept = [share / (rows * cols) for share, (rows, cols) in zip(shares, windows, strict=True)]
    for level, (coarse, fine) in enumerate(itertools.pairwise(kept)):
        if fine < coarse:
            raise ConfigError(
                f"level {level + 1} (share {shares[level + 1]}, window {windows[level + 1]}) keeps {fine:.3g} of the "
                f"tokens, level {level} before it {coarse:.3g}; order the levels from fewest tokens to all."
            )

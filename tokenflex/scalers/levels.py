"""How much each level keeps, by shares or by windows: what the settings of most scalers have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenflex.contracts import ComponentConfig, Grid, Need, ScaledTokens, Scaler, VisualTokens
from tokenflex.ops.keeping import RATIOS, Ratios, check_ratios, everything, kept_layouts
from tokenflex.ops.pooling import PYRAMID, Windows, check_windows, pooled_grid


class RatioScaler(Scaler):
    """Each level keeps a share of a view's tokens, and the finest all of them; a method makes the levels between.

    `SelectionScaler` and `MergingScaler` extend it, for methods that say which tokens are kept or which become one. A
    method that makes features of its own extends this class and gives `fewer`.
    """

    reads: ClassVar[tuple[Need, ...]] = ()
    """What the method reads besides features and grid; a method whose settings decide overrides `needs` instead."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``ratios``, share of a view's tokens kept per level, coarse to fine; the last is 1."""

        ratios: Ratios = RATIOS

        def __post_init__(self) -> None:
            super().__post_init__()
            check_ratios(self.ratios)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ratios = config.ratios

    @property
    def needs(self) -> frozenset[Need]:
        """What the method `reads` besides features."""
        return frozenset(self.reads)

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """So many tokens, and the grid where that is all."""
        return kept_layouts(grid, self.ratios)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """The tokens at one level, see `fewer`."""
        return self._at(tokens, (self.granularities(tokens.grid)[level],))[0]

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """Every level, from one call of `fewer`."""
        return self._at(tokens, self.granularities(tokens.grid))

    @abstractmethod
    def fewer(self, image: VisualTokens, counts: Sequence[int]) -> Sequence[ScaledTokens]:
        """The image at levels that keep some of its tokens, one for each count.

        It is asked for several levels at once, so that they can share work, and never for all tokens. Autocast is off:
        what is computed is of the type its operands have.

        Args:
            image: features ``(*batch, views, tokens, dim)``, in the type of the model.
            counts: tokens kept per view, at least 1 and fewer than there are, never decreasing.

        Raises:
            InputError: the image comes without something that the method `needs`.
        """

    def _at(self, tokens: VisualTokens, counts: Sequence[int]) -> tuple[ScaledTokens, ...]:
        """One level for each count; those that keep all tokens are the image as it is."""
        some = [count for count in counts if count < tokens.grid.tokens]
        with torch.autocast(tokens.features.device.type, enabled=False):
            made = iter(self.fewer(tokens, some) if some else ())
        return tuple(next(made) if count < tokens.grid.tokens else everything(tokens) for count in counts)


class WindowScaler(Scaler):
    """Each level has one token for each window of the grid; a method gives `scale`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Attributes: ``windows``, (rows, cols) in tokens per level, coarse to fine; partial ones count too."""

        windows: Windows = PYRAMID

        def __post_init__(self) -> None:
            super().__post_init__()
            check_windows(self.windows)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.windows = config.windows

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The grid that each window leaves."""
        return tuple(pooled_grid(grid, window) for window in self.windows)

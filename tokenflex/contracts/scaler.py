"""``Scaler``: an image's tokens at several granularities."""

import math
from abc import abstractmethod
from typing import ClassVar

from tokenflex.contracts.component import Component
from tokenflex.contracts.tensors import Grid, Need, ScaledTokens, VisualTokens
from tokenflex.renamed import warn

SLACK = 1e-6
"""What a side may fall short of a whole token by, as the root of a share isn't exact."""


class Scaler(Component):
    """Offers the tokens of an image at ``num_levels`` levels, level 0 keeping fewest.

    Views (and stacked images) are scaled independently of one another. The last level is the finest.
    """

    differentiable: ClassVar[bool] = True

    @property
    def num_levels(self) -> int:
        """Number of levels; the same on every grid."""
        return len(self.layouts(Grid(1, 1)))

    @abstractmethod
    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Per level, the grid of the tokens kept per view, or their number when they form no grid."""

    def granularities(self, grid: Grid) -> tuple[int, ...]:
        """Tokens kept per view at each level, known before any feature exists; never decreasing.

        Args:
            grid: of the image as it is. Where there are `shares` these are the counts of `image_grids`.
        """
        made = enumerate(self.image_grids(grid))
        found = [self.layouts(of)[level] for level, of in made] if self.shares else self.layouts(grid)
        return tuple(kept if isinstance(kept, int) else kept.tokens for kept in found)

    @property
    def needs(self) -> frozenset[Need]:
        """What it reads of `VisualTokens` besides features and grid; nothing else is there.

        ``attention`` and ``keys`` are served by hosts whose vision tower can be read, ``instruction`` by all.
        """
        return frozenset()

    def kept_views(self, views: int, level: int) -> int:
        """Views left of a video of ``views`` frames; all, unless the scaler merges frames. Crops are never merged."""
        return views

    @property
    def shares(self) -> tuple[float, ...]:
        """Per level, how many of an image's pixels the vision tower sees: above 0, never decreasing, the last is 1.

        Empty, as usual: all of them at every level. Otherwise an image is made smaller before it is encoded; then
        ``layouts`` and ``scale`` are asked about one level of the image that was made for it, and the router sees
        `viewed` of the smallest. Served by hosts without a `HostAdapter.resize_refusal`.
        """
        return ()

    def image_grids(self, grid: Grid) -> tuple[Grid, ...]:
        """Per level, the grid of the image made for it: see `shrunk`.

        Parts are sized by it. A host may round otherwise, or cut smaller images into other tiles, which is what
        `HostAdapter.resized` knows.

        Args:
            grid: of the image as it is.
        """
        return tuple(shrunk(grid, share) for share in self.shares or (1.0,) * self.num_levels)

    def pictures(self, grid: Grid) -> tuple[Grid, ...]:
        """The name of `image_grids` in version 0.1."""
        warn("Scaler.pictures", "Scaler.image_grids")
        return self.image_grids(grid)

    def viewed(self, grid: Grid) -> tuple[Grid | int, ...]:
        """Per entry of `view`, the grid of its tokens per view, or their number when they form no grid.

        Args:
            grid: of the image as it is; where there are `shares` the entries are those of the smallest image.
        """
        return self.layouts(grid)

    def view(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """What the router sees: every level, unless images are made smaller.

        Args:
            tokens: of the image, or of the smallest image where there are `shares`.
        """
        return self.pyramid(tokens)

    @abstractmethod
    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """The tokens at one level.

        Args:
            tokens: features ``(*batch, views, tokens, dim)``.
            level: 0 .. ``num_levels - 1``.
        """

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """The tokens at every level, as `scale` gives them; override it where levels can share work."""
        return tuple(self.scale(tokens, level) for level in range(self.num_levels))


def shrunk(grid: Grid, share: float) -> Grid:
    """The tokens of an image that keeps ``share`` of its pixels: both sides rounded down, at least one token.

    Processors that are told the most pixels an image may have round down too.
    """
    scale = math.sqrt(share)
    return Grid(max(int(grid.rows * scale + SLACK), 1), max(int(grid.cols * scale + SLACK), 1))

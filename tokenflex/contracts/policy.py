"""``Policy``: picks a level from scores and known token counts."""

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts.component import Component


class Policy(Component):
    """The last word on the level, image by image."""

    @abstractmethod
    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """Choose.

        Args:
            scores: one row per image of the request, higher is better.
            tokens: visual tokens each level would cost, separators included.

        Returns:
            The chosen level per image.
        """

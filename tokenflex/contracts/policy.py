"""``Policy``: picks a level from scores and known token counts."""

from abc import abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts.component import Component


class Policy(Component):
    """The last word on the level, image by image."""

    @property
    def couples(self) -> bool:
        """Whether an image's level depends on the others it is given with; then these are those of one request."""
        return False

    @property
    def per_view(self) -> bool:
        """Whether ``tokens`` are those kept per view, without separators, instead of what the image costs."""
        return False

    @abstractmethod
    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """Choose.

        Args:
            scores: one row per image, of one request if `couples`, else of the batch; higher is better.
            tokens: visual tokens each level would cost, separators included (see `per_view`).

        Returns:
            The chosen level per image.
        """

    def reasons(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Sequence[str] | None:
        """Why each image gets its level, as a clause, for `Decision.reason`; None: by its scores.

        Args:
            scores, tokens: as for ``forward``.
        """
        return None

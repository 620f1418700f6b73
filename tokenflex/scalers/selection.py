"""The base of methods that keep some tokens and drop the rest."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.contracts import ScaledTokens, VisualTokens
from tokenflex.ops.keeping import ranked, selected
from tokenflex.scalers.levels import RatioScaler

HOOKS = ("scores", "order", "picks")


class SelectionScaler(RatioScaler):
    """Keeps some tokens of every view, in the order of the grid, and drops the rest. A method says which.

    It gives one of three, each for methods that can't give the one before:

    * `scores`: a number for each token; the tokens with the largest numbers are kept.
    * `order`: the tokens from the first to be kept on, where what comes next depends on what is kept already. A coarser
      level keeps some of what a finer one keeps.
    * `picks`: the tokens of each level, where one level's may differ from another's altogether.

    All are asked without gradients, as a choice has none; gradients reach the features of what is kept. All see the
    features in the type of the model: choices are made in float32, so begin with ``image.features.float()``. A view's
    choice must depend on nothing but that view.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a method that doesn't say which tokens are kept."""
        super().__init_subclass__(**kwargs)
        if all(getattr(cls, hook) is getattr(SelectionScaler, hook) for hook in HOOKS):
            raise TypeError(f"{cls.__name__} doesn't say which tokens it keeps; give one of {', '.join(HOOKS)}.")

    def scores(self, image: VisualTokens) -> Float[Tensor, "*batch views tokens"]:
        """What each token is worth; of equal ones the first in the order of the grid is kept.

        Raises:
            InputError: the image comes without something that the method `needs`.
        """
        raise TypeError(f"{type(self).__name__} has no scores; it gives an order or picks.")

    def order(self, image: VisualTokens, count: int) -> Int[Tensor, "*batch views count"]:
        """The places of the first ``count`` tokens to be kept, best first; by `scores`, unless it is overridden.

        The first few are the same whatever the count, so that one order serves all levels.

        Raises:
            InputError: the image comes without something that the method `needs`.
        """
        return ranked(self.scores(image), count)

    def picks(self, image: VisualTokens, counts: Sequence[int]) -> Sequence[Int[Tensor, "*batch views _"]]:
        """For each count the places of so many tokens, in any order, none twice; by `order`, unless it is overridden.

        Args:
            counts: as in `fewer`.

        Raises:
            InputError: the image comes without something that the method `needs`.
        """
        order = self.order(image, max(counts))
        return [order[..., :count] for count in counts]

    def fewer(self, image: VisualTokens, counts: Sequence[int]) -> Sequence[ScaledTokens]:
        """The picked tokens of each level; see `RatioScaler.fewer`."""
        with torch.no_grad():
            picked = self.picks(image, counts)
        return [selected(image, places) for places in picked]

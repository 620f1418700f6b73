"""The base of methods that make several tokens one."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import ScaledTokens, VisualTokens
from tokenflex.ops.keeping import merged
from tokenflex.scalers.levels import RatioScaler


class MergingScaler(RatioScaler):
    """Sorts the tokens of every view into groups and keeps the mean of each. A method says which go together.

    The method is asked without gradients; they reach the features of all that is averaged. Means are taken in float32.
    """

    @abstractmethod
    def assignments(self, image: VisualTokens, counts: Sequence[int]) -> Sequence[Int[Tensor, "*batch views tokens"]]:
        """For each count the group of every token: 0 to ``count - 1``, each at least once; -1 for tokens to be dropped.

        Groups are numbered in the order of the grid: by the first token of each, or by another that stands for it. A
        view's groups must depend on nothing but that view.

        Args:
            image: features in the type of the model; compare tokens in float32.
            counts: as in `fewer`.

        Raises:
            InputError: the image comes without something that the method `needs`.
        """

    def fewer(self, image: VisualTokens, counts: Sequence[int]) -> Sequence[ScaledTokens]:
        """The means of each level's groups; see `RatioScaler.fewer`."""
        with torch.no_grad():
            found = self.assignments(image, counts)
        return [merged(image, groups, count) for groups, count in zip(found, counts, strict=True)]

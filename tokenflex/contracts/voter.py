"""``Voter``: turns ballots into one score per level."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from tokenflex.contracts.component import Component
from tokenflex.contracts.tensors import Ballots


class Voter(Component):
    """Adds up ballots. Masked ballots are inert; the order of the views doesn't matter."""

    @abstractmethod
    def forward(self, ballots: Ballots) -> Float[Tensor, "*batch levels"]:
        """Unnormalised scores ``(*batch, levels)``, higher is better."""

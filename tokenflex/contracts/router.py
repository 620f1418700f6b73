"""``Router``: looks at image and instruction and lets voters vote."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from tokenflex.contracts.component import Component
from tokenflex.contracts.tensors import Ballots, Grid, Instruction, Need, ScaledTokens


class Router(Component):
    """Casts ballots over the levels of a pyramid."""

    compares_levels: ClassVar[bool] = False
    """Whether its votes are about the levels that it is shown, one each, so that it has to be shown all of them."""

    casts: ClassVar[bool] = False
    """Whether it takes features and embeddings in the host's type, should that be finer than its own parameters', and
    brings them to its own itself; else they come in its own type."""

    @property
    def needs(self) -> frozenset[Need]:
        """``attention``, if it reads `ScaledTokens.attention`; the instruction is always there."""
        return frozenset()

    @abstractmethod
    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """Layout of the voters for a pyramid whose levels are laid out as ``grids``.

        Kept tokens without a grid count as one row: ``Grid(1, kept)``.
        """

    @abstractmethod
    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Vote.

        Args:
            pyramid: the image at every level (or what else `Scaler.view` shows of it), coarse to fine; features
                ``(*batch, views, kept, dim)``.
            instruction: embeddings ``(*batch, prompt, dim)``; ``prompt`` may be 0.
        """

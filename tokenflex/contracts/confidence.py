"""``Confidence``: how sure the language model is of its answer."""

from abc import abstractmethod

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts.component import Component


class Confidence(Component):
    """Reads an answer as it is written, token by token, and gives one number per row: higher is surer.

    Rows are judged one by one: neither their order nor what else is in the batch matters. Nothing of the size of
    ``rows x steps x vocabulary`` is ever held.
    """

    @property
    @abstractmethod
    def first_only(self) -> bool:
        """Whether only the first new token is read, so that an unsure pass ends before the second."""

    @abstractmethod
    def of_tokens(
        self, scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """What is kept of one step.

        Args:
            scores: what the token is chosen from, float32 logits; ``-inf`` where a token is ruled out, never
                everywhere.
            chosen: the token that was chosen.
        """

    @abstractmethod
    def of_answer(
        self, values: Float[Tensor, "rows steps"], mask: Bool[Tensor, "rows steps"]
    ) -> Float[Tensor, " rows"]:
        """The confidence in whole answers.

        Args:
            values: of `of_tokens`, one per step; of the first step alone where `first_only`.
            mask: True up to the token that ends the answer; the first step always.
        """

"""What a turn of a conversation gives."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tokenflex.contracts import Decision


@dataclass(frozen=True)
class HeldMemory:
    """What a conversation holds between turns, in bytes.

    Attributes:
        cache: keys and values of the language model.
        features: the images' tokens as the vision tower gave them.
        dropped: whether the cache was given up after this turn, to stay within the limit, so that the next one reads
            everything again.
    """

    cache: int
    features: int
    dropped: bool = False

    @property
    def total(self) -> int:
        """Cache and features together."""
        return self.cache + self.features


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: of the answer, without special tokens.
        ids: ``(tokens,)``, of the answer, with the token that ends it.
        decisions: one per image of the conversation, oldest first; `Decision.reason` says why.
        read: tokens of the prompt that the language model read in this turn.
        reused: tokens of the prompt that were in the cache from turns before.
        memory: what is held now.
    """

    text: str
    ids: Int[Tensor, " tokens"]
    decisions: tuple[Decision, ...]
    read: int
    reused: int
    memory: HeldMemory

    @property
    def tokens(self) -> int:
        """Visual tokens of all images."""
        return sum(decision.tokens for decision in self.decisions)

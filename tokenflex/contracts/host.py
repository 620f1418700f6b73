"""``HostAdapter``: reads from and writes to an unmodified host model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokenflex.contracts.tensors import Grid, Instruction, ScaledTokens, VisualTokens

HostInputs = Mapping[str, Any]
"""A batch as the host's processor made it: ``input_ids``, ``attention_mask``, ``pixel_values``, ..."""

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Spliced:
    """A shortened batch for the unmodified host.

    Attributes:
        inputs: keyword arguments for the host's ``forward`` or ``generate``.
        tokens: visual tokens per image that the host will see, separators included.
        index: ``(rows, new_length)``, position of every new token in the caller's sequence; -1 for padding
            and for visual tokens (their places don't correspond one to one).
    """

    inputs: dict[str, Any]
    tokens: tuple[int, ...]
    index: Tensor


class HostAdapter(ABC):
    """Everything that is particular to one family of hosts. The host is called, never edited.

    Args:
        host: the model to serve, as loaded by its own class (a PEFT wrapper around it is fine).
    """

    model_types: tuple[str, ...] = ()

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    @classmethod
    @abstractmethod
    def refusal(cls, host: nn.Module) -> str | None:
        """None when this adapter serves ``host``, else the reason why not, as a sentence."""

    @property
    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """The constructor's settings besides the host, as JSON-ready data; saved with the parts."""

    @property
    @abstractmethod
    def model_type(self) -> str:
        """The host's ``model_type``; parts trained for one are refused by another."""

    @property
    def family(self) -> str:
        """What its architecture has in common with others; for tables."""
        return self.model_type

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the language model's embeddings."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The grid of one view; for hosts of dynamic resolution, the canonical one parts are sized for."""

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Names of inputs that belong to the pictures and may be something other than a tensor."""
        return ()

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that stand for images and videos; empty where they aren't known, and then not checked."""
        return ()

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that can be answers; None: all of the host's.

        Hosts whose vocabulary was extended by placeholders after training never predict those, so training losses
        leave their logits out.
        """
        return None

    @property
    def packing_refusal(self) -> str | None:
        """Why rows can't be packed into one (see `tokenflex.hosts.packed`), as a clause; None when they can."""
        return "its adapter doesn't say that they can"

    @property
    def position_inputs(self) -> tuple[str, ...]:
        """Names of inputs of a shortened batch that the host only computes positions from."""
        return ()

    def position_ids(self, inputs: HostInputs) -> Tensor | None:
        """``(axes, rows, length)``, where the tokens of a shortened batch sit; None where they are simply counted."""
        return None

    @property
    def attention_refusal(self) -> str | None:
        """Why `encode` can't give the tower's attention and keys, as a clause; None when it can."""
        return "its adapter doesn't read its vision tower"

    @abstractmethod
    def encode(self, inputs: HostInputs, attention: bool = False) -> tuple[VisualTokens, ...]:
        """Run the vision tower once and give every image's tokens, in batch order.

        Args:
            attention: also fill in `VisualTokens.attention` and `VisualTokens.keys`; never asked of adapters with an
                `attention_refusal`.

        Raises:
            InputError: placeholders in the text don't match the images.
        """

    @abstractmethod
    def instructions(self, inputs: HostInputs) -> tuple[Instruction, ...]:
        """One instruction per row of the batch: the request's words, never an answer."""

    @abstractmethod
    def grids(self, inputs: HostInputs) -> tuple[Grid, ...]:
        """The grid of every image's views, in batch order, before features exist.

        Raises:
            InputError: placeholders in the text don't match the images.
        """

    def rows(self, inputs: HostInputs) -> tuple[int, ...]:
        """The row of the batch that every image stands in, in batch order, before features exist.

        This form runs the vision tower to learn it, which can't be done where the host's parameters are sharded; an
        adapter that knows where its images stand gives their rows without.

        Raises:
            InputError: placeholders in the text don't match the images.
        """
        with torch.no_grad():
            return tuple(image.row for image in self.encode(inputs))

    def clips(self, inputs: HostInputs) -> tuple[int, ...]:
        """Frames of every image that is a clip whose frames may be merged, else 0; in batch order."""
        return (0,) * len(self.grids(inputs))

    @abstractmethod
    def count(
        self,
        inputs: HostInputs,
        kept: Sequence[Sequence[Grid | int]],
        frames: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Visual tokens each image would cost, before features exist.

        Args:
            kept: per image and level the grid (or number) of tokens kept per view.
            frames: per image None or, for a clip, the frames kept at each level; None: no frames are merged.

        Returns:
            ``(images, levels)`` integers on the CPU, separators included.
        """

    @abstractmethod
    def splice(
        self,
        inputs: HostInputs,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        padding_side: PaddingSide | None = None,
    ) -> Spliced:
        """The same batch with the chosen tokens in place of the full ones.

        Args:
            padding_side: where shortened rows are padded; None keeps the side the batch already has.
        """

    @abstractmethod
    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The host's parameters as ``vision_tower``, ``projector`` and ``language_model``; disjoint, complete."""


def no_words(dim: int, like: Tensor) -> Instruction:
    """An empty instruction on the device and in the type of ``like``."""
    embeddings: Float[Tensor, "words dim"] = like.new_zeros(0, dim)
    mask: Bool[Tensor, " words"] = torch.zeros(0, dtype=torch.bool, device=like.device)
    return Instruction(embeddings, mask)

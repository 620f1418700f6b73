"""``HostAdapter``: reads from and writes to an unmodified host model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenflex.contracts.tensors import Grid, Instruction, ScaledTokens, VisualTokens
from tokenflex.errors import UnsupportedHostError

HostInputs = Mapping[str, Any]
"""A batch as the host's processor made it: ``input_ids``, ``attention_mask``, ``pixel_values``, ..."""

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Span:
    """Where one image stands in the caller's sequence.

    Attributes:
        row: row of the batch.
        at: positions of its placeholders, ascending, on the CPU.
        leads: whether the prompt tokens before a run of it belong to that run (a frame's time), rather than those
            behind.
    """

    row: int
    at: Int[Tensor, " placeholders"]
    leads: bool = False


@dataclass(frozen=True)
class HostBatch:
    """A batch as it was read, once, before features exist: what is where. All other methods of an adapter take it.

    Attributes:
        inputs: as the caller gave them, on the host's device.
        cpu: those of the inputs that say what is where (ids, attention mask, labels, token types, sizes of images), on
            the CPU. They are copied together, so that reading a batch waits for the device once.
        spans: where every image stands, in batch order.
        grids: the grid of every image's views.
        frames: frames of every image that is a video whose frames may be merged, else 0; left out: none is.
        items: what else the adapter knows of every image; its own business.
        made: what the adapter has worked out of the batch since, by name, for further calls; its own business.
        origin: ``(rows, length)`` on the CPU, for a batch that `HostAdapter.resized` made: position of every token in
            the sequence it was made from; -1 for padding and placeholders. None for a batch as it was read.
    """

    inputs: HostInputs
    cpu: Mapping[str, Tensor]
    spans: tuple[Span, ...]
    grids: tuple[Grid, ...]
    frames: tuple[int, ...] = ()
    items: tuple[Any, ...] = ()
    made: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)
    origin: Int[Tensor, "rows length"] | None = None

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.grids):
            object.__setattr__(self, "frames", (0,) * len(self.grids))

    @property
    def rows(self) -> tuple[int, ...]:
        """The row of the batch that every image stands in."""
        return tuple(span.row for span in self.spans)

    @property
    def attended(self) -> Bool[Tensor, "rows length"]:
        """True for the tokens that aren't padding, on the CPU."""
        mask = self.cpu.get("attention_mask")
        return torch.ones_like(self.cpu["input_ids"], dtype=torch.bool) if mask is None else mask != 0


@dataclass(frozen=True)
class Spliced:
    """A shortened batch, or some of its rows, for the unmodified host.

    Attributes:
        inputs: keyword arguments for the host's ``forward`` or ``generate``.
        tokens: visual tokens per image (of these rows) that the host will see, separators included.
        index: ``(rows, new_length)`` on the CPU, position of every new token in the caller's sequence; -1 for padding
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
        """Names of inputs that belong to the images and may be something other than a tensor."""
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

    @property
    def ragged_refusal(self) -> str | None:
        """Why `splice` can't be asked for some rows of a batch alone, as a clause; None when it can."""
        return "its adapter doesn't say that rows can be spliced apart"

    @abstractmethod
    def read(self, inputs: HostInputs) -> HostBatch:
        """Find out what is where in a batch, before features exist: the only method that looks at the raw inputs.

        Raises:
            InputError: placeholders in the text don't match the images.
        """

    @abstractmethod
    def encode(self, batch: HostBatch, attention: bool = False) -> tuple[VisualTokens, ...]:
        """Run the vision tower once and give every image's tokens, in batch order.

        Args:
            attention: also fill in `VisualTokens.attention` and `VisualTokens.keys`; never asked of adapters with an
                `attention_refusal`.
        """

    @abstractmethod
    def instructions(self, batch: HostBatch) -> tuple[Instruction, ...]:
        """One instruction per row of the batch: the request's prompt tokens, never an answer."""

    @abstractmethod
    def count(
        self,
        batch: HostBatch,
        kept: Sequence[Sequence[Grid | int]],
        frames: Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Visual tokens each image would cost, before features exist.

        Args:
            kept: per image and level the grid (or number) of tokens kept per view.
            frames: per image None or, for a video, the frames kept at each level; None: no frames are merged.

        Returns:
            ``(images, levels)`` integers on the CPU, separators included.
        """

    @abstractmethod
    def splice(
        self,
        batch: HostBatch,
        images: Sequence[VisualTokens],
        scaled: Sequence[ScaledTokens],
        padding_side: PaddingSide | None = None,
        rows: Sequence[int] | None = None,
    ) -> Spliced:
        """The same batch with the chosen tokens in place of the full ones.

        Args:
            images, scaled: of the whole batch.
            padding_side: where shortened rows are padded; None keeps the side the batch already has.
            rows: the rows of the batch to splice, in this order, padded to the longest of them; None: all. Never
                asked of adapters with a `ragged_refusal`, which may leave the argument out.
        """

    @property
    def append_refusal(self) -> str | None:
        """Why the turns of a conversation can't be put behind one another, as a clause; None when they can."""
        return "its adapter doesn't say how turns are put behind one another"

    def appended(self, batches: Sequence[HostBatch]) -> HostBatch:
        """One row of several batches' tokens, each of one row without padding, with the images of all of them.

        Pixels are left out: `splice` is given images that are encoded already. Never asked of adapters with an
        `append_refusal`.

        Args:
            batches: as they were read, or as `resized` made them, in the order of the conversation.

        Raises:
            UnsupportedHostError: turns can't be put behind one another.
            InputError: a batch isn't one row, or holds an input that can't be put behind another.
        """
        raise UnsupportedHostError(f"{self.model_type!r} can't take turns one by one: {self.append_refusal}.")

    def written(
        self, batch: HostBatch, images: Sequence[VisualTokens], scaled: Sequence[ScaledTokens], chosen: Sequence[int]
    ) -> Mapping[str, Any]:
        """What `splice` puts into the host's inputs for some of the images: those behind what a cache holds.

        Never asked of adapters with an `append_refusal`.

        Args:
            images, scaled: of the whole batch.
            chosen: numbers of the images, at least one.

        Raises:
            UnsupportedHostError: turns can't be put behind one another.
        """
        raise UnsupportedHostError(f"{self.model_type!r} can't take turns one by one: {self.append_refusal}.")

    @property
    def resize_refusal(self) -> str | None:
        """Why images can't be made smaller before they are encoded, as a clause; None when they can."""
        return "its adapter doesn't make smaller images"

    def resized(self, batch: HostBatch, shares: Sequence[float]) -> HostBatch:
        """The batch as the processor makes it of smaller images: text, sizes and grids, and no pixels.

        Like `read`, it comes before features exist, so `count` and `splice` can be asked of what it gives. Never asked
        of adapters with a `resize_refusal`.

        Args:
            batch: as it was read.
            shares: per image, how many of its pixels are kept, above 0; 1: as it is. The host's own rounding decides
                on the size. Where all are 1 the batch itself is given back.

        Raises:
            UnsupportedHostError: images can't be made smaller.
        """
        raise UnsupportedHostError(f"{self.model_type!r} can't take smaller images: {self.resize_refusal}.")

    def encode_resized(
        self, batch: HostBatch, shares: Sequence[float], images: Sequence[int]
    ) -> tuple[VisualTokens, ...]:
        """Make some of the images smaller and run the vision tower once over them, in the order of ``images``.

        Pixels are resampled per image, with antialiasing. Never asked of adapters with a `resize_refusal`.

        Args:
            batch: as it was read, at full size.
            shares: per image of the batch.
            images: numbers of the images to encode, ascending.

        Raises:
            UnsupportedHostError: images can't be made smaller.
        """
        raise UnsupportedHostError(f"{self.model_type!r} can't take smaller images: {self.resize_refusal}.")

    def processor_kwargs(self, batch: HostBatch, image: int, tokens: int) -> Mapping[str, Any]:
        """Settings by which the host's processor makes an image of at most about so many tokens; empty without any.

        Args:
            batch: as it was read, at full size.
            image: its number in the batch.
            tokens: visual tokens that are wanted, separators included.
        """
        return {}

    @abstractmethod
    def parameter_groups(self) -> Mapping[str, tuple[nn.Parameter, ...]]:
        """The host's parameters as ``vision_tower``, ``projector`` and ``language_model``; disjoint, complete."""


def no_instruction(dim: int, like: Tensor) -> Instruction:
    """An empty instruction on the device and in the type of ``like``."""
    embeddings: Float[Tensor, "prompt dim"] = like.new_zeros(0, dim)
    mask: Bool[Tensor, " prompt"] = torch.zeros(0, dtype=torch.bool, device=like.device)
    return Instruction(embeddings, mask)

"""What parts read besides features, in the shape they work on it: attention, and the instruction's prompt tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenflex.contracts import Instruction, VisualTokens
from tokenflex.errors import InputError


def attention_of(
    attention: Float[Tensor, "*batch views tokens"] | None, who: str
) -> Float[Tensor, "*batch views tokens"]:
    """The vision tower's attention in float32, without gradients.

    Args:
        attention: of `VisualTokens` or `ScaledTokens`.
        who: the part that reads it, for the message.

    Raises:
        InputError: there is none.
    """
    if attention is None:
        raise InputError(
            f"{who} reads the vision tower's attention, and this image has none: VisualTokens.attention is None. Use a "
            "host whose vision tower can be read, or a part that needs features only."
        )
    return attention.detach().float()


def prompt_of(
    image: VisualTokens, who: str
) -> tuple[Float[Tensor, "*batch views prompt dim"], Bool[Tensor, "*batch views prompt"]]:
    """The words that the image was sent with, as `prompt_per_view` gives them.

    Args:
        who: the part that reads them, for the message.

    Raises:
        InputError: the image comes without an instruction.
    """
    if image.instruction is None:
        raise InputError(
            f"{who} reads the words that the image was sent with, and VisualTokens.instruction is None. Pass an "
            "Instruction, which may be empty, or use a part that needs features only."
        )
    return prompt_per_view(image.instruction, image.features)


def prompt_per_view(
    instruction: Instruction, features: Float[Tensor, "*batch views tokens dim"]
) -> tuple[Float[Tensor, "*batch views prompt dim"], Bool[Tensor, "*batch views prompt"]]:
    """(embeddings in float32, mask), repeated for every view; masked prompt tokens are zero rows."""
    leading = features.shape[:-2]
    mask = instruction.mask[..., None, :].expand(*leading, -1)
    embeddings = instruction.embeddings.float().masked_fill(~instruction.mask[..., None], 0.0)
    return embeddings[..., None, :, :].expand(*leading, -1, -1), mask


def prompt_count(mask: Bool[Tensor, "*batch prompt"]) -> Float[Tensor, " *batch"]:
    """Prompt tokens that count; 1 where there are none, so that it can be divided by."""
    return mask.sum(-1).to(torch.float32).clamp(min=1.0)

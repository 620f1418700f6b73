"""What methods read besides features: attention and words, in the shape they are worked on."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenflex.contracts import Instruction, VisualTokens
from tokenflex.errors import InputError


def attention_of(tokens: VisualTokens) -> Float[Tensor, "*batch views tokens"]:
    """The vision tower's attention, float32.

    Raises:
        InputError: the tokens come without it.
    """
    if tokens.attention is None:
        raise InputError(
            "this scaler needs VisualTokens.attention, and it is None. Use a host whose vision tower can be read, or a "
            "scaler that needs features only, e.g. divprune."
        )
    return tokens.attention.float()


def words_of(
    tokens: VisualTokens,
) -> tuple[Float[Tensor, "*batch views words dim"], Bool[Tensor, "*batch views words"]]:
    """The words the image was sent with, as `words_per_view` gives them.

    Raises:
        InputError: the tokens come without an instruction.
    """
    if tokens.instruction is None:
        raise InputError(
            "this scaler needs VisualTokens.instruction, and it is None. Pass the words the image was sent with (an "
            "Instruction may be empty), or use a scaler that needs features only, e.g. divprune."
        )
    return words_per_view(tokens.instruction, tokens.features)


def words_per_view(
    instruction: Instruction, features: Float[Tensor, "*batch views tokens dim"]
) -> tuple[Float[Tensor, "*batch views words dim"], Bool[Tensor, "*batch views words"]]:
    """(embeddings in float32, mask), repeated for every view; masked words are zero rows."""
    leading = features.shape[:-2]
    mask = instruction.mask[..., None, :].expand(*leading, -1)
    embeddings = instruction.embeddings.float().masked_fill(~instruction.mask[..., None], 0.0)
    return embeddings[..., None, :, :].expand(*leading, -1, -1), mask


def word_count(mask: Bool[Tensor, "*batch words"]) -> Float[Tensor, " *batch"]:
    """Words that count; 1 where there are none, so that it can be divided by."""
    return mask.sum(-1).to(torch.float32).clamp(min=1.0)

"""A hard choice of a level with a soft gradient: the ablation of AVG-LLaVA (section 4.3, "instruction tuning")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def straight_through(levels: Sequence[Tensor], scores: Float[Tensor, " levels"]) -> Float[Tensor, "..."]:
    """The features of the best-scoring level, with gradients to all scores.

    sum_g p_g x features_g, shorter levels padded with zeros, cut to the winner's length, where p is the one-hot choice
    going forward and the softmax going backward. As published, a losing level's score is paired with the features at
    the same index, which show other places of the image.

    Args:
        levels: one level's features each, ``(*batch, kept, dim)``, coarse to fine.

    Returns:
        ``(*batch, kept, dim)`` of the chosen level.
    """
    choice = int(scores.argmax())
    soft = scores.softmax(-1)
    hard = F.one_hot(scores.argmax(), len(levels)).to(soft) - soft.detach() + soft
    length = levels[choice].shape[-2]
    cut = [F.pad(level[..., :length, :], (0, 0, 0, length - min(length, level.shape[-2]))) for level in levels]
    return torch.stack([share * level for share, level in zip(hard, cut, strict=True)]).sum(0)

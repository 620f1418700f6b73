"""Which prompt tokens of an instruction have most to do with an image (AVG-LLaVA, section 3.2: the text filter)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EPS = 1e-8


def relevance(
    image: Float[Tensor, "*batch tokens dim"], prompt: Float[Tensor, "*batch prompt dim"]
) -> Float[Tensor, "*batch prompt"]:
    """Mean cosine similarity of each word with the image's tokens, in float32 whatever the type of either.

    The mean of cosines equals the cosine with the mean of the normalised tokens, so nothing of size
    tokens x prompt tokens x dim is made. A zero vector has similarity 0. Products are summed word by word, without a
    matrix product: its rounding depends on how many prompt tokens there are, and on settings of the device such as
    TF32.
    """
    with torch.autocast(image.device.type, enabled=False):
        mean = F.normalize(image.float(), dim=-1, eps=EPS).mean(-2)
        return (F.normalize(prompt.float(), dim=-1, eps=EPS) * mean[..., None, :]).sum(-1)


def most_relevant(
    prompt: Float[Tensor, "*batch prompt dim"],
    scores: Float[Tensor, "*batch prompt"],
    mask: Bool[Tensor, "*batch prompt"],
    k: int,
    *,
    spill: bool = False,
    in_text_order: bool = False,
) -> Float[Tensor, "*batch k dim"]:
    """The ``k`` best-scoring prompt tokens in descending order of score; ties keep the order of the text.

    Masked prompt tokens are not taken; where fewer than ``k`` are left, zero rows follow. With ``spill``, as in the
    published code, masked prompt tokens fill up what is left in the order of the text, and only then zero rows.

    Args:
        in_text_order: give the same prompt tokens in the order of the text: scores choose among them, and don't
            order them.
    """
    order = scores.masked_fill(~mask, float("-inf")).argsort(dim=-1, descending=True, stable=True)[..., :k]
    if in_text_order:
        place = order + order.new_tensor(prompt.shape[-2]) * ~mask.gather(-1, order)  # masked ones stay behind
        order = order.gather(-1, place.argsort(dim=-1, stable=True))
    rows = prompt.gather(-2, order[..., None].expand(*order.shape, prompt.shape[-1]))
    if not spill:
        rows = rows.masked_fill(~mask.gather(-1, order)[..., None], 0.0)
    return F.pad(rows, (0, 0, 0, k - rows.shape[-2]))

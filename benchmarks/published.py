"""The published procedure (arXiv 2410.02745, sections 3.2 and 3.3) written down plainly: the baseline.

Every level runs the vision tower and the projector again, and takes float32 logits of the whole vocabulary at every
position. Stage 3 keeps all levels' graphs and logits until one backward pass. Stage 4 runs the tower a sixth time for
the router, which goes through one image at a time, with the words repeated in every tile. The library's adapter places
tokens in the prompt; its losses, its router and its ways through the levels are not used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from tokenflex.contracts import Instruction, ScaledTokens
from tokenflex.model import FlexModel

IGNORE = -100
Batch = dict[str, Tensor]


def stage3(flex: FlexModel, batch: Batch) -> ModelOutput:
    """The mean over levels of the language-model loss, with all logits in the output."""
    losses: list[Tensor] = []
    kept: list[Tensor] = []
    for level in range(flex.compressor.num_levels):
        logits, labels = _level(flex, batch, level)
        rows = logits[:, :-1].contiguous().view(-1, logits.shape[-1])
        losses.append(F.cross_entropy(rows, labels[:, 1:].flatten(), ignore_index=IGNORE))
        kept.append(logits.flatten(0, 1))
    return ModelOutput(loss=sum(losses) / len(losses), logits=torch.cat(kept))


def stage4(flex: FlexModel, batch: Batch) -> ModelOutput:
    """The ranking loss of the router against the frozen model's own losses."""
    flex.host.eval()
    with torch.no_grad():
        columns = [_row_losses(*_level(flex, batch, level)) for level in range(flex.compressor.num_levels)]
        encoded = flex.encode(batch)
    feedback = torch.stack(columns, dim=-1)[[image.row for image in encoded.images]]
    scores: list[Tensor] = []
    for image, words in zip(encoded.images, encoded.instructions, strict=True):
        pyramid = [flex.compressor.scaler.scale(image, level) for level in range(flex.compressor.num_levels)]
        scores.append(router_scores(flex.compressor.router, flex.compressor.voter, pyramid, words))
    return ModelOutput(loss=_ranking(torch.stack(scores), feedback), feedback=feedback)


def router_scores(router: Any, voter: Any, pyramid: list[ScaledTokens], words: Instruction) -> Tensor:
    """The published router on one image, with the weights of the library's router and voter.

    Args:
        pyramid: features ``(views, kept, dim)`` per level, coarse to fine.
    """
    dtype = router.mlp[0].weight.dtype
    levels = [level.features.to(dtype) for level in pyramid]
    text = _filtered(levels[-1][0], words.embeddings[words.mask].to(dtype), router.text_tokens)
    views = len(levels[0])
    sequence = torch.cat([*levels, text.expand(views, -1, -1)], dim=1)
    votes = router.mlp(router.merger(sequence))
    tally = (votes * voter.weight[:, None]).sum(1).mean(0)
    return F.layer_norm(tally.float(), tally.shape, voter.norm.weight.float(), voter.norm.bias.float(), voter.norm.eps)


def _level(flex: FlexModel, batch: Batch, level: int) -> tuple[Tensor, Tensor]:
    """Float32 logits at all positions, and the labels, at one level."""
    encoded = flex.encode(batch)
    inputs = dict(flex.at_levels(batch, encoded, [level] * len(encoded.images), "right").inputs)
    labels = inputs.pop("labels")
    return flex.host(**inputs, use_cache=False).logits.float(), labels


def _row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row's answer."""
    moved, targets = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
    losses = F.cross_entropy(moved.view(-1, moved.shape[-1]), targets.view(-1), ignore_index=IGNORE, reduction="none")
    return losses.view(targets.shape).sum(-1) / (targets != IGNORE).sum(-1)


def _filtered(tokens: Tensor, words: Tensor, count: int) -> Tensor:
    """The ``count`` words nearest to the whole image, best first, zero rows where there are fewer.

    Args:
        tokens: ``(tokens, dim)`` of the first tile.
        words: ``(words, dim)``.
    """
    scores = F.cosine_similarity(tokens[:, None], words[None], dim=-1).mean(0)
    best = words[scores.argsort(descending=True)[:count]]
    return torch.cat([best, best.new_zeros(count - len(best), best.shape[-1])])


def _ranking(scores: Tensor, feedback: Tensor, margin: float = 1.0, cross: float = 0.1) -> Tensor:
    """Hinges between all pairs of levels, and cross-entropy towards the best."""
    ranked, order = feedback.sort(dim=-1)
    leads = scores.log_softmax(-1).gather(-1, order)
    total = cross * F.cross_entropy(scores, order[:, 0])
    for j in range(1, scores.shape[-1]):
        gaps = leads[:, j:] - leads[:, :-j] + margin * j * (ranked[:, j:] - ranked[:, :-j])
        total = total + gaps.clamp(min=0).mean()
    return total

"""How decided a choice among tokens is; tokens that are ruled out have a score of ``-inf`` and don't count."""

from jaxtyping import Float, Int
from torch import Tensor


def margin(scores: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """Probability of the likeliest token less that of the second; 1 where there is no second, else from 0 to 1."""
    best = scores.float().softmax(-1).topk(min(2, scores.shape[-1]), dim=-1).values
    return best[:, 0] - best[:, 1] if best.shape[-1] > 1 else best[:, 0]


def negative_entropy(scores: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """Minus the entropy of the distribution, in nats: 0 where one token has all of it, else below."""
    logp = scores.float().log_softmax(-1)
    return (logp.exp() * logp.clamp(min=-1e4)).sum(-1)  # 0 times -inf is no number


def log_probability(scores: Float[Tensor, "rows vocabulary"], chosen: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Of the chosen token, in nats."""
    return scores.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]

"""A share of tokens as a mix of the two levels next to it, and times of such mixes."""

from collections.abc import Mapping, Sequence


def mix(kept: float, shares: Sequence[float]) -> dict[int, float]:
    """Weights of the two levels next to a share of tokens, whose mean share it is; of one level at the ends.

    Args:
        shares: of the levels, coarse to fine, the last one 1.
    """
    if kept <= shares[0]:
        return {0: 1.0}
    upper = next(level for level, share in enumerate(shares) if share >= kept)
    low, high = shares[upper - 1], shares[upper]
    weight = (kept - low) / (high - low)
    return {upper - 1: 1.0 - weight, upper: weight}


def mixed(costs: Mapping[str, Sequence[float]], name: str, weights: Mapping[int, float]) -> list[float]:
    """What a mix of levels costs, round by round.

    Args:
        costs: of settings called ``NAME LEVEL``, round by round.
    """
    rounds = len(costs[f"{name} {next(iter(weights))}"])
    return [sum(weight * costs[f"{name} {level}"][r] for level, weight in weights.items()) for r in range(rounds)]

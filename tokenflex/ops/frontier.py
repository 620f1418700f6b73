"""What somebody who knew every score beforehand could reach with any number of tokens."""

import numpy as np


class Frontier:
    """The best mean score that choosing levels sample by sample can reach, as a function of mean tokens.

    Starts with every sample at its cheapest level and buys, one after another, the steps to finer levels that gain most
    score per token. Of each sample only steps on its concave hull are offered, so this is the linear relaxation of the
    choice (a multiple-choice knapsack): concave, and exact but for a part of one sample. It ends where every sample has
    its best score for the fewest tokens, which is the oracle.

    Args:
        score: ``(levels, samples)``, what each sample scores at each level.
        tokens: ``(levels, samples)``, what that costs.
    """

    def __init__(self, score: np.ndarray, tokens: np.ndarray) -> None:
        self.tokens = tokens.min(0).astype(float)
        self.score = np.where(tokens == self.tokens, score, -np.inf).max(0)
        owners, dearer, better = [], [], []
        now_tokens, now_score, places = self.tokens, self.score, np.arange(score.shape[1])
        for _ in range(len(score)):
            more_tokens, more_score = tokens - now_tokens, score - now_score
            worth = (more_tokens > 0) & (more_score > 0)
            slope = np.where(worth, more_score / np.where(worth, more_tokens, 1), -np.inf)
            best = slope.argmax(0)
            moves = worth[best, places]
            owners.append(places[moves])
            dearer.append(more_tokens[best, places][moves])
            better.append(more_score[best, places][moves])
            now_tokens = np.where(moves, tokens[best, places], now_tokens)
            now_score = np.where(moves, score[best, places], now_score)
        owner, dear, good = map(np.concatenate, (owners, dearer, better))
        order = np.argsort(-good / dear, kind="stable")
        self.owner, self.dearer, self.better = owner[order], dear[order], good[order]

    def curve(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corners (mean tokens, mean score), both ascending.

        Args:
            weights: ``(samples,)``, adding up to 1.
        """
        own = weights[self.owner]
        tokens = np.cumsum(np.concatenate([[weights @ self.tokens], own * self.dearer]))
        score = np.cumsum(np.concatenate([[weights @ self.score], own * self.better]))
        return tokens, score


def regret(curve: tuple[np.ndarray, np.ndarray], tokens: float, score: float) -> tuple[float, float]:
    """(score missed at these mean tokens, tokens spent too much for this mean score) of a way of choosing.

    Where the score is below that of the cheapest levels, the excess is counted from those.

    Args:
        curve: of a `Frontier`.
    """
    least, best = curve
    return float(np.interp(tokens, least, best)) - score, tokens - float(np.interp(score, best, least))


def oracle(score: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """``(samples,)``: the level with the fewest tokens among those that score a sample's best; the lower of equals.

    Args:
        score, tokens: ``(levels, samples)``.
    """
    return np.where(score == score.max(0), tokens, np.inf).argmin(0)

"""When routing pays: what the router costs, what a dropped visual token saves, and the tokens at which they meet."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from tokenflex.profiling.interval import ninety_five, resampled_medians
from tokenflex.profiling.timing import quantile

Verdict = Literal["gain", "no gain", "not settled"]


@dataclass(frozen=True)
class FittedLine:
    """``seconds = intercept + slope * tokens``, by least squares.

    Attributes:
        slope: seconds per visual token; 0 where all costs are the same.
        explained: share of the variance of the seconds that the line explains; 1 where there is none.
    """

    slope: float
    intercept: float
    explained: float


@dataclass(frozen=True)
class BreakEven:
    """The token count at which routing stops paying, for one batch size and answer length.

    Tokens are visual tokens per image, seconds those of the whole batch.

    Attributes:
        new_tokens: length of the answer.
        coarsest, finest: what forced levels cost.
        decision: median seconds of the decision.
        slope: seconds saved per token dropped, fitted through the medians of the forced levels.
        intercept, explained: see `FittedLine`.
        slope_low, slope_high: its 95 % interval, by drawing rounds again (see `tokenflex.profiling.interval`).
        vanilla: median seconds of the vanilla host.
    """

    new_tokens: int
    coarsest: float
    finest: float
    decision: float
    slope: float
    intercept: float
    explained: float
    slope_low: float
    slope_high: float
    vanilla: float

    @property
    def dropped(self) -> float | None:
        """Tokens that must be dropped to pay for the decision; None where dropping saves nothing."""
        return self.decision / self.slope if self.slope > 0 else None

    @property
    def kept(self) -> float | None:
        """Tokens below which routing gains on the finest level; None where it can't."""
        if self.dropped is None or self.dropped > self.finest - self.coarsest:
            return None
        return self.finest - self.dropped

    @property
    def kept_beside_vanilla(self) -> float | None:
        """Tokens below which routing gains on the vanilla host, splicing included; None where it can't.

        Above ``finest`` where even the finest level is cheaper than the host by more than the decision.
        """
        if self.slope <= 0:
            return None
        kept = (self.vanilla - self.decision - self.intercept) / self.slope
        return kept if kept >= self.coarsest else None

    @property
    def verdict(self) -> Verdict:
        """``no gain``: the medians show none; ``not settled``: they do, but the lower end of the interval doesn't."""
        if self.kept is None:
            return "no gain"
        settled = self.decision <= self.slope_low * (self.finest - self.coarsest) and self.slope_low > 0
        return "gain" if settled else "not settled"

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON-ready data, and what they mean in words."""
        derived = {"dropped": self.dropped, "kept": self.kept, "kept_beside_vanilla": self.kept_beside_vanilla}
        return {**asdict(self), **derived, "verdict": self.verdict, "in_words": self.in_words}

    @property
    def in_words(self) -> str:
        """What the numbers mean, as sentences."""
        text = f"The decision takes {1e3 * self.decision:.3g} ms and "
        interval = f"95 % interval {1e6 * self.slope_low:.0f} to {1e6 * self.slope_high:.0f}"
        if self.slope <= 0:
            text += f"dropping visual tokens saves no time ({1e6 * self.slope:.0f} µs each, {interval})"
            return f"No gain: routing costs more than it can save here. {text}."
        text += f"each visual token dropped saves {1e6 * self.slope:.3g} µs ({interval})"
        if self.kept is None:
            most = self.finest - self.coarsest
            return (
                f"No gain: routing costs more than it can save here. {text}, so {self.dropped:.0f} tokens would have "
                f"to be dropped and at most {most:.0f} can be."
            )
        opening = (
            f"drops more than {self.dropped:.0f} of {self.finest:.0f} visual tokens, that is when it keeps fewer than "
            f"{self.kept:.0f}. {text}."
        )
        if self.verdict == "not settled":
            return (
                f"Not settled: the runs scatter too much to say that routing pays. By the medians it does when it "
                f"{opening} Measure on a quieter machine, or with more runs."
            )
        return f"Routing pays when it {opening} {self._beside}"

    @property
    def _beside(self) -> str:
        if self.kept_beside_vanilla is None:
            return "Beside the vanilla host it gains at no level, since splicing costs time too."
        if self.kept_beside_vanilla > self.finest:
            return "Beside the vanilla host it gains at every level."
        return f"Beside the vanilla host: when it keeps fewer than {self.kept_beside_vanilla:.0f}."


@dataclass(frozen=True)
class Comparison:
    """A routed setting beside the vanilla host, run by run.

    Attributes:
        setting: the routed one.
        new_tokens: length of the answer.
        ratio: its end-to-end seconds over the vanilla host's in the same round, median.
        p5, p95: of these ratios.
        low, high: 95 % interval of the median, by drawing rounds again (see `tokenflex.profiling.interval`).
    """

    setting: str
    new_tokens: int
    ratio: float
    p5: float
    p95: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["slower", "faster", "not settled"]:
        """Beside the vanilla host; settled where the interval doesn't hold 1."""
        if self.low <= 1 <= self.high:
            return "not settled"
        return "slower" if self.ratio > 1 else "faster"

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON-ready data, and what they mean in words."""
        return {**asdict(self), "verdict": self.verdict, "in_words": self.in_words}

    @property
    def in_words(self) -> str:
        """What it means, as a sentence."""
        spread = (
            f"95 % interval {self.low:.2f} to {self.high:.2f}; 5 to 95 % of the rounds {self.p5:.2f} to {self.p95:.2f}"
        )
        if self.verdict == "not settled":
            return (
                f"{self.setting} takes {self.ratio:.2f} times the vanilla host's time ({spread}): whether it is slower "
                "the runs don't settle."
            )
        word = "SLOWER" if self.verdict == "slower" else "faster"
        return f"{self.setting} is {word} than the vanilla host: {self.ratio:.2f} times its time ({spread})."


def fit(tokens: Sequence[float], seconds: Sequence[float]) -> FittedLine:
    """The line through the points with the least squares in seconds.

    Args:
        tokens: one or more.
        seconds: as many.
    """
    middle, level = fmean(tokens), fmean(seconds)
    spread = sum((t - middle) ** 2 for t in tokens)
    together = sum((t - middle) * (s - level) for t, s in zip(tokens, seconds, strict=True))
    slope = together / spread if spread else 0.0
    total = sum((s - level) ** 2 for s in seconds)
    explained = slope * together / total if total else 1.0
    return FittedLine(slope, level - slope * middle, min(explained, 1.0))


def break_even(
    new_tokens: int,
    tokens: Sequence[float],
    seconds: Sequence[Sequence[float]],
    decision: float,
    vanilla: float,
) -> BreakEven:
    """From what was measured.

    Args:
        tokens: of every forced level, coarse to fine.
        seconds: of every forced level, one per round.
        decision, vanilla: medians.
    """
    line = fit(tokens, [quantile(level, 0.5) for level in seconds])
    apart = np.asarray(tokens, dtype=np.float64) - fmean(tokens)
    slopes = apart @ resampled_medians(seconds) / (apart @ apart or 1.0)
    low, high = ninety_five(slopes)
    return BreakEven(
        new_tokens=new_tokens,
        coarsest=min(tokens),
        finest=max(tokens),
        decision=decision,
        slope=line.slope,
        intercept=line.intercept,
        explained=line.explained,
        slope_low=low,
        slope_high=high,
        vanilla=vanilla,
    )


def compare_times(setting: str, new_tokens: int, seconds: Sequence[float], vanilla: Sequence[float]) -> Comparison:
    """A routed setting beside the vanilla host.

    Args:
        seconds, vanilla: one per round.
    """
    ratios = [ours / theirs for ours, theirs in zip(seconds, vanilla, strict=True)]
    middle, p5, p95 = (quantile(ratios, share) for share in (0.5, 0.05, 0.95))
    return Comparison(setting, new_tokens, middle, p5, p95, *ninety_five(resampled_medians([ratios])[0]))

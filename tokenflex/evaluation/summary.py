"""From answers to numbers: means with intervals, the oracle, shuffled choices, regret."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tokenflex.evaluation.records import Evaluation, Record
from tokenflex.evaluation.settings import group_of
from tokenflex.ops.frontier import Frontier, oracle, regret

INTERVAL = (0.025, 0.975)
METHOD = "BCa; shares of 0 and 1: Wilson"
DIGITS = 12
"""After the point, to which draws are rounded, so that equal means of different draws are equal."""
BATCH = 256
"""Draws that are held at a time."""
CORNERS = 60
"""Points of the frontier that are kept for plots."""
CHOOSING = ("router", "budget", "escalate", "random")
"""Groups of settings that choose among the levels of the model's own scaler."""
Summary = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One setting, sample by sample.

    Attributes:
        score, tokens, of: ``(samples,)``.
        levels: chosen for each image of each sample; None where nothing was chosen.
        passes: ``(samples,)``, of the language model; None where there is one.
        wasted: ``(samples,)``, tokens of all passes but the last.
    """

    score: np.ndarray
    tokens: np.ndarray
    of: np.ndarray
    levels: Sequence[Sequence[int]] | None = None
    passes: np.ndarray | None = None
    wasted: np.ndarray | None = None


def summarise(evaluation: Evaluation, *, resamples: int = 2000, seed: int = 0) -> Summary:
    """What ``summary.json`` holds; see ``docs/evaluate.md`` for every entry.

    Args:
        resamples: of the bootstrap; the same samples are drawn for all settings.

    Raises:
        DataError: answers are missing.
    """
    evaluation.require_complete()
    kinds = [shown.question.kind for shown in evaluation.samples]
    columns = {name: _column(records) for name, records in evaluation.records.items()}
    manifest = evaluation.manifest
    table = Table(columns, manifest["levels"], kinds, resamples, seed)
    return {
        "model": manifest["model"],
        "host": manifest["fingerprint"]["host"]["model_type"],
        "data": manifest["data"],
        "metric": manifest["fingerprint"]["metric"].partition(" ")[0],
        "max_new_tokens": manifest["fingerprint"]["max_new_tokens"],
        "levels": manifest["levels"],
        **table.summary(),
    }


class Table:
    """All settings of an evaluation side by side.

    Args:
        columns: setting -> its results, all of the same samples.
        levels: of the model's own scaler; oracle, regret and shuffled choices need ``level:0`` to the last.
        kinds: of every sample; empty for none.
    """

    def __init__(
        self, columns: Mapping[str, Column], levels: int, kinds: Sequence[str], resamples: int, seed: int
    ) -> None:
        self.columns, self.kinds = columns, np.array(kinds)
        self.resamples, self.seed = resamples, seed
        names = [f"level:{level}" for level in range(levels)]
        self.finest = columns.get(names[-1])
        self.fixed = [columns[name] for name in names] if set(names) <= set(columns) else []
        self.choosing = {name: column for name, column in columns.items() if group_of(name) in CHOOSING}
        self.derived: dict[str, Column] = {}
        self.frontier: Frontier | None = None
        if self.fixed:
            self._derive(np.stack([c.score for c in self.fixed]), np.stack([c.tokens for c in self.fixed]))

    def _derive(self, score: np.ndarray, tokens: np.ndarray) -> None:
        self.frontier = Frontier(score, tokens)
        best, places, of = oracle(score, tokens), np.arange(score.shape[1]), self.fixed[-1].of
        pictured = of > 0
        chosen = [(int(level),) if there else () for level, there in zip(best, pictured, strict=True)]
        self.derived["oracle"] = Column(score[best, places], tokens[best, places], of, chosen)
        for name, column in self.choosing.items():
            shares = _shares(column.levels or (), len(score))
            if group_of(name) != "random" and shares is not None:
                self.derived[f"shuffled {name}"] = Column(shares @ score, shares @ tokens, of)

    def summary(self) -> Summary:
        """All of it as JSON-ready data."""
        everything = {**self.columns, **self.derived}
        middle = self._statistic(np.full(len(self.kinds), 1 / len(self.kinds)))
        low, high = self._intervals()
        low, high = np.minimum(low, middle), np.maximum(high, middle)
        entries: dict[str, Summary] = {name: {} for name in everything}
        for i, (name, entry) in enumerate(self._labels()):
            entries[name][entry] = _number(middle[i])
            entries[name][f"{entry}_ci95"] = [_number(low[i]), _number(high[i])]
        found = {name: self._entry(name, column, entries[name]) for name, column in everything.items()}
        counts = Counter(self.kinds.tolist())
        return {
            "samples": len(self.kinds),
            "kinds": {kind: count for kind, count in counts.items() if kind},
            "bootstrap": {"resamples": self.resamples, "seed": self.seed, "interval": 0.95, "method": METHOD},
            "settings": {name: found[name] for name in self.columns},
            "oracle": found.get("oracle"),
            "shuffled": {name: found[f"shuffled {name}"] for name in self.columns if f"shuffled {name}" in found},
            "frontier": self._corners(),
        }

    def _entry(self, name: str, column: Column, numbers: Summary) -> Summary:
        of = column.of.sum()
        entry: Summary = {
            "group": group_of(name) if name in self.columns else name.partition(" ")[0],
            **numbers,
            "share": _number(column.tokens.sum() / of) if of else None,
        }
        by_kind = {kind: self.kinds == kind for kind in dict.fromkeys(self.kinds.tolist()) if kind}
        entry["by_kind"] = {
            kind: {
                "samples": int(at.sum()),
                "score": _number(column.score[at].mean()),
                "tokens": _number(column.tokens[at].mean()),
            }
            for kind, at in by_kind.items()
        }
        if column.passes is not None and column.wasted is not None:
            entry |= {"passes": _number(column.passes.mean()), "wasted": _number(column.wasted.mean())}
        if column.levels is not None and (name in self.choosing or name == "oracle"):
            counts = Counter(level for levels in column.levels for level in levels)
            entry["chosen"] = [counts[level] for level in range(max(len(self.fixed), max(counts, default=0) + 1))]
        return entry

    def _labels(self) -> list[tuple[str, str]]:
        """What the numbers of `_statistic` are: (setting, entry)."""
        everything = [*self.columns, *self.derived]
        names = [(name, entry) for entry in ("score", "tokens") for name in everything]
        names += [(name, "minus_finest") for name in everything if self.finest is not None]
        for name in self._regretful():
            names += [(name, "regret"), (name, "regret_tokens")]
        return names

    def _regretful(self) -> list[str]:
        if self.frontier is None:
            return []
        return [*self.choosing, *(name for name in self.derived if name != "oracle")]

    def _statistic(self, weights: np.ndarray) -> np.ndarray:
        """Every number that gets an interval, of samples that count as much as their weight."""
        everything = {**self.columns, **self.derived}
        score = {name: float(column.score @ weights) for name, column in everything.items()}
        tokens = {name: float(column.tokens @ weights) for name, column in everything.items()}
        found = [*score.values(), *tokens.values()]
        if self.finest is not None:
            finest = float(self.finest.score @ weights)
            found += [value - finest for value in score.values()]
        if self.frontier is not None:
            curve = self.frontier.curve(weights)
            found += [one for name in self._regretful() for one in regret(curve, tokens[name], score[name])]
        return np.array(found)

    def _intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """``(numbers,)`` twice: the lower and the upper end of each number's interval.

        The bootstrap's, except where it knows nothing: shares (scores of 0 and 1 only) get Wilson's, and a difference
        that no sample showed may still be as large as a share that no sample showed.
        """
        low, high = interval(self._statistic, len(self.kinds), self.resamples, self.seed)
        everything = {**self.columns, **self.derived}
        for i, (name, entry) in enumerate(self._labels()):
            score = everything[name].score
            if entry == "score" and bool(np.isin(score, (0.0, 1.0)).all()):
                low[i], high[i] = wilson(score)
            elif entry == "minus_finest" and self._never_differs(everything[name]):
                unseen = wilson(np.zeros(len(score)))[1]
                low[i], high[i] = -unseen, unseen
        return low, high

    def _never_differs(self, column: Column) -> bool:
        """Whether a setting other than the finest level scored as that does on every sample."""
        finest = self.finest
        return finest is not None and column is not finest and bool((column.score == finest.score).all())

    def _corners(self) -> list[list[float]]:
        """The frontier's corners, thinned out: pairs of visual tokens and score."""
        if self.frontier is None:
            return []
        tokens, score = self.frontier.curve(np.full(len(self.kinds), 1 / len(self.kinds)))
        at = np.unique(np.linspace(0, len(tokens) - 1, CORNERS).round().astype(int))
        return [[_number(t), _number(s)] for t, s in zip(tokens[at], score[at], strict=True)]


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], samples: int, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """``(numbers,)`` twice: the bootstrap's interval of a statistic, bias-corrected and accelerated (Efron 1987).

    Where that isn't defined (a number that is the same in all draws, or without one sample) it is the plain percentile
    interval.

    Args:
        statistic: from weights ``(samples,)`` that add up to 1. All its numbers see the same draws, so differences
            between them are paired.
    """

    def of_draws(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = np.moveaxis(drawn, axis, -1)
        weights = [np.bincount(row, minlength=samples) / len(row) for row in rows.reshape(-1, rows.shape[-1])]
        found = np.stack([statistic(one) for one in weights], axis=-1).reshape(-1, *rows.shape[:-1])
        return np.round(found, DIGITS)

    if samples == 1:
        only = statistic(np.ones(1))
        return only, only.copy()
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(samples),), of_draws, n_resamples=resamples, batch=BATCH, vectorized=True, method="BCa",
            confidence_level=INTERVAL[1] - INTERVAL[0], rng=np.random.default_rng(seed),
        )  # fmt: skip
    plain = np.quantile(found.bootstrap_distribution, INTERVAL, axis=-1)
    ends = (found.confidence_interval.low, found.confidence_interval.high)
    known = np.isfinite(ends[0]) & np.isfinite(ends[1])
    low, high = (np.where(known, end, other) for end, other in zip(ends, plain, strict=True))
    return low, high


def wilson(score: np.ndarray) -> tuple[float, float]:
    """Wilson's interval (1927) of the share of ones.

    Args:
        score: ``(samples,)``, zeros and ones.
    """
    found = stats.binomtest(int(score.sum()), len(score)).proportion_ci(INTERVAL[1] - INTERVAL[0], method="wilson")
    return float(found.low), float(found.high)


def _column(records: Mapping[int, Record]) -> Column:
    rows = [records[place] for place in sorted(records)]
    score, tokens, of = (np.array([getattr(row, name) for row in rows], float) for name in ("score", "tokens", "of"))
    passes, wasted = (np.array([getattr(row, name) or 0 for row in rows], float) for name in ("passes", "wasted"))
    more = {"passes": passes, "wasted": wasted} if bool((passes > 1).any()) else {}
    return Column(score, tokens, of, [row.levels for row in rows], **more)


def _shares(levels: Sequence[Sequence[int]], count: int) -> np.ndarray | None:
    """How often each level was chosen; None where a sample's images got several: fixed levels don't tell of those."""
    chosen = [set(one) for one in levels if one]
    if not chosen or any(len(one) > 1 for one in chosen):
        return None
    counts = Counter(level for one in chosen for level in one)
    return np.array([counts[level] for level in range(count)]) / len(chosen)


def _number(value: Any) -> float:
    return round(float(value), 6) + 0.0

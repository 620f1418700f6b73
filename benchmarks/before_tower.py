"""What levels before the vision tower save beside levels after it, at the same numbers of tokens.

Part of ``python -m benchmarks.paper_speed --tables before-tower``. Two geometries: Qwen2.5-VL (one image of any size
through a tower with window attention, one token of four patches) and LLaVA-NeXT (tiles of one size, the view of the
whole image among them). The plain host, levels that are pooled after the tower and levels that are smaller images
take turns on one request; router and voter run in full, and their choice is then replaced by a given level.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

import tokenflex
from benchmarks import measure, qwen
from benchmarks.measure import Flops
from benchmarks.mixing import mix, mixed
from tokenflex.model import FlexModel
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.resolution import ResolutionScaler

SHARES = (1 / 16, 1 / 4, 1.0)
"""Of Qwen2.5-VL's pixels, or of the tokens that windows keep: exactly as many tokens in both."""
WINDOWS = ((4, 4), (2, 2), (1, 1))
CANVASES = (1 / 16, 1 / 2, 1.0)
"""Of LLaVA-NeXT's tiles: the view of the whole image alone, half of the tiles beside it, all."""
WAYS = ("after forced", "after routed", "before forced", "before routed")
PROTOCOL = """\
Levels before and after the tower. One request at a time (batch 1), {answers} new tokens, greedy, the end token never
written; random weights, {dtype}. `after` pools what the tower made of the whole image, `before` makes the image
smaller and encodes that: the coarsest one first, for router and voter, and the chosen one unless it is the same. Both
keep the same number of tokens; where no level after the tower has it, the two next to it are mixed to it. `forced` runs
no router; it is the best that any router could reach after the tower. All settings take turns in every round, in an
order that turns round, after one untimed round; a round's gain is one time by another; figures are medians over {n}
rounds, spreads their least and greatest. The FLOP limit is the same ratio of the FLOPs that torch counted in these very
calls: what the gain would be if nothing but matrix products and attention took time. The columns of the four ways are
speed-ups over the plain host; the gain is that of routed levels before the tower, over routed and over forced ones
after it.\
"""


@dataclass(frozen=True)
class Geometry:
    """One host, and what is measured on it.

    Attributes:
        told: the model, in words.
        models: ``after`` and ``before``.
        inputs: one request.
    """

    name: str
    told: str
    models: Mapping[str, FlexModel]
    inputs: Mapping[str, Any]

    @property
    def counts(self) -> dict[str, list[int]]:
        """Visual tokens at the levels, before and after the tower."""
        with torch.no_grad():
            return {name: flex.encode(self.inputs).counts[0].tolist() for name, flex in self.models.items()}


@dataclass(frozen=True)
class Row:
    """One number of tokens.

    Attributes:
        speedups: over the plain host, by way; medians.
        gain, gain_spread, gain_limit: routed levels before the tower over routed ones after it; the limit in FLOPs.
        strict, strict_spread, strict_limit: the same over forced ones after it.
    """

    geometry: str
    tokens: int
    of: int
    speedups: Mapping[str, float]
    gain: float
    gain_spread: tuple[float, float]
    gain_limit: float
    strict: float
    strict_spread: tuple[float, float]
    strict_limit: float


def of_qwen(size: qwen.QwenSize, seed: int) -> Geometry:
    """Qwen2.5-VL's."""
    host, inputs = qwen.host(size, seed), qwen.request(size, seed)
    scalers = {"after": AveragePoolScaler.Config(windows=WINDOWS), "before": ResolutionScaler.Config(shares=SHARES)}
    told = f"one image of {size.image} x {size.image} pixels, {size.words} text tokens"
    return _geometry("Qwen2.5-VL", told, host, scalers, inputs, size.dtype)


def of_llava_next(host: Any, inputs: Mapping[str, Any], told: str, dtype: torch.dtype) -> Geometry:
    """LLaVA-NeXT's.

    Args:
        told: image and text, in words.
    """
    scalers = {"after": AveragePoolScaler.Config(), "before": ResolutionScaler.Config(shares=CANVASES)}
    return _geometry("LLaVA-NeXT", told, host, scalers, inputs, dtype)


def _geometry(
    name: str, told: str, host: Any, scalers: Mapping[str, Any], inputs: Mapping[str, Any], dtype: torch.dtype
) -> Geometry:
    models = {way: tokenflex.wrap(host, scaler=scaler, dtype=dtype).eval() for way, scaler in scalers.items()}
    groups = models["before"].adapter.parameter_groups()
    sizes = ", ".join(
        f"{n.replace('_', ' ')} {sum(p.numel() for p in group) / 1e6:.1f} M" for n, group in groups.items()
    )
    return Geometry(name, f"{sizes}; {told}", models, inputs)


def runs(geometry: Geometry, answers: int) -> dict[str, Callable[[], Any]]:
    """Every setting as a call that answers one request."""
    asked = {**geometry.inputs, "max_new_tokens": answers, "min_new_tokens": answers, "do_sample": False}
    found: dict[str, Callable[[], Any]] = {"vanilla": partial(geometry.models["after"].host.generate, **asked)}
    for name, flex in geometry.models.items():
        for level in range(flex.compressor.num_levels):
            found[f"{name} forced {level}"] = partial(flex.generate, **asked, level=level)
            found[f"{name} routed {level}"] = partial(flex.generate, **asked, budget=ConstantPolicy.Config(level=level))
    return found


def rows(
    name: str,
    counts: Mapping[str, Sequence[int]],
    seconds: Mapping[str, Sequence[float]],
    flops: Mapping[str, Sequence[float]],
) -> list[Row]:
    """One per level before the tower.

    Args:
        counts: visual tokens at the levels, ``before`` and ``after``.
        seconds, flops: of every setting, round by round; FLOPs in one round.
    """
    found: list[Row] = []
    for level, tokens in enumerate(counts["before"]):
        after = mix(tokens / counts["before"][-1], [count / counts["after"][-1] for count in counts["after"]])
        weights = {way: {level: 1.0} if way.startswith("before") else after for way in WAYS}
        times, work = ({way: mixed(of, way, weights[way]) for way in WAYS} for of in (seconds, flops))
        gains = {way: _ratios(times[way], times["before routed"]) for way in WAYS}
        limits = {way: _ratios(work[way], work["before routed"])[0] for way in WAYS}
        found.append(
            Row(
                name,
                tokens,
                counts["before"][-1],
                {way: statistics.median(_ratios(seconds["vanilla"], times[way])) for way in WAYS},
                *_summed_up(gains["after routed"]),
                limits["after routed"],
                *_summed_up(gains["after forced"]),
                limits["after forced"],
            )
        )
    return found


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def _summed_up(ratios: Sequence[float]) -> tuple[float, tuple[float, float]]:
    return statistics.median(ratios), (min(ratios), max(ratios))


def measured(geometry: Geometry, answers: int, rounds: int, device: str) -> dict[str, Any]:
    """Rows, tokens, times and FLOPs of one geometry."""
    calls, counts = runs(geometry, answers), geometry.counts
    flops: dict[str, list[float]] = {}
    for name, call in calls.items():
        counter = Flops()
        counter(call)
        flops[name] = [float(counter.counts[0])]
    measure.alternated(calls, dict.fromkeys(calls, 1), device)
    seconds = measure.alternated(calls, dict.fromkeys(calls, rounds), device)
    return {
        "geometry": geometry.name,
        "model": geometry.told,
        "tokens": counts,
        "rows": [asdict(row) for row in rows(geometry.name, counts, seconds, flops)],
        "flops": {name: count for name, (count,) in flops.items()},
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows of all geometries as Markdown."""
    lines = [
        "| geometry | tokens | after, forced | after, routed | before, forced | before, routed | gain over routed "
        "| spread | FLOP limit | gain over forced | spread | FLOP limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for one in found for row in one["rows"]):
        speedups = " | ".join(f"{row['speedups'][way]:.2f}x" for way in WAYS)
        gains = " | ".join(
            f"{row[kind]:.2f}x | {row[f'{kind}_spread'][0]:.2f}-{row[f'{kind}_spread'][1]:.2f} | "
            f"{row[f'{kind}_limit']:.2f}x"
            for kind in ("gain", "strict")
        )
        share = 100 * row["tokens"] / row["of"]
        lines.append(f"| {row['geometry']} | {row['tokens']} ({share:.1f} %) | {speedups} | {gains} |")
    return "\n".join(lines) + "\n"


def figure(size: qwen.QwenSize, answers: int, words: int = 32) -> str:
    """What one image costs at every level, by arithmetic, as Markdown.

    Args:
        words: of the instruction, as many as the router reads at most.
    """
    made = qwen.Arithmetic(size, answers)
    whole = made.after(len(SHARES) - 1, SHARES, None).total
    lines = [
        "| level | tokens | tower | decision | language model | sum | of the plain host |",
        "|---|---|---|---|---|---|---|",
        _cost_row("plain host", made.visual(), made.after(len(SHARES) - 1, SHARES, None), whole),
    ]
    for level, share in enumerate(SHARES):
        for name, way in (("after", made.after), ("before", made.before)):
            lines.append(_cost_row(f"{name} {level}", made.visual(share), way(level, SHARES, words), whole))
    return "\n".join(lines) + "\n"


def _cost_row(name: str, tokens: int, work: qwen.Work, whole: int) -> str:
    cells = " | ".join(f"{part / 1e9:,.1f}" for part in (work.tower, work.decision, work.language, work.total))
    return f"| {name} | {tokens} | {cells} | {100 * work.total / whole:.1f} % |"

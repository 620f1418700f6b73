"""Numbers at their limits, and in other types: no NaN unless an error says so, and no choice that rounding turns over.

A choice may differ between types only where it was a close call: where `Decision.margin` is below ``MARGIN``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import torch
from torch import Tensor

import tokenflex
from tests.torture.outcome import Counts, Outcome
from tokenflex import catalog
from tokenflex.compressor import Compressor, build
from tokenflex.contracts import Decision, Grid, Instruction, ScaledTokens, VisualTokens
from tokenflex.errors import TokenFlexError
from tokenflex.ops.relevance import relevance

AREA = "Numerics"
PYRAMIDS = 10_000
MARGIN = 0.1
"""In units of the published voter's scores, whose standard deviation over the levels is 1: docs/parity.md."""
DIM, GRID, WORDS, STACK = 32, Grid(6, 6), 10, 500
TYPES = (torch.float32, torch.bfloat16, torch.float16)
GRIDS = (Grid(1, 1), Grid(1, 7), Grid(5, 3), Grid(100, 100))
PARTS = {
    "scaler": catalog.SCALERS,
    "router": catalog.ROUTERS,
    "voter": catalog.VOTERS,
    "policy": catalog.POLICIES,
    "confidence": catalog.CONFIDENCES,
}
FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": lambda x: x,
    "zero": lambda x: x * 0,
    "zero rows": lambda x: x * (torch.arange(x.shape[-2]) % 2)[:, None],
    "equal": lambda x: torch.ones_like(x),
    "tiny": lambda x: x * 1e-7,
    "at the end of half precision": lambda x: x.sign() * 6e4,
    "one token that large": lambda x: torch.cat([x[..., :1, :] * 0 + 6.5e4, x[..., 1:, :]], dim=-2),
}


@dataclass
class Flips:
    """What changed between two types, over many pyramids.

    Attributes:
        times: how many.
        swaps: the words come in another order.
        flips: another level is chosen.
        above: of these, where the margin is `MARGIN` or more.
        jumps: of these, where the words' order is the same.
        margin: the largest at which another level was chosen, words in the same order.
        gap: the largest difference of a score, words in the same order.
        jump: the same, in another order.
    """

    times: int = 0
    swaps: int = 0
    flips: int = 0
    above: int = 0
    jumps: int = 0
    margin: float = 0.0
    gap: float = 0.0
    jump: float = 0.0

    def add(self, one: Tensor, other: Tensor, swapped: Tensor) -> None:
        """Count a stack.

        Args:
            one, other: ``(pyramids, levels)``, scores in the finer type and in the other one.
            swapped: ``(pyramids,)``, where the order of the words differs.
        """
        chosen = one.argmax(-1)
        margins = [Decision(int(i), row, 1, 1).margin for i, row in zip(chosen, one, strict=True)]
        margin = torch.tensor([float("nan") if each is None else each for each in margins])
        flipped, gap = chosen != other.argmax(-1), (one - other).abs().amax(-1)
        self.times += len(one)
        self.swaps += int(swapped.sum())
        self.flips += int(flipped.sum())
        self.above += int((flipped & (margin >= MARGIN)).sum())
        self.jumps += int((flipped & ~swapped & (margin >= MARGIN)).sum())
        self.margin = max(self.margin, _largest(margin[flipped & ~swapped]))
        self.gap, self.jump = max(self.gap, _largest(gap[~swapped])), max(self.jump, _largest(gap[swapped]))

    def told(self) -> str:
        """In words."""
        same = f"largest gap of a score {self.gap:.2g}, largest margin of another choice {self.margin:.2g}"
        moved = f"; where words changed places gaps up to {self.jump:.2g}" if self.swaps else ""
        return f"{self.swaps} orders and {self.flips} choices differ, {self.above} above {MARGIN}; {same}{moved}"


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def published(order: str = "relevance", seed: int = 0) -> Compressor:
    """The published parts with fresh weights that bfloat16 can hold, in float32."""
    torch.manual_seed(seed)
    named = (("scalers", "average-pool", {}), ("routers", "avg", {"order": order, "text_tokens": 12}))
    configs = [getattr(tokenflex, kind).get(name).Config(**settings) for kind, name, settings in named]
    configs += [tokenflex.voters.get("position-weighted").Config(), tokenflex.policies.get("argmax").Config()]
    return build(*configs, dim=DIM, grid=GRID).eval().bfloat16().float()


def scored(parts: Compressor, features: Tensor, words: Tensor) -> Tensor:
    """``(images, levels)``, float32."""
    images = [VisualTokens(each, GRID, row=i) for i, each in enumerate(features)]
    there = torch.ones(words.shape[1], dtype=torch.bool)
    return parts.scores(images, [Instruction(each, there) for each in words])


def ordered(features: Tensor, words: Tensor) -> Tensor:
    """``(images, words)``, numbers of the words by relevance."""
    return relevance(features[:, 0], words).argsort(dim=-1, descending=True, stable=True)


def flips(pyramids: int, seed: int) -> dict[str, Flips]:
    """Random pyramids in float32 and in bfloat16.

    ``same``: the same numbers in both types. ``relevance`` and ``text``: bfloat16 rounds the numbers, with words in
    either order, and fewer words than the router takes.
    """
    random = torch.Generator().manual_seed(seed)
    wide, text = published(), published("text")
    half, half_text = published().bfloat16(), published("text").bfloat16()
    found = {name: Flips() for name in ("same", "relevance", "text")}
    for start in range(0, pyramids, STACK):
        count = min(STACK, pyramids - start)
        features = torch.randn(count, 1, GRID.tokens, DIM, generator=random)
        words = torch.randn(count, WORDS, DIM, generator=random)
        rounded = (features.bfloat16(), words.bfloat16())
        held = (rounded[0].float(), rounded[1].float())
        orders = [ordered(*each) for each in ((features, words), held, rounded)]
        halves = scored(half, *rounded)
        moved = (orders[0] != orders[2]).any(-1)
        found["same"].add(scored(wide, *held), halves, (orders[1] != orders[2]).any(-1))
        found["relevance"].add(scored(wide, features, words), halves, moved)
        found["text"].add(scored(text, features, words), scored(half_text, *rounded), torch.zeros_like(moved))
    return found


def types(pyramids: int, seed: int) -> list[Outcome]:
    """Choices in float32 and bfloat16."""
    found = flips(pyramids, seed)
    same, near, text = found["same"], found["relevance"], found["text"]
    return [
        Outcome(
            AREA, "the same numbers given in float32 and in bfloat16", same.times, wrong=same.swaps + same.above,
            note=same.told(),
        ),
        Outcome(
            AREA, "numbers rounded to bfloat16, words in the order of the text", text.times, wrong=text.above,
            note=text.told(),
        ),
        Outcome(
            AREA, "numbers rounded to bfloat16, words by relevance (published)", near.times, wrong=near.jumps,
            note=f"{near.told()}; choices above it are allowed only where words changed places",
        ),
    ]  # fmt: skip


class Tally(Counts):
    """What came of one kind of part so far."""

    def attempt(self, name: str, call: Callable[[], bool]) -> None:
        """Count one call, which says whether its result is fine."""
        self.times += 1
        try:
            fine = call()
        except TokenFlexError:
            self.refused += 1
            return
        except Exception as error:
            self.crashed += 1
            self.seen.append(f"{name}: {type(error).__name__}: {str(error)[:80]}")
            return
        if not fine:
            self.wrong += 1
            self.seen.append(f"{name}: not finite")


def names(kind: str) -> list[str]:
    """Built-in parts of a kind."""
    return sorted(PARTS[kind])


def image(grid: Grid, fill: str, dtype: torch.dtype, views: int, random: torch.Generator) -> VisualTokens:
    """An image with all that parts may ask for."""
    features = FILLS[fill](torch.randn(views, grid.tokens, DIM, generator=random)).to(dtype)
    attention = torch.rand(views, grid.tokens, generator=random) * (fill not in ("zero", "equal"))
    return VisualTokens(features, grid, attention=attention.to(dtype), keys=features)


def words(count: int, masked: bool, fill: str, dtype: torch.dtype, random: torch.Generator) -> Instruction:
    """An instruction; all of it masked, where that is wanted."""
    made = torch.randn(count, DIM, generator=random)
    made = FILLS[fill](made) if count else made
    return Instruction(made.to(dtype), torch.full((count,), not masked))


def finite(levels: Sequence[ScaledTokens], grid: Grid) -> bool:
    """Whether levels hold finite numbers only, and name kept tokens that there are."""
    sound = all(bool(one.features.isfinite().all()) for one in levels)
    return sound and all(int(one.assignment.max()) < one.features.shape[-2] <= grid.tokens for one in levels)


def cases(random: Random, scale: float) -> Iterator[tuple[Grid, str, torch.dtype, int]]:
    """Grids, what they hold, types and views; the largest grid less often."""
    for grid, fill, dtype in product(GRIDS, FILLS, TYPES):
        large = grid.tokens > 1000
        if random.random() < (min(scale * 2, 0.4) if large else max(scale, 0.3)):
            yield grid, fill, dtype, 1 if large else random.choice((1, 3))


def scalers(random: Random, scale: float, seed: int) -> Outcome:
    """Every scaler on every kind of image."""
    tally, generator = Tally(), torch.Generator().manual_seed(seed)
    for name in names("scaler"):
        for grid, fill, dtype, views in cases(random, scale):
            part = tokenflex.scalers.get(name).Config().build(dim=DIM, grid=GRID)
            given = image(grid, fill, dtype, views, generator)
            tally.attempt(
                f"{name}, {grid}, {fill}, {dtype}",
                lambda part=part, given=given, grid=grid: finite(
                    [part.scale(given, level) for level in range(part.num_levels)], grid
                ),
            )
    return tally.outcome(
        AREA, "scalers: grids of 1 to 10,000 tokens, zeros, the ends of half precision", "float32, bfloat16, float16"
    )


def judged(parts: Compressor, given: VisualTokens, asked: Instruction) -> bool:
    """Whether the scores are finite and a level is chosen; an image that can't be judged is an error."""
    scores = parts.scores([given], [asked])
    tokens = torch.arange(1, parts.num_levels + 1)[None]
    (level,) = parts.choose(scores, tokens, [given])
    return bool(scores.isfinite().all()) and 0 <= level < parts.num_levels


def elections(random: Random, scale: float, seed: int) -> Outcome:
    """Every router with every voter."""
    tally, generator = Tally(), torch.Generator().manual_seed(seed)
    chosen = list(product(names("router"), names("voter"), (1, 5)))
    for router, voter, levels in chosen:
        torch.manual_seed(seed)
        windows = ((4, 4), (2, 4), (2, 2), (1, 2), (1, 1))[5 - levels :]
        pooling: Any = tokenflex.scalers.get("average-pool").Config
        scaler = pooling(windows=windows)
        named: list[Any] = [tokenflex.routers.get(router).Config(), tokenflex.voters.get(voter).Config()]
        argmax = tokenflex.policies.get("argmax").Config()
        parts = build(scaler, named[0], named[1], argmax, dim=DIM, grid=GRID).eval()
        for grid, fill, dtype, views in random.sample(list(cases(random, 1.0)), max(int(24 * scale), 2)):
            own = parts.to(random.choice((torch.float32, dtype)))
            given = image(grid, fill, dtype, views, generator)
            asked = words(random.choice((0, 1, 40)), random.random() < 0.3, fill, dtype, generator)
            tally.attempt(
                f"{router}, {voter}, {levels} levels, {grid}, {fill}, {dtype}",
                lambda own=own, given=given, asked=asked: judged(own, given, asked),
            )
    return tally.outcome(
        AREA,
        "routers and voters: grids of 1 to 10,000 tokens, one level, no word or all of them masked, half precision",
        "every router with every voter; refused: no level can be chosen, and the error names the image",
    )


def policies(random: Random, scale: float, seed: int) -> Outcome:
    """Every policy on scores that are equal, huge, ruled out."""
    tally, generator = Tally(), torch.Generator().manual_seed(seed)
    rows: dict[str, Callable[[Tensor], Tensor]] = {
        "usual": lambda s: s,
        "equal": torch.zeros_like,
        "huge": lambda s: s.sign() * 3e38,
        "subnormal": lambda s: s * 1e-44,
        "ruled out but one": lambda s: s.masked_fill(torch.arange(s.shape[-1]) > 0, -torch.inf),
    }
    budgets: list[dict[str, Any]] = [{"ratio": 0.3}, {"tokens": 1}, {"weight": 1e30}, {"tokens": 9, "per": "request"}]
    for name, kind, levels, images in product(names("policy"), rows, (1, 5), (1, 7)):
        for settings in budgets if name == "budget" else [{}]:
            scores = rows[kind](torch.randn(images, levels, generator=generator))
            tokens = torch.randint(0, 4, (images, levels), generator=generator).cumsum(-1) + random.choice((0, 1))
            part = tokenflex.policies.get(name).Config(**settings).build(num_levels=levels)

            def chosen(part: Any = part, scores: Tensor = scores, tokens: Tensor = tokens) -> bool:
                level = part(scores, tokens)
                return bool(((level >= 0) & (level < scores.shape[-1])).all())

            tally.attempt(f"{name} {settings}, {kind}, {levels} levels", chosen)
    return tally.outcome(AREA, "policies: one level, equal, huge and ruled-out scores, levels without a token", "")


def confidences(random: Random, scale: float, seed: int) -> Outcome:
    """Every confidence on logits at their limits."""
    tally, generator = Tally(), torch.Generator().manual_seed(seed)
    fills: dict[str, Callable[[Tensor], Tensor]] = {
        "usual": lambda x: x,
        "equal": torch.zeros_like,
        "at the end of half precision": lambda x: x.sign() * 6.5e4,
        "one token left": lambda x: x.masked_fill(torch.arange(x.shape[-1]) > 0, -torch.inf),
        "huge": lambda x: x.sign() * 3e38,
    }
    for name, fill, vocabulary, dtype in product(names("confidence"), fills, (1, 2, 1000), TYPES[:2]):
        part = tokenflex.confidences.get(name).Config().build()

        def sure(part: Any = part, fill: str = fill, size: int = vocabulary, dtype: torch.dtype = dtype) -> bool:
            steps = [fills[fill](torch.randn(3, size, generator=generator)).to(dtype) for _ in range(4)]
            values = torch.stack([part.of_tokens(each.float(), each.float().argmax(-1)) for each in steps], dim=1)
            mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3])
            read = 1 if part.first_only else 4
            return not bool(part.of_answer(values[:, :read], mask[:, :read]).isnan().any())

        tally.attempt(f"{name}, {fill}, {vocabulary} tokens, {dtype}", sure)
    return tally.outcome(
        AREA, "confidences: a vocabulary of one, tokens ruled out, logits at the ends of their type", ""
    )


def run(scale: float, seed: int) -> list[Outcome]:
    """Types, then every kind of part."""
    random = Random(seed)
    with torch.no_grad():
        kinds = [each(random, scale, seed) for each in (scalers, elections, policies, confidences)]
        return [*types(max(int(PYRAMIDS * scale), 100), seed), *kinds]

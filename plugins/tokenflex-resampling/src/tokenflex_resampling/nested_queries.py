"""Learned queries of which any first few make an image's tokens: the Matryoshka query transformer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenflex.contracts import ComponentConfig, Count, Grid, ScaledTokens, Scaler, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import everything
from tokenflex_resampling.places import grid_places, sine_codes, spread_places

SHARPNESS = 8.0
"""What a fresh query scores at its own place, in the softmax's exponent; far away it is about 0."""


class NestedQueriesScaler(Scaler):
    """The first m of the learned queries look at all tokens of a view (MQT, arXiv 2405.19315).

    ``y_{1:m} = softmax(Q_{1:m} K^T / sqrt(d)) V`` per head, then an output projection. K projects the layer-normed
    tokens and adds a sine code of their places; V projects the tokens as they are. All projections start as the
    identity and the queries as codes of places spread over the image, so a fresh scaler gives weighted means of the
    tokens around these places. Level m gives the first m tokens of every finer level of queries.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings.

        Attributes:
            queries: per level, coarse to fine, how many queries are used, at most as many as there are tokens. One more
                level, all tokens untouched, follows.
            heads: attention heads; must divide the width of the language model.
            positions: whether keys carry their places; without, queries start random and the order of tokens is unseen.
        """

        queries: tuple[int, ...] = (4, 16, 64, 256)
        heads: Count = 8
        positions: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            check_queries(self.queries)

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config)
        if dim % config.heads:
            raise ConfigError(f"heads={config.heads!r} must divide the language model's width, {dim}; e.g. heads=1.")
        self.counts, self.heads, self.positions = config.queries, config.heads, config.positions
        # A module, called as one: where parameters are sharded, that is what gathers them.
        self.queries = nn.Embedding.from_pretrained(
            self._fresh_queries(config.queries[-1], dim // config.heads), freeze=False
        )
        self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)
        for linear in (self.key, self.value, self.out):
            nn.init.eye_(linear.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def num_levels(self) -> int:
        """One per number of queries, and all tokens."""
        return len(self.counts) + 1

    def layouts(self, grid: Grid) -> tuple[Grid | int, ...]:
        """The number of queries; the grid itself where there are no more tokens than that."""
        return (*(count if count < grid.tokens else grid for count in self.counts), grid)

    def scale(self, tokens: VisualTokens, level: int) -> ScaledTokens:
        """What the queries of ``level`` see.

        The assignment tells where tokens come from, for positions and images: query after query takes the token it
        looks at most among those not yet taken, and every other token goes to the query that looks at it most.
        """
        layout = self.layouts(tokens.grid)[level]
        if isinstance(layout, Grid):
            return everything(tokens)
        seen, weights = self._attend(tokens, layout)
        return ScaledTokens(seen, members(weights, claims(weights)), None)

    def pyramid(self, tokens: VisualTokens) -> tuple[ScaledTokens, ...]:
        """All levels from one look with the most queries."""
        layouts = self.layouts(tokens.grid)
        most = max((layout for layout in layouts if isinstance(layout, int)), default=0)
        if not most:
            return (everything(tokens),) * len(layouts)
        seen, weights = self._attend(tokens, most)
        taken = claims(weights)

        def first(count: int) -> ScaledTokens:
            return ScaledTokens(seen[..., :count, :], members(weights, taken[..., :count]), None)

        return tuple(first(layout) if isinstance(layout, int) else everything(tokens) for layout in layouts)

    def _fresh_queries(self, count: int, width: int) -> Float[Tensor, "count dim"]:
        if not self.positions:
            return torch.randn(count, width * self.heads)
        codes = sine_codes(spread_places(count), width) * (2 * SHARPNESS / width**0.5)
        return codes.repeat(1, self.heads)

    def _attend(
        self, tokens: VisualTokens, count: int
    ) -> tuple[Float[Tensor, "*batch views count dim"], Float[Tensor, "*batch views count tokens"]]:
        """(what the first ``count`` queries see, how much they look at each token on the mean of the heads)."""
        source = tokens.features.to(self.key.weight.dtype)
        keys = self._apart(self.key(F.layer_norm(source, source.shape[-1:])))
        if self.positions:
            keys = keys + sine_codes(grid_places(tokens.grid, source), keys.shape[-1]).to(source.dtype)
        queries = self._apart(self.queries(torch.arange(count, device=source.device)))
        weights = (queries @ keys.mT * keys.shape[-1] ** -0.5).float().softmax(-1)
        mixed = weights.to(keys.dtype) @ self._apart(self.value(source)).to(keys.dtype)
        seen = self.out(mixed.transpose(-3, -2).flatten(-2))
        return seen.to(tokens.features.dtype), weights.detach().mean(-3)

    def _apart(self, rows: Float[Tensor, "*batch rows dim"]) -> Float[Tensor, "*batch heads rows width"]:
        return rows.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


def check_queries(queries: Sequence[int]) -> None:
    """Refuse numbers of queries that aren't positive integers, coarse to fine.

    Raises:
        ConfigError: with the offending number and the rule it breaks.
    """
    if not queries:
        raise ConfigError("queries is empty; give at least one number of queries, e.g. (16, 64).")
    for count in queries:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{count!r} is no number of queries; use integers >= 1.")
    for coarse, fine in itertools.pairwise(queries):
        if coarse > fine:
            raise ConfigError(f"queries {tuple(queries)} must go from coarse to fine: {fine} comes after {coarse}.")


@torch.no_grad()
def claims(weights: Float[Tensor, "*batch queries tokens"]) -> Int[Tensor, "*batch queries"]:
    """Query after query, the token it looks at most among those no earlier query has; equal ones: the first.

    One step per query, all on the device. The claims of the first few queries don't depend on later ones.

    Args:
        weights: >= 0; no more queries than tokens.
    """
    taken = torch.zeros_like(weights[..., 0, :], dtype=torch.bool)
    chosen: list[Tensor] = []
    for row in weights.unbind(-2):
        chosen.append(row.masked_fill(taken, -1.0).argmax(-1))
        taken = taken.scatter(-1, chosen[-1][..., None], True)
    return torch.stack(chosen, dim=-1)


@torch.no_grad()
def members(
    weights: Float[Tensor, "*batch queries tokens"], claimed: Int[Tensor, "*batch count"]
) -> Int[Tensor, "*batch tokens"]:
    """For every token the query that claimed it, or else the one of the first ``count`` that looks at it most."""
    count = claimed.shape[-1]
    nearest = weights[..., :count, :].argmax(-2)
    return nearest.scatter(-1, claimed, torch.arange(count, device=claimed.device).expand(claimed.shape))

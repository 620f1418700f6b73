"""The published router of AVG-LLaVA (arXiv 2410.02745, section 3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, ScaledTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.relevance import most_relevant, relevance


class AVGRouter(Router):
    """Every token of every level, and the words nearest to the image, vote through one transformer layer.

    The rows of a view are its tokens coarse to fine, then the ``text_tokens`` most relevant words (zero rows
    where the instruction has fewer), one post-norm encoder layer mixes them, and an MLP turns each row into a
    vote per level.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings of the published router.

        Attributes:
            text_tokens: words that take part, the most relevant first.
            heads: attention heads; must divide the width of the language model.
            attend: ``tiles``: each row attends to the same row of the other views, as in the released
                checkpoints; ``tokens``: each row attends to the other rows of its view, as in the paper's text.
            dropout: probability of dropping an activation while training.
            spill: where the instruction has fewer than ``text_tokens`` words, take masked rows (answers, padding)
                before zero rows, as the published code does; needs a host adapter with ``scope="published"``.
        """

        text_tokens: int = 32
        heads: int = 8
        attend: str = "tiles"
        dropout: float = 0.1
        spill: bool = False

    def __init__(self, config: Config, *, dim: int, num_levels: int) -> None:
        super().__init__(config)
        if config.attend not in ("tiles", "tokens"):
            raise ConfigError(f"attend={config.attend!r}; use 'tiles' (released) or 'tokens' (paper's text).")
        if dim % config.heads:
            raise ConfigError(f"heads={config.heads} must divide the language model's width, {dim}.")
        if config.text_tokens < 0:
            raise ConfigError(f"text_tokens={config.text_tokens} must be 0 or more.")
        self.text_tokens, self.attend, self.spill = config.text_tokens, config.attend, config.spill
        self.merger = nn.TransformerEncoderLayer(dim, config.heads, dim_feedforward=dim, dropout=config.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_levels))
        for linear in self.mlp[::2]:
            nn.init.kaiming_normal_(linear.get_parameter("weight"), mode="fan_in", nonlinearity="relu")

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """The levels' grids, then the words as one row."""
        return (*grids, Grid(1, self.text_tokens)) if self.text_tokens else tuple(grids)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Vote; see `Router.forward` for shapes."""
        finest = pyramid[-1].features
        scores = relevance(finest[..., 0, :, :], instruction.embeddings)
        words = most_relevant(instruction.embeddings, scores, instruction.mask, self.text_tokens, spill=self.spill)
        tokens = torch.cat([level.features for level in pyramid], dim=-2)
        merged = self._across_tiles if self.attend == "tiles" else self._across_tokens
        logits = self.mlp(merged(tokens, words.to(tokens.dtype)))
        grids = [level.grid or Grid(1, level.features.shape[-2]) for level in pyramid]
        mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        return Ballots(logits=logits, mask=mask, segments=self.segments(grids))

    def _across_tiles(
        self, tokens: Float[Tensor, "*batch views tokens dim"], words: Float[Tensor, "*batch words dim"]
    ) -> Float[Tensor, "*batch views voters dim"]:
        """Attention over the views, row by row. A word is the same in all views, so it attends to itself."""
        leading, views = tokens.shape[:-3], tokens.shape[-3]
        rows = rearrange(tokens.flatten(0, -4) if leading else tokens[None], "b v t d -> v (b t) d")
        merged = rearrange(self.merger(rows), "v (b t) d -> b v t d", b=math.prod(leading))
        if self.text_tokens:
            text = self.merger(words.reshape(1, -1, words.shape[-1])).view(-1, 1, *words.shape[-2:])
            merged = torch.cat([merged, text.expand(-1, views, -1, -1)], dim=-2)
        return merged.view(*leading, *merged.shape[1:])

    def _across_tokens(
        self, tokens: Float[Tensor, "*batch views tokens dim"], words: Float[Tensor, "*batch words dim"]
    ) -> Float[Tensor, "*batch views voters dim"]:
        """Attention over the rows, view by view."""
        text = words[..., None, :, :].expand(*tokens.shape[:-2], *words.shape[-2:])
        rows = torch.cat([tokens, text], dim=-2)
        merged = self.merger(rows.flatten(0, -3).transpose(0, 1)).transpose(0, 1)
        return merged.reshape(rows.shape)

"""The published router of AVG-LLaVA (arXiv 2410.02745, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenflex.contracts import Ballots, ComponentConfig, Grid, Instruction, Router, ScaledTokens, one_of
from tokenflex.errors import ConfigError, InputError
from tokenflex.ops.assignment import at_every_level
from tokenflex.ops.encoder_layer import EncoderLayer, attend, attend_alone, project
from tokenflex.ops.relevance import most_relevant, relevance


class AVGRouter(Router):
    """Every token of every level, and the prompt tokens nearest to the image, vote through one transformer layer.

    The rows of a view are its tokens coarse to fine, then the ``text_tokens`` most relevant prompt tokens (zero rows
    where the instruction has fewer), one post-norm encoder layer mixes them, and an MLP turns each row into a
    vote per level.
    """

    casts: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        """Settings of the published router.

        Attributes:
            text_tokens: prompt tokens that take part, the most relevant first.
            heads: attention heads; must divide the width of the language model.
            attend: ``tiles``: each row attends to the same row of the other views, as in the released
                checkpoints; ``tokens``: each row attends to the other rows of its view, as in the paper's text.
            dropout: probability of dropping an activation while training.
            spill: where the instruction has fewer than ``text_tokens`` prompt tokens, take masked rows (answers,
                padding) before zero rows, as the published code does; needs a host adapter with ``scope="published"``.
            order: of the prompt tokens that take part: ``relevance``, the most relevant first, as published; ``text``,
                as they stand in the text. A voter that weighs by position gives a word another weight in another place,
                so with ``relevance`` two prompt tokens of nearly equal relevance that change places move the scores
                (docs/parity.md has figures); with ``text`` relevance only chooses. A router is trained for one of the
                two.
            rows: which tokens vote: ``all``, as published; ``pooled``: those of all levels but the finest, for about
                half of the work. A router is trained for one of the two.
            sees: ``both``, as published; for ablations ``question``: visual tokens are zero vectors, or ``image``:
                prompt tokens are. A router is trained for one of the three; what it saves beside ``both`` shows what
                image and question tell.
        """

        text_tokens: int = 32
        heads: int = 8
        attend: str = "tiles"
        dropout: float = 0.1
        spill: bool = False
        order: str = "relevance"
        rows: str = "all"
        sees: Annotated[str, one_of("both", "image", "question")] = "both"

    def __init__(self, config: Config, *, dim: int, num_levels: int) -> None:
        super().__init__(config)
        if config.rows not in ("all", "pooled"):
            raise ConfigError(f"rows={config.rows!r}; use 'all' (published) or 'pooled' (all levels but the finest).")
        if config.order not in ("relevance", "text"):
            raise ConfigError(f"order={config.order!r}; use 'relevance' (published) or 'text' (as the text has them).")
        if config.rows == "pooled" and num_levels < 2:
            raise ConfigError("rows='pooled' leaves the finest level out, and there is no other; use rows='all'.")
        if config.attend not in ("tiles", "tokens"):
            raise ConfigError(f"attend={config.attend!r}; use 'tiles' (released) or 'tokens' (paper's text).")
        if dim % config.heads:
            raise ConfigError(f"heads={config.heads} must divide the language model's width, {dim}.")
        if config.text_tokens < 0:
            raise ConfigError(f"text_tokens={config.text_tokens} must be 0 or more.")
        self.text_tokens, self.attend, self.spill = config.text_tokens, config.attend, config.spill
        self.in_text_order, self.sees = config.order == "text", config.sees
        self.voting = slice(None) if config.rows == "all" else slice(-1)
        self.merger = EncoderLayer(dim, config.heads, dim_feedforward=dim, dropout=config.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_levels))
        for linear in self.mlp[::2]:
            nn.init.kaiming_normal_(linear.get_parameter("weight"), mode="fan_in", nonlinearity="relu")

    def segments(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """The voting levels' grids, then the prompt tokens as one row."""
        grids = grids[self.voting]
        return (*grids, Grid(1, self.text_tokens)) if self.text_tokens else tuple(grids)

    def forward(self, pyramid: Sequence[ScaledTokens], instruction: Instruction) -> Ballots:
        """Vote; see `Router.forward` for shapes. Relevance is that of the prompt tokens and visual tokens as they come.

        Raises:
            InputError: the levels have different numbers of views, as where frames of a video were merged.
        """
        finest = pyramid[-1].features
        if any(level.features.shape[-3] != finest.shape[-3] for level in pyramid):
            views = ", ".join(str(level.features.shape[-3]) for level in pyramid)
            raise InputError(
                f"the levels have {views} views, and the avg router compares views one by one. "
                "Use windows without time for its scaler, or another router."
            )
        if self.sees == "question":
            pyramid = [replace(level, features=torch.zeros_like(level.features)) for level in pyramid]
        elif self.sees == "image":
            instruction = replace(instruction, embeddings=torch.zeros_like(instruction.embeddings))
        scores = relevance(pyramid[-1].features[..., 0, :, :], instruction.embeddings)
        prompt = most_relevant(
            instruction.embeddings,
            scores,
            instruction.mask,
            self.text_tokens,
            spill=self.spill,
            in_text_order=self.in_text_order,
        )
        votes = self._across_tiles if self.attend == "tiles" else self._across_tokens
        own = next(self.parameters()).dtype
        shown = [replace(level, features=level.features.to(own)) for level in pyramid[self.voting]]
        logits = votes(shown, prompt.to(own))
        grids = [level.grid or Grid(1, level.features.shape[-2]) for level in pyramid]
        mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        return Ballots(logits=logits, mask=mask, segments=self.segments(grids))

    def _across_tiles(
        self, pyramid: Sequence[ScaledTokens], prompt: Float[Tensor, "*batch prompt dim"]
    ) -> Float[Tensor, "*batch views voters levels"]:
        """Votes after attention over the views, row by row. A word is the same in all views: it attends to itself."""
        tokens = torch.cat([level.features for level in pyramid], dim=-2)
        views = tokens.shape[-3]

        def attending(layer: nn.TransformerEncoderLayer) -> Tensor:
            if views == 1:
                return attend_alone(layer, partial(at_every_level, pyramid))
            return attend(layer, at_every_level(pyramid, partial(project, layer)), axis=-3)

        logits = self.mlp(self.merger(tokens, attending=attending))
        if not self.text_tokens:
            return logits
        alone = partial(attend_alone, at_rows=lambda affine: affine(prompt))
        text = self.mlp(self.merger(prompt, attending=alone))
        return torch.cat([logits, _in_every_view(text, views)], dim=-2)

    def _across_tokens(
        self, pyramid: Sequence[ScaledTokens], prompt: Float[Tensor, "*batch prompt dim"]
    ) -> Float[Tensor, "*batch views voters levels"]:
        """Votes after attention over the rows, view by view."""
        views = pyramid[-1].features.shape[-3]
        rows = torch.cat([*(level.features for level in pyramid), _in_every_view(prompt, views)], dim=-2)

        def attending(layer: nn.TransformerEncoderLayer) -> Tensor:
            projected = at_every_level(pyramid, partial(project, layer))
            text = _in_every_view(project(layer, prompt), views)
            return attend(layer, torch.cat([projected, text], dim=-2), axis=-2)

        return self.mlp(self.merger(rows, attending=attending))


def _in_every_view(
    prompt: Float[Tensor, "*batch prompt width"], views: int
) -> Float[Tensor, "*batch views prompt width"]:
    return prompt[..., None, :, :].expand(*prompt.shape[:-2], views, *prompt.shape[-2:])

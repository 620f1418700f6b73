"""One budget for all images of a conversation: the newest stay fine, older ones fade, one that is asked about returns.

A common price, as in `tokenflex.policies.budget`, shares tokens out among images of unequal worth. What is worth how
much follows from the images' order alone, so the same conversation always gets the same levels, whoever asks; nothing
of earlier turns has to be remembered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenflex.contracts import ComponentConfig, Count, NotNegative, Policy, Share
from tokenflex.errors import ConfigError
from tokenflex.ops.convexity import concave
from tokenflex.policies.budget import Budget, BudgetPolicy, at_common_price


@dataclass(frozen=True, kw_only=True)
class Fade(ComponentConfig):
    """The settings of a `FadePolicy`.

    Attributes:
        tokens: visual tokens, separators included, that all images of a request share; None: any number.
        newest: share of them that is kept for the newest images.
        recall: share that is kept for older images that the router wants finer; 0 goes by age alone, whatever the
            router says.
        step: images that count as newest together, above 0. Older images become coarser only after every ``step``
            images, so that the prompt up to the newest ones stays the same meanwhile.
        fading: what ``step`` images are worth, compared with the ``step`` images behind them, above 0, at most 1.
        worth: probability that an image's answer is lost at its coarser level, per its finest level's tokens, from
            which on a finer one is bought from ``recall``.
        floor, ceiling: coarsest and finest level that may be picked; negative counts from the finest, -1.

    Raises:
        ConfigError: a setting isn't of its type or range, or ``newest`` and ``recall`` are more than all tokens.
    """

    tokens: int | None = None
    newest: Share = 0.5
    recall: Share = 0.25
    step: Count = 2
    fading: Share = 0.5
    worth: NotNegative = 0.25
    floor: int = 0
    ceiling: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens} allows nothing; use an integer of 1 or more, or None.")
        if not self.newest or not self.fading:
            raise ConfigError(f"newest={self.newest} and fading={self.fading} must be above 0.")
        if self.newest + self.recall > 1:
            raise ConfigError(
                f"newest={self.newest} and recall={self.recall} are shares of the same tokens, and more than all of "
                "them; let them add up to 1 at most."
            )


@dataclass(frozen=True)
class Plan:
    """What a request's images get, and why.

    Attributes:
        ages: how many steps older than the newest ones each image is.
        by_age: the level of each image by age alone.
        levels: the level of each image, with what the router asked for.
    """

    ages: Int[Tensor, " images"]
    by_age: Int[Tensor, " images"]
    levels: Int[Tensor, " images"]


class FadePolicy(Policy):
    """Shares ``tokens`` out among the images of a request, the last of which is the newest.

    The newest images get the finest level within their part of ``newest``. The others share the rest by a common
    price, each step of age halving (``fading``) what an image is worth; where even the coarsest levels cost more than
    their share, those are taken, at the newest images' expense. What is kept for ``recall`` buys finer levels for older
    images whose router scores say that their present level may lose the answer.

    More tokens never give any image a coarser level. The total fits wherever the coarsest levels do, those of ``step``
    newest images included.
    """

    Config = Fade

    def __init__(self, config: Fade, *, num_levels: int | None = None) -> None:
        super().__init__(config)
        self.fade = config
        self._span = BudgetPolicy(Budget(floor=config.floor, ceiling=config.ceiling), num_levels=num_levels)

    @property
    def couples(self) -> bool:
        """All images of a request share its tokens."""
        return True

    def forward(
        self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]
    ) -> Int[Tensor, " images"]:
        """The level of every image.

        Raises:
            InputError: there are no levels from floor to ceiling.
        """
        return self.plan(scores, tokens).levels

    def reasons(self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]) -> Sequence[str]:
        """Why every image gets its level, as a clause."""
        plan, found = self.plan(scores, tokens), list[str]()
        for age, before, level in torch.stack([plan.ages, plan.by_age, plan.levels], dim=-1).tolist():
            if not age:
                found.append("one of the newest")
            elif level > before:
                found.append(f"raised from level {before}: the router asks for it")
            else:
                found.append(f"older by {age} step{'s' * (age > 1)}")
        return found

    def plan(self, scores: Float[Tensor, "images levels"], tokens: Int[Tensor, "images levels"]) -> Plan:
        """Levels by age, and with what the router asked for; arguments and errors as for `forward`."""
        permitted = self._span.between(scores.shape[-1]).to(scores.device).expand(tokens.shape)
        numbers = torch.arange(len(tokens), device=scores.device)
        ages = (len(tokens) - 1) // self.fade.step - numbers // self.fade.step
        if self.fade.tokens is None:
            finest = permitted.int().cumsum(-1).argmax(-1)
            return Plan(ages, finest, finest)
        old = ages > 0
        least = tokens.masked_fill(~permitted, tokens.max() + 1).amin(-1)
        floors, total = least[old].sum().double(), float(self.fade.tokens)
        own = self.fade.step * least[~old].amax().double()
        for_newest = torch.minimum(own.clamp(min=self.fade.newest * total), total - floors)
        rest = total - for_newest
        for_recall = torch.clamp(rest - floors, max=self.fade.recall * total)
        by_age = within(tokens, permitted, for_newest / self.fade.step)
        by_age[old] = self._aged(tokens[old], permitted[old], ages[old], rest - for_recall)
        levels = by_age.clone()
        if self.fade.recall and bool(old.any()):
            levels[old] = self._recalled(scores[old], tokens[old], permitted[old], by_age[old], for_recall)
        return Plan(ages, by_age, levels)

    def _aged(
        self,
        tokens: Int[Tensor, "images levels"],
        permitted: Bool[Tensor, "images levels"],
        ages: Int[Tensor, " images"],
        allowed: Float[Tensor, ""],
    ) -> Int[Tensor, " images"]:
        """Levels of older images, whose worth is the logarithm of their share of their own tokens, faded by age."""
        if not len(tokens):
            return ages
        share = tokens.double() / tokens[:, -1:].clamp(min=1)
        worth = share.clamp(min=torch.finfo(torch.float32).tiny).log() * (self.fade.fading ** ages.double())[:, None]
        return at_common_price(worth, tokens, permitted, allowed, 0.0)

    def _recalled(
        self,
        scores: Float[Tensor, "images levels"],
        tokens: Int[Tensor, "images levels"],
        permitted: Bool[Tensor, "images levels"],
        by_age: Int[Tensor, " images"],
        allowed: Float[Tensor, ""],
    ) -> Int[Tensor, " images"]:
        """Levels of older images, finer than by age where the router says so and it can be afforded.

        The scores' softmax is read as the probability of each level to be the coarsest that will do.
        """
        enough = concave(scores.double().softmax(-1).cumsum(-1), tokens)
        finer = torch.arange(scores.shape[-1], device=scores.device) >= by_age[:, None]
        spent = tokens.gather(-1, by_age[:, None]).sum()
        return at_common_price(enough, tokens, permitted & finer, spent + allowed, self.fade.worth)


def within(
    tokens: Int[Tensor, "images levels"], permitted: Bool[Tensor, "images levels"], allowed: Float[Tensor, ""]
) -> Int[Tensor, " images"]:
    """The dearest permitted level that costs at most ``allowed``; the cheapest permitted one where none does."""
    fits = permitted & (tokens <= allowed)
    cheapest = tokens.masked_fill(~permitted, tokens.max() + 1).argmin(-1)
    return torch.where(fits.any(-1), tokens.masked_fill(~fits, -1).argmax(-1), cheapest)

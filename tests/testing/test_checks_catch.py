"""Every check catches a part that is broken in just that way."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from tokenflex.confidences.answer import MeanLogProbability
from tokenflex.contracts import Grid
from tokenflex.policies.argmax import ArgmaxPolicy
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing import check_component, component_checks
from tokenflex.testing.conformance import CHECKS
from tokenflex.voters.position_weighted import PositionWeightedVoter


def broken(base, **attributes):
    """A config whose part is ``base`` with some attributes replaced."""

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        pass

    return type(f"Broken{base.__name__}", (base,), {"Config": Config, **attributes}).Config()


def scaler(scale=None, layouts=None, **others):
    """A broken scaler: ``scale`` gets what a good one gives."""
    attributes = dict(others)
    if scale is not None:
        attributes["scale"] = lambda self, tokens, level: scale(
            AveragePoolScaler.scale(self, tokens, level), tokens, level
        )
    if layouts is not None:
        attributes["layouts"] = lambda self, grid: layouts(AveragePoolScaler.layouts(self, grid))
    return broken(AveragePoolScaler, **attributes)


def features(change):
    """A scaler that changes a good one's features."""
    return scaler(lambda scaled, tokens, level: replace(scaled, features=change(scaled.features)))


def router(change, **others):
    """A router that changes a good one's ballots: ``change(ballots, pyramid, instruction)``."""

    def forward(self, pyramid, instruction):
        return change(AVGRouter.forward(self, pyramid, instruction), pyramid, instruction)

    return broken(AVGRouter, forward=forward, **others)


def logits(change):
    return router(lambda ballots, pyramid, words: replace(ballots, logits=change(ballots.logits, pyramid, words)))


def answer(change):
    """A confidence that changes a good one's: ``change(confidences, values, mask)``."""

    def of_answer(self, values, mask):
        return change(MeanLogProbability.of_answer(self, values, mask), values, mask)

    return broken(MeanLogProbability, of_answer=of_answer)


def voter(change):
    """A voter that changes a good one's scores: ``change(scores, ballots)``."""
    return broken(PositionWeightedVoter, forward=lambda self, b: change(PositionWeightedVoter.forward(self, b), b))


def policy(change):
    return broken(ArgmaxPolicy, forward=lambda self, s, t: change(ArgmaxPolicy.forward(self, s, t), s, t))


class NotData(AveragePoolScaler):
    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        thing: object = object()


class Forgetful(AveragePoolScaler):
    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        size: int = 3

    def __init__(self, config):
        super().__init__(config)
        self.config = replace(config, size=4)


class NamedAnew(AveragePoolScaler):
    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        pass

    built = 0

    def __init__(self, config):
        super().__init__(config)
        type(self).built += 1
        self.register_parameter(f"weight{self.built}", nn.Parameter(torch.zeros(1)))


class Uncopyable(AveragePoolScaler):
    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        pass

    def __init__(self, config):
        super().__init__(config)
        self.stream = (i for i in range(3))


class Idle(AVGRouter):
    @dataclass(frozen=True, kw_only=True)
    class Config(AVGRouter.Config):
        pass

    def __init__(self, config, *, dim, num_levels):
        super().__init__(config, dim=dim, num_levels=num_levels)
        self.unused = nn.Linear(2, 2)


def in_place(scaled, tokens, level):
    tokens.features.mul_(2)
    return scaled


def shifted(scaled, tokens, level):
    return replace(scaled, assignment=scaled.assignment + 1)


def curious(scaled, tokens, level):
    return scaled if tokens.keys is None else replace(scaled, features=scaled.features + 1)


def mixed_views(scaled, tokens, level):
    return replace(scaled, features=scaled.features - scaled.features.mean(-3, keepdim=True))


def mixed_batch(scaled, tokens, level):
    mean = tokens.features.mean((0, 1, 2), keepdim=True) if tokens.features.dim() == 4 else 0.0
    return replace(scaled, features=scaled.features + mean)


def unmasked(values, pyramid, words):
    return values + words.embeddings.sum()


def spoil_words(ballots, pyramid, words):
    words.embeddings.add_(1)
    return ballots


def chatty(ballots, pyramid, words):
    return replace(ballots, segments=(Grid(1, ballots.logits.shape[-2] + 1),))


def spoil_scores(chosen, scores, tokens):
    scores.zero_()
    return chosen


BROKEN = {
    "Scaler": {
        "settings-are-data": NotData.Config(),
        "keeps-its-config": Forgetful.Config(),
        "weights-can-be-restored": NamedAnew.Config(),
        "can-be-copied": Uncopyable.Config(),
        "one-count-per-level": scaler(layouts=lambda found: found if found[-1].tokens == 1 else found[:-1]),
        "coarse-to-fine": scaler(layouts=lambda found: found[::-1]),
        "counts-known-in-advance": scaler(layouts=lambda found: tuple(grid.tokens for grid in found)),
        "assignment-is-valid": scaler(shifted),
        "averages-are-means": features(lambda t: 1.01 * t),
        "views-are-independent": scaler(mixed_views),
        "batch-equals-singles": scaler(mixed_batch),
        "dtype-is-kept": features(lambda t: t.float()),
        "repeats-itself": features(lambda t: t + torch.rand(())),
        "input-is-left-alone": scaler(in_place),
        "stays-finite": features(lambda t: t / t.std()),
        "levels-together-are-levels-alone": scaler(
            pyramid=lambda self, tokens: [self.scale(replace(tokens, features=tokens.features + 1), level)
                                          for level in range(self.num_levels)]),
        "shares-are-told": broken(AveragePoolScaler, shares=(0.25, 0.5, 0.75, 0.9, 0.95)),
        "view-known-in-advance": broken(AveragePoolScaler, viewed=lambda self, grid: self.layouts(grid)[1:]),
        "needs-are-told": scaler(curious),
        "gradients-flow": features(lambda t: t.detach()),
    },
    "Router": {
        "shapes-fit": router(chatty),
        "segments-known-in-advance": broken(AVGRouter, segments=lambda self, grids: (Grid(1, 1),),
                                            forward=lambda self, p, i: replace(
                                                AVGRouter.forward(self, p, i), segments=(Grid(9, 9),))),
        "votes-without-words": logits(lambda t, p, words: t + words.embeddings.mean()),
        "masked-words-are-inert": logits(unmasked),
        "batch-equals-singles": logits(lambda t, p, words: t + t.mean(0, keepdim=True)),
        "repeats-itself": logits(lambda t, p, words: t + torch.rand(())),
        "input-is-left-alone": router(spoil_words),
        "stays-finite": logits(lambda t, p, words: t / p[-1].features.norm()),
        "votes-about-every-level": logits(lambda t, p, words: t[..., : len(p)]),
        "needs-are-told": logits(lambda t, p, words: t if p[0].attention is None else t + 1),
        "gradients-reach-parameters": Idle.Config(),
    },
    "Voter": {
        "one-score-per-level": voter(lambda scores, ballots: scores[..., :-1]),
        "batch-equals-singles": voter(lambda scores, ballots: scores - scores.mean(0)),
        "masked-ballots-are-inert": voter(lambda scores, ballots: scores + ballots.logits.amax()),
        "order-of-views-is-nothing": voter(lambda scores, ballots: scores + ballots.logits[..., 0, 0, :]),
        "repeats-itself": voter(lambda scores, ballots: scores + torch.rand(())),
        "stays-finite": voter(lambda scores, ballots: scores / ballots.mask.sum()),
        "gradients-flow": voter(lambda scores, ballots: scores.detach() + ballots.logits.sum() * 0),
    },
    "Confidence": {
        "one-number-per-row": answer(lambda found, values, mask: values[:, :1]),
        "says-what-it-reads": broken(MeanLogProbability, first_only=property(lambda self: 0)),
        "stays-finite": broken(MeanLogProbability, of_tokens=lambda self, scores, chosen: scores.mean(-1)),
        "rows-stand-alone": answer(lambda found, values, mask: found - found.mean()),
        "order-of-rows-is-nothing": answer(lambda found, values, mask: found + torch.arange(len(found))),
        "what-follows-the-end-is-inert": answer(lambda found, values, mask: values.mean(-1)),
        "repeats-itself": answer(lambda found, values, mask: found + torch.rand(())),
        "inputs-stay-as-they-are": answer(lambda found, values, mask: values.zero_()[:, 0] + found),
        "higher-is-surer": answer(lambda found, values, mask: -found),
    },
    "Policy": {
        "one-level-per-image": policy(lambda chosen, s, t: chosen.float()),
        "images-are-independent": policy(lambda chosen, s, t: (chosen + (len(s) > 1)) % s.shape[1]),
        "levels-exist": policy(lambda chosen, s, t: chosen + s.shape[1]),
        "repeats-itself": policy(lambda chosen, s, t: torch.randint(0, 5, chosen.shape)),
        "input-is-left-alone": policy(spoil_scores),
    },
}  # fmt: skip
ROWS = [(kind, name) for kind, rows in BROKEN.items() for name in rows]


@pytest.mark.parametrize(("kind", "name"), ROWS, ids=[f"{kind}-{name}" for kind, name in ROWS])
def test_the_check_catches_its_broken_part(kind, name):
    report = check_component(BROKEN[kind][name])
    assert name in report.named("failed"), str(report)
    assert not report.ok
    detail = next(result.detail for result in report.results if result.check == name)
    assert len(detail) > 20


def test_no_check_lacks_a_broken_part():
    shared = {check.name for check in component_checks.CHECKS}
    for kind, checks in CHECKS.items():
        names = {check.name for check in checks}
        wanted = names if kind.__name__ == "Scaler" else names - shared
        assert set(BROKEN[kind.__name__]) == wanted

"""The laws of voters."""

from dataclasses import replace

import torch

from tokenflex.testing.bench import Bench, Check, Skip, same, stacked


def one_score_per_level(bench: Bench) -> None:
    """Every image gets one score per level, for one view and for several."""
    voter = bench.build()
    for views in (1, 3):
        shape = tuple(voter(bench.ballots(views)).shape)
        assert shape == (bench.levels,), f"{views} views give scores of shape {shape}, expected ({bench.levels},)"


def batch_equals_singles(bench: Bench) -> None:
    """A stack of ballots is each of its members."""
    voter = bench.build()
    ballots = [bench.ballots(seed=seed) for seed in (0, 1)]
    together = voter(stacked(*ballots))
    for i, one in enumerate(ballots):
        same(together[i], voter(one), "ballots alone and in a batch")


def masked_ballots_are_inert(bench: Bench) -> None:
    """What a masked voter says doesn't matter."""
    voter, ballots = bench.build(), bench.ballots()
    mask = ballots.mask.clone()
    mask[:, ::3] = False
    shouted = torch.where(mask[..., None], ballots.logits, torch.tensor(1e4))
    quiet, loud = replace(ballots, mask=mask), replace(ballots, mask=mask, logits=shouted)
    same(voter(loud), voter(quiet), "masked voters saying something else")


def order_of_views_is_nothing(bench: Bench) -> None:
    """Views may come in any order."""
    voter, ballots = bench.build(), bench.ballots()
    turned = replace(ballots, logits=ballots.logits.flip(0), mask=ballots.mask.flip(0))
    same(voter(turned), voter(ballots), "views in another order")


def repeats_itself(bench: Bench) -> None:
    """The same ballots get the same scores, whatever the global random state is."""
    voter = bench.build()
    same(voter(bench.ballots()), voter(bench.ballots()), "two counts of the same ballots", 0.0)


def stays_finite(bench: Bench) -> None:
    """Scores are finite, also where nobody votes."""
    voter, ballots = bench.build(), bench.ballots()
    silent = replace(ballots, mask=torch.zeros_like(ballots.mask))
    assert bool(voter(silent).isfinite().all()), "ballots that are all masked give NaN or infinity"


def gradients_flow(bench: Bench) -> None:
    """Gradients reach the ballots and every parameter."""
    voter, ballots = bench.build(), bench.ballots()
    ballots.logits.requires_grad_()
    scores = voter(ballots)
    if not scores.requires_grad:
        raise Skip("the voter counts without gradients")
    (scores * torch.arange(1.0, bench.levels + 1)).square().sum().backward()
    gradient = ballots.logits.grad
    assert gradient is not None, "no gradient reaches the ballots"
    assert bool(gradient.abs().sum() > 0), "no gradient reaches the ballots"
    without = [name for name, p in voter.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}"


CHECKS = (
    Check("one-score-per-level", "scores are one number per level", one_score_per_level),
    Check("batch-equals-singles", "an image's scores don't depend on its batch", batch_equals_singles),
    Check("masked-ballots-are-inert", "masked voters have no say", masked_ballots_are_inert),
    Check("order-of-views-is-nothing", "views may come in any order", order_of_views_is_nothing),
    Check("repeats-itself", "the same ballots give the same scores", repeats_itself),
    Check("stays-finite", "an election without voters has a finite result", stays_finite),
    Check("gradients-flow", "gradients reach ballots and parameters", gradients_flow),
)

"""The laws of confidences."""

import itertools

import torch
from torch import Tensor

from tokenflex.contracts import Confidence
from tokenflex.testing.bench import Bench, Check, same

ROWS, STEPS, VOCABULARY = 4, 3, 19


def _scores(seed: int = 0, steps: int = STEPS) -> list[Tensor]:
    """``(rows, vocabulary)`` per step, some tokens ruled out in every row."""
    generator = torch.Generator().manual_seed(3000 + seed)
    found = [3 * torch.randn(ROWS, VOCABULARY, generator=generator) for _ in range(steps)]
    for scores in found:
        scores[:, 5:8] = float("-inf")
    return found


def _mask() -> Tensor:
    """Answers of one, two and three tokens."""
    return torch.arange(STEPS) < torch.tensor([[1], [3], [2], [3]])


def _judged(part: Confidence, scores: list[Tensor], mask: Tensor) -> Tensor:
    """A confidence's values for answers of several steps, got as `tokenflex.model.escalation.watching` gets them."""
    steps = 1 if part.first_only else len(scores)
    values = [part.of_tokens(one, one.argmax(-1)) for one in scores[:steps]]
    return part.of_answer(torch.stack(values, dim=1), mask[:, :steps])


def one_number_per_row(bench: Bench) -> None:
    """A step, and an answer, have one number per row."""
    part, scores = bench.build(), _scores()
    kept = tuple(part.of_tokens(scores[0], scores[0].argmax(-1)).shape)
    assert kept == (ROWS,), f"of_tokens() gives the shape {kept} for {ROWS} rows"
    found = _judged(part, scores, _mask())
    assert tuple(found.shape) == (ROWS,), f"of_answer() gives the shape {tuple(found.shape)} for {ROWS} rows"
    assert found.is_floating_point(), f"of_answer() gives {found.dtype}, expected floating point numbers"


def says_what_it_reads(bench: Bench) -> None:
    """``first_only`` is True or False, whatever it has read."""
    declared = bench.build().first_only
    assert isinstance(declared, bool), f"first_only is {declared!r}; expected True or False"


def stays_finite(bench: Bench) -> None:
    """Values are finite, also where one token has all the probability, all are alike, or all but one are ruled out."""
    part = bench.build()
    certain = torch.full((ROWS, VOCABULARY), -1e4)
    certain[:, 2] = 1e4
    only = torch.full((ROWS, VOCABULARY), float("-inf"))
    only[:, 3] = 0.0
    for name, one in (("certain", certain), ("uniform", torch.zeros(ROWS, VOCABULARY)), ("single", only)):
        found = _judged(part, [one] * STEPS, _mask())
        assert bool(found.isfinite().all()), f"scores that are {name} give {found.tolist()}"


def rows_stand_alone(bench: Bench) -> None:
    """A row's confidence doesn't depend on its batch."""
    part, scores, mask = bench.build(), _scores(), _mask()
    together = _judged(part, scores, mask)
    for row in range(ROWS):
        alone = _judged(part, [one[row : row + 1] for one in scores], mask[row : row + 1])
        same(alone, together[row : row + 1], "a row alone and in a batch")


def order_of_rows_is_nothing(bench: Bench) -> None:
    """Rows may come in any order."""
    part, scores, mask = bench.build(), _scores(), _mask()
    turned = _judged(part, [one.flip(0) for one in scores], mask.flip(0))
    same(turned.flip(0), _judged(part, scores, mask), "rows in another order")


def what_follows_the_end_is_inert(bench: Bench) -> None:
    """Steps behind the end of an answer don't matter, nor how many there are."""
    part, scores, mask = bench.build(), _scores(), _mask()
    expected = _judged(part, scores, mask)
    changed = [torch.where(mask[:, i : i + 1], one, _scores(7)[i]) for i, one in enumerate(scores)]
    same(_judged(part, changed, mask), expected, "other tokens behind the end of an answer")
    more = torch.cat([mask, torch.zeros(ROWS, 2, dtype=torch.bool)], dim=1)
    same(_judged(part, [*scores, *_scores(8, 2)], more), expected, "more steps behind the end of every answer")


def repeats_itself(bench: Bench) -> None:
    """The same answers get the same values, whatever the global random state is."""
    part = bench.build()
    same(_judged(part, _scores(), _mask()), _judged(part, _scores(), _mask()), "two readings of one answer", 0.0)


def inputs_stay_as_they_are(bench: Bench) -> None:
    """Scores, values and mask aren't written into; generation goes on with them."""
    part, scores, mask = bench.build(), _scores(1), _mask()
    chosen = scores[0].argmax(-1)
    values = torch.stack([part.of_tokens(one, one.argmax(-1)) for one in scores], dim=1)
    before = [one.clone() for one in (*scores, chosen, values, mask)]
    part.of_tokens(scores[0], chosen)
    steps = 1 if part.first_only else STEPS
    part.of_answer(values[:, :steps], mask[:, :steps])
    for now, then in zip((*scores, chosen, values, mask), before, strict=True):
        assert torch.equal(now, then), "it changes what it is given"


def higher_is_surer(bench: Bench) -> None:
    """The same choice from sharper scores is surer, and never less so."""
    part, mask = bench.build(), _mask()
    found = [_judged(part, [one * sharp for one in _scores()], mask) for sharp in (0.25, 1.0, 4.0)]
    for low, high in itertools.pairwise(found):
        assert bool((high >= low - 1e-5).all()), f"sharper scores give {high.tolist()}, duller ones {low.tolist()}"
    assert bool((found[-1] > found[0]).all()), f"sharper and duller scores give the same: {found[0].tolist()}"


CHECKS = (
    Check("one-number-per-row", "a step and an answer give one number per row", one_number_per_row),
    Check("says-what-it-reads", "first_only is True or False", says_what_it_reads),
    Check("stays-finite", "certain, uniform and single choices have finite confidences", stays_finite),
    Check("rows-stand-alone", "a row's confidence doesn't depend on its batch", rows_stand_alone),
    Check("order-of-rows-is-nothing", "rows may come in any order", order_of_rows_is_nothing),
    Check("what-follows-the-end-is-inert", "steps behind an answer's end have no say", what_follows_the_end_is_inert),
    Check("repeats-itself", "the same answer gives the same confidence", repeats_itself),
    Check("inputs-stay-as-they-are", "what it is given isn't changed", inputs_stay_as_they_are),
    Check("higher-is-surer", "the same choice from sharper scores is surer", higher_is_surer),
)

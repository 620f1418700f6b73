"""The outliers router: quartiles of each view, and of nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.contracts import Grid, Instruction, VisualTokens
from tokenflex.errors import ConfigError, InputError
from tokenflex.testing import cases, check_component
from tokenflex_matching.outliers import OutliersRouter, outliers
from tokenflex_matching.tome import ToMeScaler

CONFIGS = [OutliersRouter.Config(), OutliersRouter.Config(whisker=0.0)]
NO_WORDS = Instruction(torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool))


def transcribed(attention, whisker):
    """Outliers, by the rule."""
    ordered = sorted(attention)

    def quartile(share):
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    fence = quartile(0.75) + whisker * (quartile(0.75) - quartile(0.25))
    count = 0
    for value in attention:
        if value > fence:
            count += 1
    return max(count, 1)


def vote(attention, config=None):
    grid = Grid(1, attention.shape[-1])
    image = VisualTokens(torch.zeros(*attention.shape, 4), grid)
    pyramid = [replace(level, attention=attention) for level in ToMeScaler(ToMeScaler.Config()).pyramid(image)]
    return OutliersRouter(config or OutliersRouter.Config())(pyramid, NO_WORDS).logits


def test_worked_example():
    # Sorted 1 1 2 2 3 3 9 12 40: Q1 = 2 (third of nine), Q3 = 9 (seventh); fence 9 + 1.5 * 7 = 19.5: one outlier.
    # With no whisker the fence is 9, and 12 and 40 lie above it.
    attention = torch.tensor([[3.0, 1, 40, 2, 9, 1, 12, 2, 3]])
    assert outliers(attention, 1.5).tolist() == [1]
    assert outliers(attention, 0.0).tolist() == [2]


def test_quartiles_are_interpolated():
    # Sorted 0 1 2 10: Q1 at position 0.75 is 0.75, Q3 at 2.25 is 4; fence 4 + 1.5 * 3.25 = 8.875 < 10.
    assert outliers(torch.tensor([[10.0, 0, 2, 1]]), 1.5).tolist() == [1]
    # At 8.8 Q3 is 3.7 and the fence 8.125; with two of them Q3 is 8.8: none is above the fence, and one is needed.
    assert outliers(torch.tensor([[8.8, 0, 8.8, 1]]), 1.5).tolist() == [1]


def test_votes_say_what_is_missing():
    # Four of 32 tokens stand out; levels keep 2, 4, 8, 16 and 32.
    attention = torch.ones(1, 32)
    attention[0, 3:7] = 5.0
    assert vote(attention).tolist() == [[[-1.0, 0.0, 0.0, 0.0, 0.0]]]


def test_one_image_does_not_change_anothers_count():
    # Calm: 15 values around 1 and one of 2. Loud: values of 100 to 115. Quartiles over both together would put
    # the fence far above 2 (and none of calm's tokens above it) and count none of either.
    calm = torch.cat([torch.linspace(0.9, 1.1, 14), torch.tensor([2.0, 2.1])])
    loud = torch.arange(100.0, 116.0)
    loud[5] = 1000.0
    batch = torch.stack([calm, loud])[:, None]
    together = batch.flatten()
    fence = together.quantile(0.75) + 1.5 * (together.quantile(0.75) - together.quantile(0.25))
    assert not bool((calm > fence).any())
    assert outliers(batch, 1.5).tolist() == [[2], [1]]
    assert outliers(batch[:1], 1.5).tolist() == [[2]]
    assert outliers(batch[1:], 1.5).tolist() == [[1]]
    assert torch.equal(vote(batch)[0], vote(batch[0]))
    assert torch.equal(vote(batch)[1], vote(batch[1]))


def test_one_view_does_not_change_anothers_count():
    views = torch.stack(
        [torch.cat([torch.linspace(0.9, 1.1, 14), torch.tensor([2.0, 2.1])]), torch.arange(100.0, 116.0)]
    )
    assert outliers(views, 1.5).tolist() == [2, 1]
    assert torch.equal(vote(views)[0], vote(views[:1])[0])


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 63])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whisker", [0.0, 1.5])
def test_transcription(tokens, seed, whisker):
    attention = torch.randn(2, 3, tokens, generator=torch.Generator().manual_seed(seed)).exp().square()
    counts = outliers(attention, whisker)
    for batch in range(2):
        for view in range(3):
            assert int(counts[batch, view]) == transcribed(attention[batch, view].double().tolist(), whisker)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 30), seed=st.integers(0, 1000), factor=st.sampled_from([0.25, 1.0, 1024.0]))
def test_laws(tokens, seed, factor):
    generator = torch.Generator().manual_seed(seed)
    attention = torch.randn(3, 2, tokens, generator=generator).exp()
    counts = outliers(attention, 1.5)
    assert bool(((counts >= 1) & (counts <= tokens)).all())
    order = torch.randperm(tokens, generator=generator)
    assert torch.equal(outliers(attention[..., order], 1.5), counts)
    assert torch.equal(outliers(attention * factor, 1.5), counts)
    for batch in range(3):
        for view in range(2):
            assert torch.equal(outliers(attention[batch, view : view + 1], 1.5)[0], counts[batch, view])


@pytest.mark.parametrize("value", [0.0, 0.3, 7.0])
def test_even_attention_needs_one_token(value):
    assert outliers(torch.full((2, 1, 16), value), 1.5).tolist() == [[1], [1]]


def test_shapes_do_not_depend_on_attention():
    assert outliers(torch.empty(2, 3, 16, device="meta"), 1.5).shape == (2, 3)


def test_half_precision_is_read():
    assert vote(torch.rand(1, 32).bfloat16()).isfinite().all()


@pytest.mark.parametrize("case", [case for config in CONFIGS for case in cases(config)], ids=str)
def test_conformance(case):
    case()


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_conformance_is_complete(levels):
    check_component(OutliersRouter.Config(), levels=levels).raise_if_bad()


def test_refusals():
    assert OutliersRouter(OutliersRouter.Config()).needs == {"attention"}
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=rf"whisker={wrong} (of \w+ )?must be a (finite )?number"):
            OutliersRouter(OutliersRouter.Config(whisker=wrong))
    image = VisualTokens(torch.zeros(1, 4, 4), Grid(2, 2))
    with pytest.raises(InputError, match="outliers router reads the vision tower's attention, and this image has none"):
        OutliersRouter(OutliersRouter.Config())(ToMeScaler(ToMeScaler.Config()).pyramid(image), NO_WORDS)

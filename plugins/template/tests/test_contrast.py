import pytest
import torch
from hypothesis import given, settings

from tokenflex import scalers
from tokenflex.contracts import Grid, VisualTokens
from tokenflex.testing import cases
from tokenflex.testing.strategies import LEADING, images, st
from tokenflex_template.contrast import ContrastScaler


def built(*ratios):
    return ContrastScaler.Config(ratios=ratios).build()


def test_by_hand():
    # The mean of 1, 2, 3, 10 is 4; the distances are 3, 2, 1, 6: half of the tokens are the first and the last.
    tokens = VisualTokens(torch.tensor([[[1.0], [2.0], [3.0], [10.0]]]), Grid(2, 2))
    scaled = built(0.5, 1.0).scale(tokens, 0)
    assert scaled.features.tolist() == [[[1.0], [10.0]]]
    assert scaled.assignment.tolist() == [[0, -1, -1, 1]]


@settings(deadline=None)
@given(images(leading=st.sampled_from(LEADING)))
def test_against_loops(tokens):
    count = built(0.5, 1.0).granularities(tokens.grid)[0]
    scaled = built(0.5, 1.0).scale(tokens, 0)
    for view, kept in zip(tokens.features.flatten(0, -3), scaled.assignment.flatten(0, -2), strict=True):
        mean = sum(view) / len(view)
        distance = [float((token - mean).norm()) for token in view]
        limit = sorted(distance, reverse=True)[count - 1]
        assert int((kept >= 0).sum()) == count
        for far, into in zip(distance, kept.tolist(), strict=True):
            assert (into >= 0) == (far >= limit) or abs(far - limit) < 1e-5


@pytest.mark.parametrize("case", cases(ContrastScaler.Config()), ids=str)
def test_it_keeps_the_contract(case):
    case()


def test_it_is_installed():
    assert scalers.get("contrast") is ContrastScaler
    assert scalers.provider("contrast").distribution == "tokenflex-template"

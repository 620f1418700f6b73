"""Averages by assignment, against loops over tokens, and affine maps of a pyramid."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Grid, VisualTokens
from tokenflex.ops.assignment import at_every_level, average, mean_of_sources
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.random import RandomScaler
from tokenflex.scalers.stride import StrideScaler

LEADING = st.sampled_from([(), (1,), (3,), (2, 3)])


def drawn(leading, tokens, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*leading, tokens, 4, generator=generator)
    return values, torch.randint(-1, kept, (*leading, tokens), generator=generator)


def looped(values, assignment, kept):
    """Row by row; zeros where a kept token has no source."""
    means = torch.zeros(*values.shape[:-2], kept, values.shape[-1])
    for *item, place in torch.cartesian_prod(*map(torch.arange, means.shape[:-1])).view(-1, means.dim() - 1).tolist():
        sources = values[tuple(item)][assignment[tuple(item)] == place]
        if len(sources):
            means[(*item, place)] = sources.mean(0)
    return means


@given(LEADING, st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_average_is_the_mean_over_sources(leading, tokens, kept, seed):
    values, assignment = drawn(leading, tokens, kept, seed)
    torch.testing.assert_close(average(values, assignment, kept), looped(values, assignment, kept))


def test_gradients_of_averages_go_to_their_sources():
    values, assignment = drawn((2,), 7, 3, 0)
    values.requires_grad_()
    average(values, assignment, 3)[:, 1].sum().backward()
    for view in range(2):
        inside = assignment[view] == 1
        assert torch.equal(values.grad[view].abs().sum(-1) > 0, inside)
        torch.testing.assert_close(values.grad[view].sum(0), torch.full((4,), float(bool(inside.any()))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_in_float32(dtype):
    values, assignment = drawn((2,), 64, 3, 0)
    values = values.to(dtype)
    found = average(values, assignment, 3)
    assert found.dtype == dtype
    exact = average(values.float(), assignment, 3)
    torch.testing.assert_close(found.float(), exact, atol=0, rtol=torch.finfo(dtype).eps)
    assert torch.equal(mean_of_sources(values, assignment, 3), exact.to(dtype))


def test_kept_tokens_without_sources_get_the_mean_of_their_view():
    values, _ = drawn((3,), 4, 2, 0)
    assignment = torch.tensor([[0, 0, -1, 1], [-1, -1, 1, 1], [0, 1, 0, 1]])
    found = mean_of_sources(values, assignment, 2)
    torch.testing.assert_close(found[0], torch.stack([values[0, :2].mean(0), values[0, 3]]))
    torch.testing.assert_close(found[1], torch.stack([values[1].mean(0), values[1, 2:].mean(0)]))
    merged = mean_of_sources(values, assignment, 2, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(merged[0, 0], values[0, :2].mean(0))
    torch.testing.assert_close(merged[0, 1], torch.cat([values[0, 3:], values[1, 2:]]).mean(0))
    torch.testing.assert_close(merged[1], found[2])


def pyramid(scaler, grid, leading=(), views=3):
    generator = torch.Generator().manual_seed(0)
    tokens = VisualTokens(torch.randn(*leading, views, grid.tokens, 6, generator=generator), grid)
    return [scaler.scale(tokens, level) for level in range(scaler.num_levels)]


@pytest.mark.parametrize("scaler", [AveragePoolScaler, StrideScaler, RandomScaler])
@pytest.mark.parametrize("grid", [Grid(8, 8), Grid(7, 5)])
@pytest.mark.parametrize("leading", [(), (2,), (2, 2)])
def test_an_affine_map_is_taken_of_the_finest_level_only(scaler, grid, leading):
    levels = pyramid(scaler.Config().build(), grid, leading)
    affine, seen = torch.nn.Linear(6, 9), []

    def watched(rows):
        seen.append(rows.shape[-2])
        return affine(rows)

    found = at_every_level(levels, watched)
    assert seen == [grid.tokens]
    torch.testing.assert_close(found, affine(torch.cat([level.features for level in levels], dim=-2)))


@pytest.mark.parametrize("grid", [Grid(8, 8), Grid(7, 5), Grid(1, 3)])
@pytest.mark.parametrize("leading", [(), (2,), (2, 2)])
def test_without_the_finest_level_the_next_one_is_mapped_where_windows_nest(grid, leading):
    levels = pyramid(AveragePoolScaler.Config().build(), grid, leading)[:-1]
    affine, seen = torch.nn.Linear(6, 9), []
    found = at_every_level(levels, lambda rows: seen.append(rows.shape[-2]) or affine(rows))
    assert seen == [levels[-1].features.shape[-2]]
    torch.testing.assert_close(found, affine(torch.cat([level.features for level in levels], dim=-2)))


@pytest.mark.parametrize(
    "broken", ["one level is no average", "windows that don't nest", "the finest level drops tokens"]
)
def test_other_pyramids_are_mapped_level_by_level(broken):
    scaler = StrideScaler if "drops" in broken else AveragePoolScaler
    windows = ((3, 2), (2, 2), (1, 1)) if "nest" in broken else ((4, 4), (2, 2), (1, 1))
    levels = pyramid(scaler.Config(windows=windows).build(), Grid(8, 8))
    levels = [replace(levels[0], averages=False), *levels[1:]] if "average" in broken else levels[:-1]
    seen = []
    at_every_level(levels, lambda rows: seen.append(rows.shape[-2]) or rows)
    assert seen == [level.features.shape[-2] for level in levels]

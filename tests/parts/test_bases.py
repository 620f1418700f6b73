"""The bases of scalers: what a method gives is all that is its own."""

import pickle
from dataclasses import dataclass, replace

import pytest
import torch

from tokenflex.contracts import Grid, ScaledTokens, Share, VisualTokens
from tokenflex.errors import ConfigError
from tokenflex.ops.keeping import selected
from tokenflex.scalers import MergingScaler, RatioScaler, SelectionScaler, WindowScaler
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing import check_component

HALVES = (0.25, 0.5, 1.0)


class Norms(SelectionScaler):
    """Scores."""

    def scores(self, image):
        return image.features.float().norm(dim=-1)


class Outwards(SelectionScaler):
    """An order: from the first token on."""

    def order(self, image, count):
        return torch.arange(count, device=image.features.device).expand(*image.features.shape[:-2], count)


class Ends(SelectionScaler):
    """Picks: levels that aren't nested."""

    def picks(self, image, counts):
        first = [count * 7 % (image.grid.tokens - count + 1) for count in counts]
        shape, device = image.features.shape[:-2], image.features.device
        return [
            torch.arange(begin, begin + n, device=device).expand(*shape, n)
            for begin, n in zip(first, counts, strict=True)
        ]


class Runs(MergingScaler):
    """Means of runs of tokens."""

    reads = ("attention",)

    def assignments(self, image, counts):
        places = torch.arange(image.grid.tokens, device=image.features.device)
        return [(places * count // len(places)).expand(image.features.shape[:-1]) for count in counts]


class Doubled(RatioScaler):
    """Features of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RatioScaler.Config):
        weight: Share = 0.5

    def fewer(self, image, counts):
        places = [torch.arange(n, device=image.features.device).expand(*image.features.shape[:-2], n) for n in counts]
        kept = [selected(image, one) for one in places]
        return [replace(one, features=2 * one.features, averages=False) for one in kept]


class Corners(WindowScaler):
    """One token of each window."""

    def scale(self, tokens, level):
        grid = self.layouts(tokens.grid)[level]
        high, wide = self.windows[level]
        at = (torch.arange(grid.rows)[:, None] * high * tokens.grid.cols + torch.arange(grid.cols) * wide).flatten()
        into = torch.full((tokens.grid.tokens,), -1).index_copy(0, at, torch.arange(len(at)))
        return ScaledTokens(tokens.features[..., at, :], into.expand(tokens.features.shape[:-1]), grid, averages=True)


METHODS = (Norms, Outwards, Ends, Runs, Doubled, Corners)


def image(values, grid=None, **more):
    features = torch.tensor(values, dtype=torch.float32)[None, :, None]
    return VisualTokens(features, grid or Grid(1, len(values)), **more)


def kept(scaled):
    return [place for place, into in enumerate(scaled.assignment[0].tolist()) if into >= 0]


@pytest.mark.parametrize("method", METHODS)
def test_the_laws_hold(method):
    check_component(method.Config()).raise_if_bad()


def test_of_equal_scores_the_first_is_kept():
    scaler = Norms.Config(ratios=HALVES).build()
    coarse, middle, finest = scaler.pyramid(image([2, 5, 2, 5, 2, 2, 2, 5]))
    assert (kept(coarse), kept(middle), kept(finest)) == ([1, 3], [0, 1, 3, 7], list(range(8)))
    assert finest.grid == Grid(1, 8)
    assert coarse.features.flatten().tolist() == [5, 5]


def test_groups_become_their_means():
    scaler = Runs.Config(ratios=HALVES).build()
    tokens = image([1, 3, 5, 7, 9, 11, 13, 15])
    assert scaler.pyramid(tokens)[0].features.flatten().tolist() == [4, 12]
    half = replace(tokens, features=tokens.features.bfloat16())
    assert scaler.scale(half, 1).features.dtype == torch.bfloat16


@pytest.mark.parametrize("hook", ["order", "picks", "assignments", "fewer"])
def test_levels_share_one_call_and_it_never_asks_for_all(hook, monkeypatch):
    method = {"order": Outwards, "picks": Ends, "assignments": Runs, "fewer": Doubled}[hook]
    plain, asked = getattr(method, hook), []

    def watched(self, tokens, counts):
        asked.append(counts)
        differentiable = torch.is_grad_enabled()
        assert differentiable is (hook == "fewer")
        assert not torch.is_autocast_enabled("cpu")
        return plain(self, tokens, counts)

    monkeypatch.setattr(method, hook, watched)
    scaler = method.Config(ratios=(0.25, 0.25, 0.5, 0.99, 1.0)).build()
    with torch.autocast("cpu", torch.bfloat16):
        scaler.pyramid(image(range(8)))
        scaler.scale(image(range(8)), 2)
        scaler.scale(image(range(8)), -1)
        scaler.pyramid(image([1]))
    assert asked == ([4, 4] if hook == "order" else [[2, 2, 4], [4]])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_what_is_kept(method):
    scaler, tokens = method.Config().build(), image(range(1, 17), Grid(4, 4))
    tokens = replace(tokens, features=tokens.features.requires_grad_())
    scaled = scaler.scale(tokens, 0)
    scaled.features.sum().backward()
    assert (tokens.features.grad != 0).flatten().tolist() == (scaled.assignment >= 0).flatten().tolist()


def test_a_selection_says_which_tokens_it_keeps():
    with pytest.raises(TypeError, match="Nothing doesn't say which tokens it keeps; give one of scores, order, picks"):
        type("Nothing", (SelectionScaler,), {})
    with pytest.raises(TypeError, match="Outwards has no scores"):
        Outwards.Config().build().scores(image([1]))
    for base in (RatioScaler, MergingScaler, WindowScaler):
        with pytest.raises(TypeError, match="abstract"):
            base.Config().build()


def test_what_is_read_is_declared():
    assert Runs.Config().build().needs == {"attention"}
    assert Norms.Config().build().needs == frozenset()


@pytest.mark.parametrize("method", [*METHODS, SelectionScaler])
def test_a_part_without_settings_of_its_own_builds_itself(method):
    config = method.Config()
    assert type(config).owner is method
    assert pickle.loads(pickle.dumps(config)) == config
    assert method.Config.from_dict(config.to_dict()) == config
    assert method.Config.__qualname__ == f"{method.__qualname__}.Config"


def test_a_part_that_extends_a_part_builds_itself():
    class Mine(AveragePoolScaler):
        """As its parent, under another name."""

    assert type(Mine.Config().build()) is Mine
    assert type(AveragePoolScaler.Config().build()) is AveragePoolScaler
    with pytest.raises(ConfigError, match=r"unknown setting\(s\) \['window'\] for Mine"):
        Mine.Config.from_dict({"window": 1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Norms.Config(ratios=(0.5,)), r"must end with 1\.0"),
        (lambda: Runs.Config(ratios=(0.5, 0.25, 1.0)), "from coarse to fine"),
        (lambda: Doubled.Config(weight=2), r"weight=2\.0 is no share; .* It is a setting of Doubled"),
        (lambda: Corners.Config(windows=((1, 1), (2, 2))), "from coarse to fine"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, message):
    with pytest.raises(ConfigError, match=message):
        make()

"""The laws of scalers."""

import itertools
from dataclasses import replace

import torch

from tokenflex.contracts import Grid, Scaler, VisualTokens
from tokenflex.ops.assignment import mean_of_sources
from tokenflex.testing.bench import GRIDS, NEEDS, Bench, Check, Skip, same, stacked


def _levels(scaler: Scaler) -> range:
    return range(scaler.num_levels)


def _one_view(image: VisualTokens, view: int) -> VisualTokens:
    here = slice(view, view + 1)
    each = {name: getattr(image, name) for name in ("features", "attention", "keys")}
    return replace(image, **{name: tensor if tensor is None else tensor[here] for name, tensor in each.items()})


def one_count_per_level(bench: Bench) -> None:
    """There is one count per level, on every grid."""
    scaler = bench.build()
    assert scaler.num_levels >= 1, f"num_levels is {scaler.num_levels}; at least one level is needed"
    for grid in GRIDS:
        counts = scaler.granularities(grid)
        assert len(counts) == scaler.num_levels, f"{scaler.num_levels} levels, but on {grid} granularities {counts}"


def coarse_to_fine(bench: Bench) -> None:
    """Counts go from coarse to fine, on every grid, between 1 and all tokens."""
    scaler = bench.build()
    for grid in GRIDS:
        counts = list(scaler.granularities(grid))
        assert counts == sorted(counts), f"on {grid} granularities {counts} are not coarse to fine"
        assert min(counts) >= 1, f"on {grid} granularities {counts} keep nothing at a level"


def counts_known_in_advance(bench: Bench) -> None:
    """``layouts`` names as many tokens as ``scale`` gives."""
    scaler = bench.build()
    for grid in GRIDS:
        for level, layout in zip(_levels(scaler), scaler.layouts(grid), strict=True):
            scaled = scaler.scale(bench.image(grid), level)
            promised, count = (layout, layout.tokens) if isinstance(layout, Grid) else (None, layout)
            kept = scaled.features.shape[-2]
            assert kept == count, f"on {grid} level {level} promises {count} tokens and gives {kept}"
            assert scaled.grid == promised, f"on {grid} level {level} promises layout {layout} and gives {scaled.grid}"


def assignment_is_valid(bench: Bench) -> None:
    """Indices of kept tokens or -1, and every kept token comes from somewhere."""
    scaler = bench.build()
    for grid in GRIDS:
        image = bench.image(grid)
        for level in _levels(scaler):
            scaled = scaler.scale(image, level)
            where = f"on {grid}, level {level}"
            expected = tuple(image.features.shape[:-1])
            assert tuple(scaled.assignment.shape) == expected, (
                f"{where} the assignment has shape {tuple(scaled.assignment.shape)}, expected {expected}"
            )
            kept = scaled.features.shape[-2]
            inside = bool(((scaled.assignment >= -1) & (scaled.assignment < kept)).all())
            assert inside, f"{where} the assignment leaves -1..{kept - 1}"
            for view in scaled.assignment:
                used = torch.bincount(view[view >= 0], minlength=kept)
                assert bool((used > 0).all()), f"{where} some kept token has no source in the assignment"


def averages_are_means(bench: Bench) -> None:
    """Tokens are means where the scaler claims it, of crops and of frames."""
    scaler = bench.build()
    claimed = False
    for grid, video in itertools.product(GRIDS, (False, True)):
        image = replace(bench.image(grid), video=video)
        for level in _levels(scaler):
            scaled = scaler.scale(image, level)
            if not scaled.averages:
                continue
            claimed, kept = True, scaled.features.shape[-2]
            where = f"{'frames' if video else 'crops'} on {grid}, level {level}"
            means = mean_of_sources(image.features, scaled.assignment, kept)
            same(scaled.features, means, f"{where}: claimed averages and the means of their sources")
            in_order = kept < grid.tokens or torch.equal(scaled.features, image.features)
            assert in_order, f"{where} keeps every source token, but not in their order"
    if not claimed:
        raise Skip("the scaler never claims averages")


def views_are_independent(bench: Bench) -> None:
    """Three views at once are three views one by one."""
    scaler = bench.build()
    image = bench.image()
    for level in _levels(scaler):
        whole = scaler.scale(image, level).features
        for view in range(image.features.shape[0]):
            alone = scaler.scale(_one_view(image, view), level).features[0]
            same(whole[view], alone, f"level {level}: a view alone and among others")


def batch_equals_singles(bench: Bench) -> None:
    """A stack of images is each of its images."""
    scaler = bench.build()
    images = [bench.image(seed=seed) for seed in (0, 1)]
    for level in _levels(scaler):
        together = scaler.scale(stacked(*images), level)
        for i, image in enumerate(images):
            alone = scaler.scale(image, level)
            same(together.features[i], alone.features, f"level {level}: an image alone and in a batch")
            assert torch.equal(together.assignment[i], alone.assignment), f"level {level}: assignments differ"


def dtype_is_kept(bench: Bench) -> None:
    """bfloat16 in, bfloat16 out, without parameters of another type getting in the way."""
    scaler = bench.build().to(torch.bfloat16)
    image = bench.image()
    image = replace(
        image, features=image.features.bfloat16(), keys=None if image.keys is None else image.keys.bfloat16()
    )
    for level in _levels(scaler):
        dtype = scaler.scale(image, level).features.dtype
        assert dtype == torch.bfloat16, f"level {level} turns bfloat16 into {dtype}"


def repeats_itself(bench: Bench) -> None:
    """The same image twice gives the same tokens twice, whatever the global random state."""
    scaler = bench.build()
    for level in _levels(scaler):
        first, second = (scaler.scale(bench.image(), level).features for _ in range(2))
        same(first, second, f"level {level}: two calls on one image", 0.0)


def input_is_left_alone(bench: Bench) -> None:
    """Features aren't changed in place."""
    scaler = bench.build()
    image = bench.image()
    before = image.features.clone()
    for level in _levels(scaler):
        scaler.scale(image, level)
        assert torch.equal(before, image.features), f"level {level} changes its input in place"


def stays_finite(bench: Bench) -> None:
    """Scaled tokens are finite, also where all tokens are zeros or equal."""
    scaler = bench.build()
    image = bench.image()
    for value in (0.0, 7.0):
        for level in _levels(scaler):
            flat = replace(image, features=torch.full_like(image.features, value))
            finite = bool(scaler.scale(flat, level).features.isfinite().all())
            assert finite, f"level {level} gives NaN or infinity on an image of {value}"


def levels_together_are_levels_alone(bench: Bench) -> None:
    """``pyramid`` gives at every level what ``scale`` gives."""
    scaler = bench.build()
    for grid in GRIDS:
        image = bench.image(grid)
        pyramid = scaler.pyramid(image)
        assert len(pyramid) == scaler.num_levels, f"on {grid} the pyramid has {len(pyramid)} of {scaler.num_levels}"
        for level, together in enumerate(pyramid):
            alone, where = scaler.scale(image, level), f"on {grid}, level {level}: in the pyramid and alone"
            same(together.features, alone.features, where)
            assert torch.equal(together.assignment, alone.assignment), f"{where}: assignments differ"
            assert together.grid == alone.grid, f"{where}: grids {together.grid} and {alone.grid}"


def needs_are_told(bench: Bench) -> None:
    """Only what is declared is read, and only what exists is declared."""
    scaler = bench.build()
    unknown = sorted(scaler.needs - NEEDS)
    assert not unknown, f"needs {unknown}; there are only {', '.join(sorted(NEEDS))}"
    for level in _levels(scaler):
        scaled = scaler.scale(bench.image(), level).features
        same(
            scaler.scale(bench.full_image(), level).features,
            scaled,
            f"level {level}: with and without what isn't needed",
        )


def gradients_flow(bench: Bench) -> None:
    """Back to the features, at every level."""
    scaler = bench.build()
    if not scaler.differentiable:
        raise Skip("the scaler declares differentiable = False")
    for level in _levels(scaler):
        image = bench.image()
        image.features.requires_grad_()
        features = scaler.scale(image, level).features
        assert features.requires_grad, f"level {level} cuts the graph; say differentiable = False if that is meant"
        features.square().sum().backward()
        gradient = image.features.grad
        assert gradient is not None, f"level {level} sends no gradient back"
        assert bool(gradient.abs().sum() > 0), f"level {level} sends no gradient back"


def shares_are_told(bench: Bench) -> None:
    """None, or one per level, up to the whole image."""
    scaler = bench.build()
    shares = scaler.shares
    if not shares:
        return
    assert len(shares) == scaler.num_levels, f"shares {shares} for {scaler.num_levels} levels; give one per level"
    assert list(shares) == sorted(shares), f"shares {shares} are not coarse to fine"
    assert shares[0] > 0, f"shares {shares} leave nothing of an image"
    assert shares[-1] == 1, f"shares {shares} end with {shares[-1]}; the last level is the whole image, 1"


def view_known_in_advance(bench: Bench) -> None:
    """``viewed`` against what ``view`` gives; and an image's view doesn't depend on its batch."""
    scaler = bench.build()
    for grid in GRIDS:
        seen = scaler.image_grids(grid)[0]
        image, viewed = bench.image(seen), scaler.viewed(grid)
        view = scaler.view(image)
        assert len(view) == len(viewed) > 0, f"on {grid} {len(viewed)} entries are promised and {len(view)} shown"
        for entry, (shown, layout) in enumerate(zip(view, viewed, strict=True)):
            where = f"on {grid}, entry {entry} of the view"
            promised, count = (layout, layout.tokens) if isinstance(layout, Grid) else (None, layout)
            kept = shown.features.shape[-2]
            assert kept == count, f"{where} promises {count} tokens and gives {kept}"
            assert shown.grid == promised, f"{where} promises layout {layout} and gives {shown.grid}"
        if not scaler.shares:
            continue  # the view is the levels, and they have checks of their own
        for shown, among in zip(view, scaler.view(stacked(image, bench.image(seen, seed=1))), strict=True):
            same(among.features[0], shown.features, f"the view of an image on {grid}, alone and in a batch")


CHECKS = (
    Check("one-count-per-level", "granularities has one count per level on any grid", one_count_per_level),
    Check("coarse-to-fine", "level 0 keeps fewest tokens, at least one", coarse_to_fine),
    Check("counts-known-in-advance", "layouts says what scale will give", counts_known_in_advance),
    Check("assignment-is-valid", "every source token is assigned or dropped, every kept one has a source",
          assignment_is_valid),
    Check("averages-are-means", "claimed averages are the means of their sources", averages_are_means),
    Check("views-are-independent", "a view's tokens don't depend on the other views", views_are_independent),
    Check("batch-equals-singles", "an image's tokens don't depend on its batch", batch_equals_singles),
    Check("dtype-is-kept", "features keep their type", dtype_is_kept),
    Check("repeats-itself", "the same image gives the same tokens", repeats_itself),
    Check("input-is-left-alone", "nothing is changed in place", input_is_left_alone),
    Check("stays-finite", "constant images give finite tokens", stays_finite),
    Check("levels-together-are-levels-alone", "pyramid gives what scale gives level by level",
          levels_together_are_levels_alone),
    Check("shares-are-told", "shares of pixels go from coarse to fine and end with the whole image", shares_are_told),
    Check("view-known-in-advance", "viewed says what the router will be shown", view_known_in_advance),
    Check("needs-are-told", "what isn't declared as needed changes nothing", needs_are_told),
    Check("gradients-flow", "gradients reach the features", gradients_flow),
)  # fmt: skip

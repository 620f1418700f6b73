"""One row of data for every stock architecture, and the names that others know of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hosts.served import served
from tokenflex import catalog
from tokenflex.contracts import Grid
from tokenflex.hosts.architectures import (
    ARCHITECTURES,
    GRIDS,
    levels_of,
    looks_ahead,
    resizing_of,
    ungroupable,
    unpackable,
)
from tokenflex.hosts.layouts import GridLayout, ImageLayout, TiledLayout
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.hosts.resizing import Resizing
from tokenflex.registry import hosts
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE

sides = st.integers(1, 5)
grids = st.builds(Grid, sides, sides)
runs = st.sampled_from(["whole", "views", "rows"])
marks = {"begin": st.integers(0, 2), "end": st.integers(0, 2), "newline": st.booleans()}
plain = st.builds(GridLayout, grid=grids, views=sides, video=st.booleans(), **marks)
tiled = st.builds(
    TiledLayout, grid=st.builds(lambda side: Grid(side, side), sides), tiles=grids,
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)), most=st.none() | st.integers(1, 9),
)  # fmt: skip


def test_the_catalog_names_what_the_rows_describe():
    assert set(catalog.GRID_HOSTS) == set(GRIDS)
    assert set(catalog.HOSTS) == set(ARCHITECTURES)
    assert set(catalog.HOSTS_SINCE) <= set(ARCHITECTURES)
    assert not catalog.REFUSED_HOSTS.keys() & ARCHITECTURES.keys()


def test_every_row_has_an_adapter_and_a_tiny_host():
    assert ARCHITECTURES.keys() - ZOO.keys() == {"tokenflex_composed"}  # made by tokenflex.compose, and tested there
    assert ZOO.keys() - ARCHITECTURES.keys() <= catalog.REFUSED_HOSTS.keys()
    for name in ARCHITECTURES:
        assert name in hosts.get(name).model_types


@pytest.mark.parametrize("name", ["hunyuan_vl", "gemma3", "exaone4_5", "molmo2", "llava_next", "granite4_vision"])
def test_what_is_asked_of_a_host_is_what_its_row_says(name):
    config, row = served(name).build().config, ARCHITECTURES[name]
    assert (unpackable(config), ungroupable(config)) == (row.packing_refusal, row.grouping_refusal)
    assert (looks_ahead(config), resizing_of(config.model_type)) == (row.looks_ahead, row.resizing)
    made_smaller = isinstance(row.resizing, Resizing)
    assert levels_of(name) == ((row.resizing.levels, row.resizing.setting) if made_smaller else None)


def test_every_refusal_is_a_clause():
    for row in ARCHITECTURES.values():
        resizing = None if isinstance(row.resizing, Resizing) else row.resizing
        told = (resizing, row.attention_refusal, row.packing_refusal, row.grouping_refusal, row.looks_ahead)
        assert all(one[0].islower() and not one.endswith(".") for one in told if one is not None)


def test_of_an_unknown_architecture_nothing_is_refused_but_smaller_images():
    text = type("Text", (), {})
    config = type("Config", (), {"model_type": "new", "get_text_config": lambda self: text()})()
    assert [asked(config) for asked in (unpackable, ungroupable, looks_ahead)] == [None] * 3
    assert "isn't known here" in resizing_of(config.model_type)
    assert levels_of("new") is None


def one_forms(layout: ImageLayout, kept: Grid | int, frames: list[int] | None) -> None:
    views = layout.views if frames is None else len(set(frames))
    count = layout.count(kept, None if frames is None else views)
    assert sum(layout.per_run(kept, frames)) == count
    if layout.canvas(kept) is None:
        order = layout.order(kept, views)
        tokens = views * (kept if isinstance(kept, int) else kept.tokens)
        assert len(order) == count
        assert order.min() >= 0
        assert len(np.unique(order[order < tokens])) == (order < tokens).sum()


@settings(max_examples=40, deadline=None)
@given(plain | tiled, st.data())
def test_counts_runs_and_order_of_a_layout_agree(layout, data):
    side = data.draw(st.integers(1, layout.grid.rows))
    kept = data.draw(st.sampled_from([layout.grid, Grid(side, side), side]))
    frames = None
    if layout.video:
        frames = np.cumsum(
            [0, *data.draw(st.lists(st.integers(0, 1), min_size=layout.views - 1, max_size=layout.views - 1))]
        )
        frames = frames.tolist()
    one_forms(layout, kept, frames)


@settings(max_examples=40, deadline=None)
@given(plain)
def test_what_is_packed_is_unpacked(layout):
    tokens = torch.arange(layout.views * layout.grid.tokens).float()[:, None]
    separators = -1.0 - torch.arange(layout.separators)[:, None]
    table = torch.cat([tokens, separators])
    found, marks = layout.unpack(table[torch.from_numpy(layout.order(layout.grid, layout.views))])
    assert torch.equal(found, tokens.view(layout.views, layout.grid.tokens, 1))
    assert marks is None if not layout.separators else torch.equal(marks, separators)


@settings(max_examples=40, deadline=None)
@given(tiled)
def test_tiles_are_unpacked_from_an_image_that_fills_its_canvas(layout):
    tiles, grid = layout.tiles, layout.grid
    size = (tiles.rows * grid.rows * 7, tiles.cols * grid.cols * 7)
    full = TiledLayout(grid=grid, tiles=tiles, size=size)
    tokens = torch.arange(full.views * grid.tokens).float()[:, None]
    table = torch.cat([tokens, -torch.ones(1, 1)])
    found, none = full.unpack(table[torch.from_numpy(full.order(grid, full.views))])
    assert torch.equal(found, tokens.view(full.views, grid.tokens, 1))
    assert none is None


@settings(max_examples=40, deadline=None)
@given(st.builds(GridLayout, grid=grids, views=st.integers(1, 4), runs=runs), sides, sides)
def test_of_a_smaller_image_every_run_keeps_its_own(full, rows, cols):
    smaller = GridLayout(
        grid=Grid(min(rows, full.grid.rows), min(cols, full.grid.cols)), views=full.views, runs=full.runs
    )
    assert sum(full.per_run_as(smaller)) == full.count(smaller.grid)
    fewer = GridLayout(grid=full.grid, views=full.views + 1)
    assert full.per_run_as(fewer) == (fewer.placeholders,)


def test_an_architecture_of_ones_own_works_by_the_row_it_is_derived_from(monkeypatch):
    class Mine(LlavaNextAdapter):
        model_types = ("mine",)

    tiny = served("llava_next")
    host = tiny.build()
    inputs = tiny.batch(host.config, ((1, AN_IMAGE, 2),))
    plain = LlavaNextAdapter(host).read(inputs)
    monkeypatch.setattr(host.config, "model_type", "mine", raising=False)
    assert LlavaNextAdapter.refusal(host) == "its model_type is 'mine', not one of llava_next, llava_next_video"
    assert Mine.refusal(host) is None
    batch = Mine(host).read(inputs)
    assert [item.layout for item in batch.items] == [item.layout for item in plain.items]
    assert Mine(host).model_type == "mine"

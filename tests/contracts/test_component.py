"""Configs are frozen data, and parts say what they need."""

from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenflex.contracts import Component, ComponentConfig, Grid
from tokenflex.errors import ConfigError
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler


class Sized(Component):
    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        windows: tuple[tuple[int, ...], ...] = ((1, 1),)
        name: str = "x"

    def __init__(self, config: Config, *, dim: int, levels: int = 2) -> None:
        super().__init__(config)
        self.dim, self.levels = dim, levels


def test_parts_get_the_sizes_they_name():
    part = Sized.Config().build(dim=3, grid=Grid(2, 2))
    assert (part.dim, part.levels) == (3, 2)
    assert Sized.Config().build(dim=3, levels=5).levels == 5


def test_missing_sizes_are_named():
    with pytest.raises(ConfigError, match=r"Sized needs the size\(s\) \['dim'\] to be built, got \['grid'\]"):
        Sized.Config().build(grid=Grid(1, 1))


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(FrozenInstanceError):
        Sized.Config().name = "y"
    with pytest.raises(TypeError):
        Sized.Config("y")


@given(st.lists(st.lists(st.integers(1, 9), min_size=1), min_size=1), st.text())
def test_round_trip_through_json_data(windows, name):
    config = Sized.Config(windows=tuple(map(tuple, windows)), name=name)
    assert Sized.Config.from_dict(config.to_dict()) == config
    assert Sized.Config.from_dict({"windows": windows, "name": name}) == config


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match=r"unknown setting\(s\) \['nam'\] for Sized; it knows \['windows', 'name'\]"):
        Sized.Config.from_dict({"nam": 1})


def test_configs_that_could_change_are_refused():
    with pytest.raises(TypeError, match=r"Thawed.Config must be @dataclass\(frozen=True, kw_only=True\)"):

        class Thawed(Component):
            @dataclass(frozen=True)
            class Config(ComponentConfig):
                name: str = "x"

    with pytest.raises(TypeError, match=r"Plain\.Config must extend ComponentConfig"):

        class Plain(Component):
            class Config(ComponentConfig):
                pass


def test_repr_shows_what_differs():
    assert repr(Sized.Config(name="y").build(dim=1)) == "Sized(name='y')"
    assert "windows" not in repr(AveragePoolScaler(AveragePoolScaler.Config()))
    assert "dropout=0.5" in repr(AVGRouter.Config(dropout=0.5).build(dim=8, num_levels=2))


def test_grid():
    assert Grid(3, 4).tokens == 12

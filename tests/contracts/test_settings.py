"""Settings hold to the types their class declares, and nothing but a ConfigError says otherwise."""

import json
from dataclasses import dataclass
from typing import Any, Literal, Optional

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenflex
from tokenflex.contracts import Component, ComponentConfig
from tokenflex.errors import ConfigError
from tokenflex.routers.avg import AVGRouter
from tokenflex.routers.random import RandomRouter
from tokenflex.scalers.average_pool import AveragePoolScaler


class Part(Component):
    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        count: int = 1
        share: float = 0.5
        on: bool = False
        name: str = "x"
        way: Literal["one", "two", 3] = "one"
        limit: int | None = None
        old: Optional[float] = None  # noqa: UP045
        pair: tuple[int, float] = (1, 1.0)
        sizes: tuple[tuple[int, ...], ...] = ()
        either: int | str = 0
        text: "int | None" = None
        anything: Any = None


GOOD = [
    ("count", np.int64(3), 3), ("count", torch.tensor(3), 3), ("count", np.array(3), 3), ("count", -7, -7),
    ("share", 1, 1.0), ("share", np.float32(0.5), 0.5), ("share", torch.tensor(0.25), 0.25), ("share", np.int8(2), 2.0),
    ("on", np.True_, True), ("on", torch.tensor(True), True), ("name", "", ""), ("way", 3, 3), ("way", "two", "two"),
    ("limit", None, None), ("limit", np.uint8(4), 4), ("old", 2, 2.0), ("old", None, None),
    ("pair", [np.int64(2), 3], (2, 3.0)), ("sizes", [[1, 2], [3]], ((1, 2), (3,))),
    ("sizes", ((np.int64(1),),), ((1,),)),
    ("either", "a", "a"), ("either", 3, 3), ("text", 4, 4), ("anything", {"a": 1.5}, {"a": 1.5}),
]  # fmt: skip
BAD = [
    ("count", 1.0), ("count", True), ("count", "1"), ("count", None), ("count", np.float64(1)), ("count", 2**63),
    ("count", torch.tensor([1])), ("count", torch.tensor(1.0)), ("count", np.True_), ("count", np.array([1])),
    ("count", torch.tensor(1, device="meta")),
    ("share", "0.5"), ("share", True), ("share", None), ("share", float("nan")), ("share", float("inf")), ("share", 1j),
    ("share", 10**400), ("share", torch.tensor(float("nan"))), ("share", torch.tensor([0.5])),
    ("share", np.float64("inf")),
    ("on", 1), ("on", 0), ("on", "no"), ("on", None), ("name", 3), ("name", b"x"), ("name", None),
    ("way", "three"), ("way", 3.0), ("way", None), ("limit", 1.5), ("limit", False), ("old", "2"),
    ("pair", (1,)), ("pair", (1, 2, 3)), ("pair", (1.5, 2)), ("pair", 3), ("pair", "12"), ("pair", {1: 2}),
    ("sizes", (1, 2)), ("sizes", ((1.5,),)), ("sizes", None), ("sizes", ((True,),)), ("either", 1.5), ("either", True),
    ("text", "4"), ("text", 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "plain"), GOOD)
def test_plain_values_are_made_of_what_stands_for_them(name, value, plain):
    config = Part.Config(**{name: value})
    found = getattr(config, name)
    assert found == plain
    assert type(found) is type(plain)
    assert Part.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    if name != "anything":
        assert hash(config) == hash(Part.Config(**{name: plain}))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_other_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name}=.* of Part must be "):
        Part.Config(**{name: value})


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=4,
)


@given(st.sampled_from([name for name, _ in BAD]), JUNK)
def test_a_value_is_settled_or_refused(name, value):
    try:
        config = Part.Config(**{name: value})
    except ConfigError:
        return
    assert Part.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(JUNK)
def test_data_is_settings_or_refused(data):
    with pytest.raises(ConfigError):
        Part.Config.from_dict({"unknown": data, 3: data})
    if not isinstance(data, dict):
        with pytest.raises(ConfigError, match="give them by name"):
            Part.Config.from_dict(data)


def test_the_message_names_what_was_expected():
    with pytest.raises(ConfigError, match=r"limit=1.5 of Part must be an integer or None. The default is None."):
        Part.Config(limit=1.5)
    with pytest.raises(ConfigError, match=r"way=9 of Part must be one of 'one', 'two', 3"):
        Part.Config(way=9)
    with pytest.raises(ConfigError, match=r"sizes=5 of Part must be a tuple, each item of it a tuple, each item"):
        Part.Config(sizes=5)
    with pytest.raises(ConfigError, match="pair=5 of Part must be a tuple of an integer, a finite number"):
        Part.Config(pair=5)


def test_names_that_only_a_type_checker_sees_leave_a_config_as_it_is():
    class Other(Component):
        @dataclass(frozen=True, kw_only=True)
        class Config(ComponentConfig):
            size: "NotImported" = 1.5

    assert Other.Config().size == 1.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: tokenflex.policies.get("constant").Config(level=True),
        lambda: tokenflex.policies.get("constant").Config(level=1.5),
        lambda: tokenflex.routers.get("constant").Config(level="finest"),
        lambda: AVGRouter.Config(text_tokens=2.5),
        lambda: AVGRouter.Config(spill=1),
        lambda: AVGRouter.Config(dropout=float("nan")),
        lambda: RandomRouter.Config(seed=0.5),
        lambda: RandomRouter.Config(weights=(1.0, "1")),
        lambda: AveragePoolScaler.Config(windows=((2.0, 2),)),
        lambda: AveragePoolScaler.Config(windows=4),
        lambda: tokenflex.voters.get("quantile").Config(share="0.9"),
    ],
)
def test_built_in_parts_refuse_values_of_other_types(make):
    with pytest.raises(ConfigError):
        make()


def test_every_built_in_default_is_of_its_type():
    for kind in ("scalers", "routers", "voters", "policies"):
        registry = getattr(tokenflex, kind)
        for name in registry.names():
            config = registry.get(name).Config()
            assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config

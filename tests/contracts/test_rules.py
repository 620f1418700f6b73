"""Rules beside the types of settings are asked when settings are made, wherever in a setting they stand."""

from dataclasses import dataclass
from typing import Annotated

import pytest

import tokenflex
from tokenflex.contracts import Component, ComponentConfig, Count, NotNegative, Positive, Rule, Share, one_of
from tokenflex.errors import ConfigError


class Part(Component):
    @dataclass(frozen=True, kw_only=True)
    class Config(ComponentConfig):
        share: Share = 0.5
        weight: NotNegative = 1.0
        heat: Positive = 1.0
        count: Count = 1
        way: Annotated[str, one_of("mean", "add")] = "mean"
        even: Annotated[int, "a note, no rule", Rule(lambda n: n % 2 == 0, "is odd; use an even number.")] = 2
        limit: Share | None = None
        pair: tuple[Count, Count] = (1, 1)
        steps: tuple[tuple[Count, ...], ...] = ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("share", 0), ("share", 1), ("weight", 0), ("heat", 1e-9), ("count", 1), ("way", "add"), ("even", -4),
     ("limit", None), ("limit", 0.0), ("pair", [2, 3]), ("steps", [[1], [2, 3]])],
)  # fmt: skip
def test_values_within_their_rules_stay(name, value):
    config = Part.Config(**{name: value})
    assert Part.Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share", -0.1, r"share=-0\.1 is no share; use a number from 0 to 1\. It is a setting of Part\."),
        ("share", 1.1, r"share=1\.1 is no share; .* The default is 0\.5\."),
        ("weight", -1, r"weight=-1\.0 must be a finite number, 0 or more\."),
        ("heat", 0, r"heat=0\.0 must be a finite number above 0\."),
        ("count", 0, "count=0 must be an integer, 1 or more"),
        ("way", "sum", "way='sum' is none of 'mean', 'add'; use one of them"),
        ("even", 3, "even=3 is odd; use an even number"),
        ("limit", 2.0, r"limit=2\.0 is no share; .* The default is None\."),
        ("pair", (1, 0), r"pair\[1\]=0 must be an integer, 1 or more"),
        ("steps", ((1,), (2, -1)), r"steps\[1\]\[1\]=-1 must be an integer, 1 or more"),
    ],
)
def test_values_against_a_rule_are_refused_by_name_rule_and_owner(name, value, message):
    with pytest.raises(ConfigError, match=message):
        Part.Config(**{name: value})
    with pytest.raises(ConfigError, match=message):
        Part.Config.from_dict({name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share", "0.5", "share='0.5' of Part must be a finite number"),
        ("count", 1.5, "count=1.5 of Part must be an integer"),
        ("limit", "x", "limit='x' of Part must be a finite number or None"),
        ("pair", (1,), "a tuple of an integer, an integer"),
    ],
)
def test_types_come_first(name, value, message):
    with pytest.raises(ConfigError, match=message):
        Part.Config(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("scalers", "average-pool", {"windows": ()}),
        ("scalers", "random", {"windows": ((1, 1), (2, 2))}),
        ("scalers", "resize", {"windows": ((0, 1),)}),
        ("scalers", "resolution", {"shares": (0.5, 0.25, 1.0)}),
        ("scalers", "resolution", {"shares": (0.5, 1.0), "pooling": ((1, 1),)}),
        ("scalers", "resolution", {"view_windows": ()}),
        ("scalers", "stride", {"windows": ((1, 1, 1),)}),
        ("routers", "attention-mass", {"mass": 0.0}),
        ("routers", "reconstruction", {"eps": 0.0}),
        ("voters", "max-detail", {"confidence": 2.0}),
        ("voters", "quantile", {"share": 0.0}),
    ],
)
def test_built_in_settings_are_checked_when_they_are_made(kind, name, settings):
    with pytest.raises(ConfigError):
        getattr(tokenflex, kind).get(name).Config(**settings)

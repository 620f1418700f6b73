"""Every entry point of the distribution is registered and loads."""

import pytest

import tokenflex_selection
from tokenflex import routers, scalers

SCALERS = [
    "cdpruner",
    "dart",
    "divprune",
    "farthest-point",
    "holov",
    "id-selection",
    "mmtok",
    "norm",
    "top-attention",
    "vispruner",
]
ROUTERS = ["effective-rank", "mutual-information"]


@pytest.mark.parametrize(("registry", "name"), [(scalers, n) for n in SCALERS] + [(routers, n) for n in ROUTERS])
def test_is_registered(registry, name):
    assert registry.provider(name).distribution == "tokenflex-selection"
    assert registry.get(name).__name__ in tokenflex_selection.__all__


def test_nothing_else_is_registered():
    ours = [n for r in (scalers, routers) for n in r.names() if r.provider(n).distribution == "tokenflex-selection"]
    assert sorted(ours) == sorted(SCALERS + ROUTERS)
    assert len(tokenflex_selection.__all__) == len(ours)

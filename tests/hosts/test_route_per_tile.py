"""Tiles that lie side by side in one stretch, routed one by one."""

import pytest
import torch

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import ConfigError
from tokenflex.registry import hosts
from tokenflex.testing import check_host
from tokenflex.testing.host_bench import HostBench
from tokenflex.testing.host_checks import CHECKS

SIDE_BY_SIDE = ("internvl", "got_ocr2")


def adapters(name):
    tiny = served(name)
    torch.manual_seed(0)
    host = tiny.build()
    return [hosts.get(name)(host, route_per=per) for per in ("stretch", "tile")], tiny


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_every_tile_is_a_unit(name):
    (runs, tiles), tiny = adapters(name)
    inputs = HostBench(runs, tiny).batch()
    whole, single = runs.encode(runs.read(inputs)), tiles.encode(tiles.read(inputs))
    assert len(single) == sum(len(image.features) for image in whole) > len(whole)
    assert all(len(image.features) == 1 for image in single)
    torch.testing.assert_close(
        torch.cat([image.features for image in single]), torch.cat([image.features for image in whole])
    )
    rows = [image.row for image in whole for _ in image.features]
    assert [image.row for image in single] == rows


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_the_laws_hold_tile_by_tile(name):
    (_, tiles), tiny = adapters(name)
    report = check_host(tiles, tiny)
    report.raise_if_bad()
    assert len(report.named("passed")) >= len(CHECKS) - 3


def test_tiles_of_one_image_get_levels_of_their_own():
    (_, tiles), tiny = adapters("internvl")
    flex = tokenflex.wrap(tiles.host, adapter=tiles, router="constant", voter="mean")
    inputs = HostBench(tiles, tiny).batch()
    count = len(tiles.encode(tiles.read(inputs)))
    decisions = flex.decide(**inputs, level=[i % 5 for i in range(count)])
    assert [one.tokens for one in decisions] == [flex.compressor.scaler.granularities(tiles.grid)[i % 5]
                                                 for i in range(count)]  # fmt: skip
    assert flex.generate(**inputs, level=[i % 5 for i in range(count)], max_new_tokens=2).shape[0] == 3


def test_the_setting_is_saved(tmp_path):
    (_, tiles), _ = adapters("internvl")
    tokenflex.wrap(tiles.host, adapter=tiles, router="constant", voter="mean").save_parts(tmp_path)
    assert tokenflex.load_parts(tmp_path, host=tiles.host).adapter.route_per == "tile"


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_where_nothing_lies_side_by_side_nothing_changes(name):
    (runs, tiles), tiny = adapters(name)
    inputs = HostBench(runs, tiny).batch()
    assert len(tiles.encode(tiles.read(inputs))) == len(runs.encode(runs.read(inputs)))


def test_unknown_units_are_refused():
    tiny = served("internvl")
    with pytest.raises(ConfigError, match="route_per='view'; use 'stretch' or 'tile'"):
        hosts.get("internvl")(tiny.build(), route_per="view")

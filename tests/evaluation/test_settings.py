"""Names of settings, and the models they run."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import tokenflex
from tests.conftest import TEXTS
from tokenflex import scalers
from tokenflex.errors import ConfigError, UnknownComponentError
from tokenflex.evaluation.settings import group_of, parse, rank
from tokenflex.scalers.stride import StrideScaler


def names(flex, *asked):
    return [setting.name for setting in parse(flex, asked)]


def test_names_are_sorted_and_each_comes_once(still):
    asked = ["scaler:stride:1", "router@ratio=0.3", "random", "router", "level:-1", "levels", "scaler:stride", "router"]
    assert names(still, *asked) == [
        *(f"level:{i}" for i in range(5)), "router", "router@ratio=0.3", "random",
        *(f"scaler:stride:{i}" for i in range(5)),
    ]  # fmt: skip
    assert names(still, "level:-2") == ["level:3"]


def test_full_names_say_their_group_and_are_sorted_by_level_not_by_letter():
    given = [
        "scaler:tome:10",
        "scaler:tome:9",
        "level:10",
        "level:9",
        "router",
        "scaler:tome:0@x=1",
        "router@ratio=0.5",
    ]
    assert sorted(given, key=rank) == [
        "level:9", "level:10", "router", "router@ratio=0.5", "scaler:tome:9", "scaler:tome:10", "scaler:tome:0@x=1"
    ]  # fmt: skip
    assert [group_of(name) for name in ("level:3", "router", "router@x=1", "random@seed=1", "scaler:a:0@x=1")] == [
        "level", "router", "budget", "random", "scaler"
    ]  # fmt: skip


def test_budgets(still):
    (setting,) = parse(still, ["router@tokens=100, per=request"])
    assert setting.budget == tokenflex.Budget(tokens=100, per="request")
    assert setting.flex is still
    assert setting.name == "router@tokens=100,per=request"


def test_other_scalers_share_windows_with_the_model(host, batch):
    torch.manual_seed(0)
    flex = tokenflex.wrap(host, scaler=tokenflex.scalers.get("average-pool").Config(windows=((2, 2), (1, 1))))
    found = parse(flex, ["scaler:stride", "scaler:random:0@windows=[[4,4],[1,1]],seed=3", "scaler:average-pool:0"])
    assert [setting.name for setting in found][:3] == ["scaler:average-pool:0", "scaler:stride:0", "scaler:stride:1"]
    by_name = {setting.name: setting for setting in found}
    stride, own = by_name["scaler:stride:0"].flex.compressor.scaler, flex.compressor.scaler
    assert type(stride).__name__ == "StrideScaler"
    assert stride.config.windows == own.config.windows
    random = by_name["scaler:random:0@windows=[[4,4],[1,1]],seed=3"].flex.compressor.scaler
    assert (random.config.windows, random.config.seed) == (((4, 4), (1, 1)), 3)
    inputs = batch(*TEXTS)
    same = by_name["scaler:average-pool:0"].flex
    assert torch.equal(
        same.generate(**inputs, level=0, max_new_tokens=3), flex.generate(**inputs, level=0, max_new_tokens=3)
    )


def test_random_levels_come_from_the_model_s_own_scaler(still, batch):
    (setting,) = parse(still, ["random"])
    assert setting.flex.host is still.host
    assert setting.flex.compressor.scaler is still.compressor.scaler
    inputs = batch(*TEXTS)
    decisions = setting.flex.decide(**inputs)
    assert [d.level for d in decisions] == [d.level for d in setting.flex.decide(**inputs)]
    assert [d.tokens for d in decisions] == [
        still.decide(**inputs, level=[d.level for d in decisions])[i].tokens for i, d in enumerate(decisions)
    ]


class Weighted(StrideScaler):
    """Stride with a weight that somebody would have to train."""

    @dataclass(frozen=True, kw_only=True)
    class Config(StrideScaler.Config):
        pass

    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("levels:3", "isn't known. Use levels, level:N, router"),
        ("level", "isn't known"),
        ("level:5", r"'5' is no level; there are 0 \(fewest tokens\) to 4 \(all\)"),
        ("level:two", "'two' is no level"),
        ("level:1@x=2", "isn't known"),
        ("router@", "write what follows @ as key=value"),
        ("router@ratio", "write what follows @ as key=value"),
        ("router@ratio=-1", r"setting 'router@ratio=-1': ratio=-1.0 must be above 0"),
        ("router@ratio=lots", "setting 'router@ratio=lots'"),
        ("router@share=0.3", r"unknown setting\(s\) \['share'\]"),
        ("random@seat=1", r"unknown setting\(s\) \['seat'\]"),
        ("scaler:stride:7", "'7' is no level"),
        ("scaler:weighted", "has weights, which nobody has trained"),
        ("routers", "isn't known"),
    ],
)
def test_refusals(still, name, message):
    with scalers.temporary("weighted", Weighted), pytest.raises(ConfigError, match=message):
        parse(still, [name])


def test_what_the_page_shows_can_be_run(still):
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    shown = re.findall(r"`((?:levels?|router|random|scaler)[:@\w.=,-]*)`", page)
    shown += [name for command in re.findall(r"--settings ([^-\n`]+)", page) for name in command.split()]
    known = [name for name in shown if "NAME" not in name]
    assert len(parse(still, known)) > 12


def test_unknown_scalers_and_no_settings(still):
    with pytest.raises(UnknownComponentError, match="Did you mean 'stride'"):
        parse(still, ["scaler:strida"])
    with pytest.raises(ConfigError, match="no settings to run"):
        parse(still, [])

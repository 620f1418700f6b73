"""The built-ins keep their contracts, and the report says what it should."""

import subprocess
import sys

import pytest

from tokenflex import registry
from tokenflex.checkpoint import KINDS
from tokenflex.contracts import ComponentConfig
from tokenflex.registry import BUILT_IN
from tokenflex.routers.avg import AVGRouter
from tokenflex.routers.random import RandomRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.resolution import ResolutionScaler
from tokenflex.testing import ConformanceError, cases, check_component

BUILT_INS = [
    kind.get(name).Config()
    for kind in (*KINDS.values(), registry.confidences)
    for name in kind.names()
    if kind.provider(name).distribution == BUILT_IN
]
SETTINGS = [
    AVGRouter.Config(attend="tokens", text_tokens=3),
    AVGRouter.Config(text_tokens=0),
    AVGRouter.Config(rows="pooled"),
    AVGRouter.Config(sees="image"),
    AVGRouter.Config(sees="question"),
    AveragePoolScaler.Config(windows=((3, 5), (3, 2), (1, 2))),
    ResolutionScaler.Config(shares=(0.25, 0.25, 1.0), pooling=((2, 2), (1, 1), (1, 1)), view_windows=((1, 1),)),
    ResolutionScaler.Config(shares=(0.25, 1.0, 1.0), pooling=((1, 1), (2, 2), (1, 1))),
    ResolutionScaler.Config(shares=(1.0,)),
    RandomRouter.Config(weights=(1.0, 0.0, 0.0, 1.0, 2.0), seed=3),
]


@pytest.mark.parametrize("case", [case for config in BUILT_INS + SETTINGS for case in cases(config)], ids=str)
def test_built_ins_keep_their_contract(case):
    case()


@pytest.mark.parametrize("levels", [2, 3])
def test_parts_work_with_fewer_levels(levels):
    for name in ("avg", "constant", "random"):
        check_component(KINDS["router"].get(name).Config(), levels=levels).raise_if_bad()
    for name in ("mean", "position-weighted"):
        check_component(KINDS["voter"].get(name).Config(), levels=levels).raise_if_bad()


def test_report_counts_and_names_skips():
    report = check_component(KINDS["router"].get("constant").Config())
    assert report.ok
    assert str(report).startswith("ConstantRouter: 14 of 15 checks passed\n  skipped: gradients-reach-parameters: the")


def test_unexpected_pass_is_a_failure():
    report = check_component(AveragePoolScaler.Config(), expected_failures={"stays-finite": "an old reason"})
    assert not report.ok
    assert report.named("unexpected pass") == ["stays-finite"]
    with pytest.raises(ConformanceError, match=r"19 of 20 checks passed\n  unexpected pass: stays-finite.*old reason"):
        report.raise_if_bad()


@pytest.mark.parametrize("expected", [{"no-such-check": "because"}, {"stays-finite": " "}])
def test_expected_failures_need_a_check_and_a_reason(expected):
    with pytest.raises(ValueError, match="name no check or give no reason"):
        check_component(AveragePoolScaler.Config(), expected_failures=expected)


def test_configs_of_other_things_are_refused():
    class Other(ComponentConfig):
        owner = object

    with pytest.raises(TypeError, match="object is no Scaler, Router, Voter, Policy"):
        cases(Other())


def test_works_without_pytest():
    script = (
        "import sys; sys.modules['pytest'] = None; from tokenflex.testing import check_component as check\n"
        "from tokenflex.scalers.stride import StrideScaler; print(check(StrideScaler.Config()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "StrideScaler: 20 of 20 checks passed"

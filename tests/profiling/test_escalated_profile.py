"""Escalation in a profile: told as a whole, with the tokens and the work of all its passes."""

import pytest

from tests.conftest import TEXTS
from tokenflex import Escalate
from tokenflex.errors import ConfigError
from tokenflex.profiling import Plan, profile, report

PLAN = Plan(
    levels=[0, 2, 4], answers=(1, 3), runs=1, warm_up=0,
    escalations={"all": Escalate(threshold=1e9, levels=(0, 2)), "one": Escalate(threshold=-1e9)},
)  # fmt: skip


@pytest.fixture(scope="module")
def found(flex, batch):
    return profile(flex, batch(*TEXTS[:2]), PLAN)


def test_all_passes_are_counted(found):
    by_name = {setting.name: setting for setting in found.batches[0].settings}
    every, one = by_name["escalate all"], by_name["escalate one"]
    levels = [by_name[f"level {level}"] for level in (0, 2, 4)]
    assert every.levels == (4, 4)
    assert one.levels == (0, 0)
    assert every.tokens == sum(level.tokens for level in levels)
    assert one.tokens == levels[0].tokens
    assert every.stages == one.stages == {}
    assert every.rest == every.first_token.median
    assert every.prefill.flops > levels[2].prefill.flops
    work = [setting.answers[-1].work.flops for setting in (one, levels[0], levels[2], every)]
    assert work[0] < work[2] < work[3]
    assert [one.setting for one in found.batches[0].comparisons].count("escalate all") == 2


def test_the_page_says_what_is_not_told(found):
    text = report.profile_markdown(found)
    assert "| escalate all |" in text
    assert "Escalation goes through all stages once per pass" in text
    assert found.to_dict()["batches"][0]["settings"][-1]["kind"] == "escalate"


def test_a_threshold_is_needed():
    with pytest.raises(ConfigError, match="has no threshold"):
        Plan(escalations={"x": Escalate()})

"""The sentence that a page opens with says what came out, whatever came out."""

import pytest

from tests.evaluation.tables import made
from tokenflex.evaluation.page import sentence
from tokenflex.evaluation.records import Evaluation
from tokenflex.evaluation.summary import summarise
from tokenflex.pages import Compared, Score, opening
from tokenflex.quickstart import page as quickstart

ROUTER = Score("router", 0.982, 20.0, (0.966, 0.995), 0.38)


@pytest.mark.parametrize(
    ("share", "difference", "interval", "told"),
    [
        (0.384, -0.005, (-0.016, 0.005), "The same score for 38 % of the visual tokens: difference to always-finest "
         "-0.005 [-0.016, +0.005] (95 % interval, 384 questions)."),
        (0.1, -0.242, (-0.29, -0.19), "A lower score for 10 % of the visual tokens: difference to always-finest -0.242 "
         "[-0.290, -0.190] (95 % interval, 384 questions)."),
        (0.5, 0.05, (0.01, 0.09), "A higher score for 50 % of the visual tokens: difference to always-finest +0.050 "
         "[+0.010, +0.090] (95 % interval, 384 questions)."),
        (0.5, -0.05, (-0.2, 0.1), "Perhaps the same score, too few questions to say, for 50 % of the visual tokens: "
         "difference to always-finest -0.050 [-0.200, +0.100] (95 % interval, 384 questions)."),
        (1.2, -0.1, (-0.2, -0.05), "A lower score for no fewer visual tokens (120 %): difference to always-finest "
         "-0.100 [-0.200, -0.050] (95 % interval, 384 questions)."),
        (0.4, -0.01, None, "A lower score, how surely is not known, for 40 % of the visual tokens: difference to "
         "always-finest -0.010 (no interval, 384 questions)."),
        (None, 0.0, (0.0, 0.0), "The same score on questions without images: difference to always-finest +0.000 "
         "[+0.000, +0.000] (95 % interval, 384 questions)."),
    ],
)  # fmt: skip
def test_a_router_beside_the_finest_level(share, difference, interval, told):
    assert opening(ROUTER, Compared(share, difference, interval), questions=384, levels=5) == told


def evaluated(folder, settings, levels=2, count=40):
    columns = {name: ([score] * count, [tokens] * count) for name, (score, tokens) in settings.items()}
    return sentence(summarise(Evaluation(made(folder, columns, levels=levels)), resamples=20))


LEVELS = {"level:0": (0, 2), "level:1": (1, 8)}


def test_the_router_is_what_an_evaluation_opens_with(tmp_path):
    told = evaluated(
        tmp_path, {**LEVELS, "router": (1, 4), "router@ratio=0.3": (0, 2), "escalate@threshold=0.9": (0, 9)}
    )
    assert told.startswith(
        "Perhaps the same score, too few questions to say, for 50 % of the visual tokens: difference"
    )
    assert told.endswith("(95 % interval, 40 questions).")


def test_a_router_that_loses_says_so(tmp_path):
    told = evaluated(tmp_path, {**LEVELS, "router": (0, 2)})
    assert told.startswith("A lower score for 25 % of the visual tokens: difference to always-finest -1.000 [")


def test_without_the_router_a_budget_or_escalation_is_named(tmp_path):
    told = evaluated(tmp_path / "a", {**LEVELS, "router@ratio=0.3": (0, 2)})
    assert "A lower score for 25 % of the visual tokens with router@ratio=0.3: difference" in told
    told = evaluated(tmp_path / "b", {**LEVELS, "escalate@threshold=0.9": (1, 10)})
    assert "for no fewer visual tokens (125 %) with escalate@threshold=0.9: difference" in told


def test_without_a_router_the_coarsest_level_stands_beside_the_finest(tmp_path):
    told = evaluated(tmp_path, LEVELS)
    assert told.startswith("Without a router: a lower score for 25 % of the visual tokens with level:0: difference")


def test_without_the_finest_level_no_difference_is_told(tmp_path):
    told = evaluated(tmp_path / "a", {"level:0": (0, 2), "router": (1, 4)})
    assert told.startswith("Router: score 1.000 [0.912, 1.000] with 4.0 visual tokens per question, 50 % of all")
    assert told.endswith("the finest level was not run, so there is no difference to tell.")
    told = evaluated(tmp_path / "b", {"scaler:stride:0": (1, 4)})
    assert told.startswith("Without a router, scaler:stride:0: score 1.000 [")


def test_one_level_is_nothing_to_choose_from(tmp_path):
    told = evaluated(tmp_path, {"level:0": (1, 8), "router": (1, 8)}, levels=1)
    assert told.startswith(
        "One level, so there is nothing to choose: score 1.000 [0.912, 1.000] with 8.0 visual tokens"
    )


def test_one_question_has_no_interval(tmp_path):
    told = evaluated(tmp_path, {**LEVELS, "router": (0, 2)}, count=1)
    assert told == (
        "A lower score, how surely is not known, for 25 % of the visual tokens: difference to always-finest -1.000 "
        "(no interval, 1 question)."
    )


def quickstarted(**router):
    levels = [{"accuracy": 0.7, "tokens_mean": 4.0}, {"accuracy": 0.98, "tokens_mean": 52.0}]
    return {"levels": levels, "questions": 1536, **({"router": router} if router else {})}


def test_the_quickstart_opens_likewise():
    router = {"accuracy": 0.98, "tokens_mean": 20.0}
    sure = {"minus_finest": -0.004, "minus_finest_ci95": [-0.008, 0.0]}
    told = quickstart.sentence(quickstarted(**router, **sure))
    assert told == (
        "The same accuracy for 38 % of the visual tokens: difference to always-finest -0.004 [-0.008, +0.000] (95 % "
        "interval, 1536 questions)."
    )
    assert "no interval, 1536 questions" in quickstart.sentence(quickstarted(**router))  # of an older version
    assert quickstart.sentence(quickstarted()).startswith("Without a router: a lower accuracy")

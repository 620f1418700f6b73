"""Pieces of HTML: strings from outside stay text, numbers are those of the reply, and nothing is fetched."""

import math

import pytest
import torch

from tests.conftest import image
from tests.demo.pieces import numbers, words
from tests.pages.test_hostile import HOSTILE, asks_nobody
from tokenflex.contracts import Decision
from tokenflex.demo import answering, showing
from tokenflex.demo.answering import Asked, Reply, Side, Timing
from tokenflex.evaluation.drawing import Cells
from tokenflex.markup import readable
from tokenflex.profiling.timing import Times

SCORES = torch.tensor([-1.0, 3.0])


def reply(text="w1", level=1, **given):
    return Reply(text, (Decision(level, scores=SCORES, tokens=3 + level, of=4),), Cells(2, 2, [0, 0, 1, 1]), **given)


def timing():
    return Timing(Side(2, Times((0.004, 0.002, 0.003))), Side(5, Times((0.3, 0.2, 0.4))))


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_stay_text_and_nobody_is_asked(model, text):
    asked = Asked(image(0), text)
    said = reply(text, unknown=(text,))
    pieces = [
        showing.answer(model, asked, said, 0.5, 3, timing()),
        showing.levels(asked, [said, said]),
        showing.conversation(model, asked.image, [(text, said)]),
        showing.message(ValueError(text)),
    ]
    for piece in pieces:
        page = asks_nobody(piece)
        assert flat(readable(text)) in flat(page.text)
        assert page.tags <= {"br", "div", "figcaption", "figure", "h3", "i", "img", "p", "span", "strong", "table",
                             "tbody", "td", "th", "thead", "tr"}  # fmt: skip


def test_an_answer_shows_its_cost_beside_the_finest_level(model):
    page = showing.answer(model, Asked(image(0), "w1"), reply(level=0), 0.5, 3, timing())
    text, told = words(page), numbers(page)
    assert (told["tokens"], told["of"], told["share"]) == (["3"], ["4"], ["75\u00a0%"])
    assert (told["ms"], told["ms-finest"], told["n"]) == (["3.0"], ["300"], ["3"])
    assert (told["new"], told["new-finest"]) == (["2"], ["5"])
    assert (told["level"], told["kept"], told["score"]) == (["0"], ["2"], ["-1.00", "+3.00"])
    assert "On so small a model milliseconds show little" in text
    assert "Within a budget of 50 %: level 0 of 0 to 4. Even the coarsest level costs more" in text


def test_large_models_aren_t_called_small(model, monkeypatch):
    monkeypatch.setattr(showing, "TINY", 1)
    assert "so small a model" not in showing.answer(model, Asked(image(0), "w1"), reply(), 1.0, 3, timing())


def test_what_isn_t_measured_isn_t_told(model):
    asked = Asked(image(0), "w1")
    unmeasured = words(showing.answer(model, asked, reply(), 1.0, 0))
    assert "milliseconds" not in unmeasured.lower()
    assert "No budget: level 1 of 0 to 4." in unmeasured
    assert "milliseconds being measured" in words(showing.answer(model, asked, reply(), 1.0, 3))


def test_an_answer_without_words_says_so(model):
    assert "(nothing)" in showing.answer(model, Asked(image(0), "w1"), reply(""), 1.0, 0)
    assert "Nothing was asked" in showing.conversation(model, None, [])


def test_tiles_have_levels_but_no_grid(model):
    tiles = Reply("w1", tuple(Decision(i, scores=SCORES, tokens=2, of=4) for i in (0, 1)), None)
    text = words(showing.answer(model, Asked(image(0), "w1"), tiles, 1.0, 0))
    assert "levels 0, 1 for the tiles" in text
    assert "no single grid is drawn" in text
    assert "Means over 2 tiles" in text


def test_bars_begin_at_zero_and_share_one_scale():
    bars = showing.bars([-1.0, 3.0, 0.0], [1])
    assert [(bar.left, bar.width, bar.zero) for bar in bars] == [
        (0.0, 25.0, 25.0),
        (25.0, 75.0, 25.0),
        (25.0, 0.0, 25.0),
    ]
    assert [bar.chosen for bar in bars] == [False, True, False]
    assert [bar.text for bar in bars] == ["-1.00", "+3.00", "+0.00"]


@pytest.mark.parametrize("scores", [[-3.0, -1.0], [2.0, 5.0], [0.0, 0.0], [-math.inf, 1.0], [math.nan, -1.0], []])
def test_bars_stay_within_their_track(scores):
    for bar in showing.bars(scores, [0]):
        assert 0 <= bar.left <= bar.left + bar.width <= 100.01
        assert 0 <= bar.zero <= 100


def test_scores_that_are_no_numbers_have_no_bar():
    ruled_out, nothing, one = showing.bars([-math.inf, math.nan, 2.0], [2])
    assert (ruled_out.text, ruled_out.width) == ("ruled out", 0)
    assert (nothing.text, nothing.width) == ("no number", 0)
    assert one.width == 100


def test_the_grid_that_is_shown_is_that_of_the_level(model):
    asked = answering.ask(model, image(1), "w1 w2")
    drawings = {showing.grid(asked.image, one) for one in answering.at_every_level(model, asked)}
    assert len(drawings) == model.levels

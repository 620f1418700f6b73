"""What the page shows is what the library does: the same decisions, the same answers."""

import math

import pytest
import torch

import tokenflex
from tokenflex.contracts import Decision
from tokenflex.demo import answering
from tokenflex.demo.answering import Model, Reply, Turn
from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation.drawing import Cells
from tokenflex.quickstart.hosts import build_small_host
from tokenflex.quickstart.recipe import levels_of_sizes

PROMPT = "user : <image> w1 w2 assistant :"


@pytest.fixture
def asked(model, image):
    return answering.ask(model, image, "  w1 w2 ")


def generated(model, inputs, **choice):
    ids = model.flex.generate(**inputs, **choice, max_new_tokens=model.new_tokens, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return model.processor.decode(new, skip_special_tokens=True).strip()


def budget(share):
    return None if share == 1 else tokenflex.Budget(ratio=share)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.01])
def test_a_reply_is_the_library_s_own(model, asked, image, inputs_of, share):
    inputs = inputs_of(image, PROMPT)
    (decision,) = model.flex.decide(**inputs, budget=budget(share))
    reply = answering.answer(model, asked, share)
    assert (reply.levels, reply.tokens, reply.of) == ((decision.level,), decision.tokens, decision.of)
    assert reply.text == generated(model, inputs, budget=budget(share))
    assert reply.scores == pytest.approx(decision.scores.tolist())
    assert reply.tokens <= max(share * reply.of, min(one.tokens for one in answering.at_every_level(model, asked)))


def test_tighter_budgets_change_the_grid_and_the_numbers(model, asked):
    replies = [answering.answer(model, asked, share) for share in (1.0, 0.6, 0.3, 0.1)]
    tokens = [reply.tokens for reply in replies]
    assert tokens == sorted(tokens, reverse=True)
    assert len(set(tokens)) > 1
    kept = {reply.tokens: reply.kept for reply in replies}
    assert len(set(kept.values())) == len(kept)


def test_the_grid_is_that_of_the_chosen_level(model, asked):
    for level, reply in enumerate(answering.at_every_level(model, asked)):
        rows, cols = model.flex.compressor.scaler.windows[level]
        assert (reply.cells.rows, reply.cells.cols) == (8, 8)
        assert reply.kept == 64 // (rows * cols)
        assert not reply.dropped
        assert reply.cells.into[:cols] == [0] * cols


def test_every_level_is_answered_without_the_router(model, asked, image, inputs_of):
    inputs, replies = inputs_of(image, PROMPT), answering.at_every_level(model, asked)
    assert len(replies) == model.levels == 5
    for level, reply in enumerate(replies):
        (decision,) = model.flex.decide(**inputs, level=level)
        assert (reply.levels, reply.tokens, reply.of) == ((level,), decision.tokens, decision.of)
        assert reply.text == generated(model, inputs, level=level)
        assert reply.scores is None
    ids = model.flex.host.generate(**inputs, max_new_tokens=model.new_tokens, do_sample=False)
    plain = model.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert replies[-1].text == plain.strip()


def test_every_turn_of_a_conversation_is_routed_anew(model, image, inputs_of):
    turns = (Turn("w1 w2", "w3"), Turn("w4", ""))
    reply = answering.answer(model, answering.ask(model, image, "w5 w6", turns))
    prompt = "user : <image> w1 w2 assistant : w3 </s> user : w4 assistant :  </s> user : w5 w6 assistant :"
    inputs = inputs_of(image, prompt)
    (decision,) = model.flex.decide(**inputs)
    assert reply.scores == pytest.approx(decision.scores.tolist())
    assert (reply.levels, reply.tokens) == ((decision.level,), decision.tokens)
    assert reply.text == generated(model, inputs)
    alone = answering.answer(model, answering.ask(model, image, "w1 w2"))
    assert reply.scores != pytest.approx(alone.scores)


def test_both_sides_are_timed_in_turns_on_what_was_answered(model, asked, monkeypatch):
    reply, finest = answering.answer(model, asked, 0.2), answering.at_every_level(model, asked)[-1]
    calls, real = [], model.flex.generate
    monkeypatch.setattr(model.flex, "generate", lambda **given: calls.append(given) or real(**given))
    timing = answering.timed(model, asked, 0.2, runs=2)
    for side, told in ((timing.chosen, reply), (timing.finest, finest)):
        assert len(side.times.seconds) == 2
        assert min(side.times.seconds) > 0
        assert len(told.text.split()) <= side.new_tokens <= model.new_tokens
    sides = ["finest" if call.get("level") == "finest" else call["budget"].ratio for call in calls]
    rounds = [tuple(sides[place : place + 2]) for place in range(0, len(sides), 2)]
    assert len(rounds) == 2 + 1  # one that doesn't count
    assert set(rounds) == {(0.2, "finest"), ("finest", 0.2)}  # each side goes first in some rounds


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_a_share_must_be_one(model, asked, share):
    for call in (answering.answer, answering.timed):
        with pytest.raises(ConfigError, match="more than 0 and at most 1"):
            call(model, asked, share)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty"),
        ("  \n", "the question is empty"),
        ("w" * 2001, "2001 characters; at most 2000"),
        ("w1 \ud800", "no Unicode text"),
        ("w1 <image> w2", "the text that stands for an image"),
    ],
)
def test_questions_that_are_refused(model, image, question, message):
    with pytest.raises(DataError, match=message):
        answering.ask(model, image, question)


def test_more_refusals(model, image, asked):
    with pytest.raises(DataError, match="there is no image yet"):
        answering.ask(model, None, "w1")
    with pytest.raises(DataError, match="the text that stands for an image"):
        answering.ask(model, image, "w1", [Turn("w1", "<image>")])
    with pytest.raises(ConfigError, match="runs=0 measures nothing"):
        answering.timed(model, asked, runs=0)


def test_levels_that_are_sizes_of_the_image_have_the_grid_of_the_smaller_image(image):
    small = build_small_host("qwen2.5-vl", 0, torch.device("cpu"))
    flex = tokenflex.wrap(small.model, scaler=levels_of_sizes((1 / 16, 1 / 4, 1.0)), processor=small.processor).eval()
    model = Model(flex, small.processor, "sizes", 2)
    replies = answering.at_every_level(model, answering.ask(model, image, "which photo"))
    grids = [(reply.cells.rows, reply.cells.cols) for reply in replies]
    assert [rows * cols for rows, cols in grids] == [reply.kept for reply in replies] == [one.tokens for one in replies]
    assert len(set(grids)) == 3


def test_words_without_a_token_are_named(model, image):
    reply = answering.answer(model, answering.ask(model, image, "what w1 is what"))
    assert reply.unknown == ("what", "is")


def test_tiles_that_are_routed_one_by_one_count_together():
    scores = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0]))
    tiles = tuple(Decision(i, scores=one, tokens=3 + i, of=8) for i, one in enumerate(scores))
    reply = Reply("w1", tiles, None)
    assert (reply.levels, reply.tokens, reply.of, reply.scores) == ((0, 1), 7, 16, (2.0, 0.0))
    assert reply.kept is None
    assert not reply.dropped


def test_tokens_that_were_dropped_are_no_cells():
    reply = Reply("w1", (Decision(0, scores=None, tokens=2, of=4),), Cells(2, 2, [0, -1, 1, -1]))
    assert (reply.kept, reply.dropped, reply.scores) == (2, True, None)

"""Answers about faded pictures: what is drawn and asked, that training sees what the library makes, and the whole."""

import json

import numpy as np
import pytest
import torch

from benchmarks import conversation_answers
from benchmarks.fading import exam, host, learning, pictures, questions, routing, settings, tower
from tokenflex.model.loading import fresh
from tokenflex.quickstart.images import INKS


@pytest.fixture(scope="module")
def made():
    return host.seeded(0)


@pytest.fixture(scope="module")
def stock():
    return pictures.stock(0, 24)


def test_a_picture_has_its_name_and_four_digits(stock):
    assert [one.name for one in stock[:3]] == [0, 1, 2]
    for one in stock:
        digits, inks = one.cells[..., 0], one.cells[..., 1]
        assert one.image.size == (64, 64)
        assert {ink: digit for digit, ink in zip(digits.flat, inks.flat, strict=True) if ink < len(INKS)} == one.digits
        assert len(one.digits) == 4


def test_questions_are_made_of_known_words_and_answered_by_the_picture(made, stock):
    rng, known = np.random.default_rng(0), set(questions.words())
    for kind in questions.KINDS:
        for about in range(4):
            asked = questions.ask(rng, stock[:4], kind, about)
            if asked is None:
                continue
            assert {*asked.text.split(), asked.answer} <= known
            if kind == "digit by name":
                _, name, ink = asked.text.split()
                assert pictures.NAMES[stock[about].name] == name
                assert stock[about].digits[list(INKS).index(ink)] == int(asked.answer)
    for kind in questions.KINDS:
        assert questions.ask_absent(rng, stock[:4], kind).answer == questions.ABSENT
    assert exam.last_questions(0, 1, 4)[0].messages(11)[0]["content"][0]["type"] == "text", "that picture is deleted"


def test_training_sees_what_the_library_makes(made, stock):
    model, processor = made
    pyramids = learning.Pyramids(stock, tower.all_seen(model, processor, stock))
    writer = learning.Writer(processor.tokenizer, pyramids)
    prompt = exam.Prompt(tuple(stock[:3]), tuple(questions.Asked("", "picture G red", "3", 0) for _ in range(2)),
                         questions.Asked("", "picture A photo", "cat", 0))  # fmt: skip
    flex, levels = fresh(model, adapter=host.reading_last_turn(model, processor)), (0, 4, 2)
    spliced, _ = flex.prepare(exam.inputs_of(processor, [prompt]), level=levels)
    asked = [*prompt.history, prompt.asked]
    row = writer.row([(i, level, asked[i].text, asked[i].answer) for i, level in enumerate(levels)])
    length = spliced.inputs["input_ids"].shape[1]
    assert row["ids"][:length].tolist() == spliced.inputs["input_ids"][0].tolist()
    assert torch.equal(row["places"][:, :length], spliced.inputs["position_ids"][:, 0])
    loss, right = learning.loss_and_right(model, pyramids, writer.batch([row]))
    assert loss.isfinite()
    assert len(right) == 3


def test_the_truth_raises_the_picture_that_is_asked_about(stock):
    asked = questions.Asked("digit by name", "picture A red", "3", 0)
    prompt = exam.Prompt(tuple(stock[:12]), (asked,) * 11, asked)
    policy = settings.fade(settings.MAIN).build(num_levels=5)
    tokens = torch.tensor([1, 2, 4, 8, 16]).expand(12, -1)
    levels = policy(settings.truth(prompt, 5), tokens)
    assert levels[0] == levels[-1] == 4
    assert tokens[0][levels].sum() <= settings.MAIN * settings.ALL
    assert routing.rows(0, 2)[0]["image"].size == (64, 64)


def test_the_whole_in_small(tmp_path, capsys):
    out, svg = tmp_path / "page.md", tmp_path / "curve.svg"
    assert conversation_answers.main(["--plan", "tiny", "--out", str(out), "--svg", str(svg)]) == 0
    written, told = out.read_text(), json.loads(out.with_suffix(".json").read_text())
    assert written in capsys.readouterr().out
    table = told["runs"][0]["table"]
    assert table["all fine"]["tokens"] == settings.ALL
    assert table["all at 1 tokens"]["tokens"] == len(pictures.NAMES)
    for name, one in table.items():
        if name.endswith("%"):
            assert one["share"] <= int(name.split()[-1].rstrip("%")) / 100
        assert f"| {name} | {one['tokens']:.1f} |" in written
    assert all(len(turns) == 12 for turns in told["runs"][0]["curves"].values())
    assert svg.read_text().count("delete oldest") == 1

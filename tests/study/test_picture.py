"""The picture of one image and two questions."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.study.test_run import PLAN, tiny
from tokenflex.evaluation.questions import Questions
from tokenflex.study import picture, recipe
from tokenflex.study.images import images
from tokenflex.study.rows import single


@pytest.fixture
def flex():
    made = tiny(0)
    torch.manual_seed(0)
    return recipe.model(made.model, recipe.router_settings(PLAN), processor=made.processor).eval(), made.processor


def asked(test, answers=None):
    rows = single([*images(test, 0, 3)], 0)
    if answers is not None:
        for row in rows:
            row["messages"][-1]["content"] = answers
    return Questions(rows)


def test_nothing_right_nothing_shown(flex, test, tmp_path):
    model, processor = flex
    assert not picture.write(model, processor, asked(test, "no such answer"), tmp_path / "study.png")
    assert not [*tmp_path.iterdir()]


def test_two_panels(flex, test, tmp_path, monkeypatch):
    """With every answer taken as right."""
    model, processor = flex
    questions = asked(test)
    monkeypatch.setattr(
        picture.Batch,
        "answers",
        lambda self, setting, places, most, real=picture.Batch.answers: [
            replace(answer, text=questions.questions[answer.place].references[0])
            for answer in real(self, setting, places, most)
        ],
    )
    assert picture.write(model, processor, questions, tmp_path / "study.png")
    with Image.open(tmp_path / "study.png") as made:
        assert made.size == (2 * picture.WIDE + picture.GAP, picture.WIDE + picture.ROOM)

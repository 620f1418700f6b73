"""Conversations for training and single questions for the exam."""

from tokenflex.study.images import READING_KINDS, SCENE_KINDS, images
from tokenflex.study.rows import practice, single


def test_a_conversation_asks_everything_once(train):
    drawn = [*images(train, 0, 10)]
    rows = practice(drawn, 0)
    for image, row in zip(drawn, rows, strict=True):
        said = row["messages"]
        assert [message["role"] for message in said] == ["system", *["user", "assistant"] * len(image.questions)]
        pairs = {
            (one["content"][-1]["text"], other["content"]) for one, other in zip(said[1::2], said[2::2], strict=True)
        }
        assert pairs == {(question.question, question.answer) for question in image.questions}
        assert sum(part["type"] == "image" for message in said[1::2] for part in message["content"]) == 1
        assert said[1]["content"][0] == {"type": "image"}
    assert practice(drawn, 0) == rows
    assert practice(drawn, 1) != rows


def test_every_image_is_asked_both_ways(test):
    drawn = [*images(test, 0, 10)]
    rows = single(drawn, 0)
    assert len(rows) == 20
    for image, scene, reading in zip(drawn, rows[::2], rows[1::2], strict=True):
        assert scene["image"] is reading["image"] is image.image
        assert scene["kind"] in SCENE_KINDS
        assert reading["kind"] in READING_KINDS
        assert len(scene["messages"]) == 3

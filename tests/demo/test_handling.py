"""What buttons give: pieces of HTML in any case, messages instead of tracebacks."""

import io

import pytest
from PIL import Image

from tests.conftest import image
from tests.demo.pieces import numbers
from tokenflex import images
from tokenflex.demo import answering, handling


def bytes_of(image, name="PNG"):
    target = io.BytesIO()
    image.save(target, format=name)
    return target.getvalue()


def test_the_answer_comes_first_and_then_what_it_took(model, image):
    first, second = handling.answered(model, image, "w1 w2", 0.3, 1)
    reply = answering.answer(model, answering.ask(model, image, "w1 w2"), 0.3)
    for piece in (first, second):
        told = numbers(piece)
        assert told["tokens"] == [str(reply.tokens)]
        assert told["of"] == [str(reply.of)]
        assert told["level"] == [str(reply.levels[0])]
        assert told["kept"] == [str(reply.kept)]
        assert told["score"] == [f"{score:+.2f}" for score in reply.scores]
    assert "ms" not in numbers(first)
    assert numbers(second)["n"] == ["1"]
    assert float(numbers(second)["ms"][0]) > 0


def test_without_runs_nothing_is_timed(model, image, monkeypatch):
    monkeypatch.setattr(answering, "timed", None)
    (only,) = handling.answered(model, image, "w1", 1.0, 0)
    assert "tokens" in numbers(only)


def test_all_levels_are_shown_with_their_tokens(model, image):
    told = numbers(handling.at_every_level(model, image, "w1"))
    replies = answering.at_every_level(model, answering.ask(model, image, "w1"))
    assert told["tokens"] == [str(reply.tokens) for reply in replies]


def test_a_conversation_grows_and_keeps_what_was_said(model, image):
    turns, pieces = (), []
    for question in ("w1 w2", "w3"):
        turns, piece = handling.continued(model, image, question, 0.5, turns)
        pieces.append(piece)
    assert [question for question, _ in turns] == ["w1 w2", "w3"]
    assert numbers(pieces[1])["tokens"] == [str(reply.tokens) for _, reply in turns]
    before = [answering.Turn("w1 w2", turns[0][1].text)]
    assert turns[1][1] is not turns[0][1]
    expected = answering.answer(model, answering.ask(model, image, "w3", before), 0.5)
    assert turns[1][1].scores == pytest.approx(expected.scores)
    same, piece = handling.continued(model, image, " ", 0.5, turns)
    assert same is turns
    assert "the question is empty" in piece
    assert len(numbers(piece)["turn"]) == 2


def test_errors_of_ours_are_messages(model, image):
    for piece in (
        *handling.answered(model, None, "w1", 1.0, 3),
        handling.at_every_level(model, None, "w1"),
        handling.continued(model, None, "w1", 1.0, ())[1],
    ):
        assert "there is no image yet" in piece
    (piece,) = handling.answered(model, image, "w1 <image>", 1.0, 3)
    assert "stands for an image" in piece


def test_other_errors_are_logged_and_don_t_tell_more_than_their_kind(model, image, monkeypatch, caplog):
    def fails(**given):
        raise RuntimeError("secret path /etc")

    monkeypatch.setattr(model.flex, "generate", fails)
    (piece,) = handling.answered(model, image, "w1", 1.0, 3)
    assert "The model failed on this question (RuntimeError)" in piece
    assert "secret" not in piece
    assert "secret path" in caplog.text


@pytest.mark.parametrize("name", ["PNG", "JPEG", "BMP"])
def test_uploads_are_read_as_the_library_reads_images(name):
    content = bytes_of(image(1), name)
    found, problem = handling.taken(content)
    assert problem == ""
    assert found.tobytes() == images.decode(content).tobytes()


@pytest.mark.parametrize("content", [b"", b"<script>alert(1)</script>", bytes_of(image(0))[:60], None])
def test_files_that_are_no_images_are_refused(content):
    found, problem = handling.taken(content)
    assert found is None
    assert 'role="alert"' in problem
    assert "<script" not in problem


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    found, problem = handling.taken(bytes_of(Image.new("RGB", (10, 10))))
    assert found is None
    assert "MAX_PIXELS" in problem

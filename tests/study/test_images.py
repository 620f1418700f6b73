"""Images say what is asked of them, and nothing that is asked is missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflex.study.charts import CHARTS, chart
from tokenflex.study.images import (
    CELL,
    CHARACTERS,
    COLOURS,
    INKS,
    KINDS,
    READING_KINDS,
    SCENE_KINDS,
    SIDE,
    Painter,
    images,
    spelled,
)
from tokenflex.study.sources import DRAWINGS

NONE = len(CHARACTERS)


def written(image):
    """The characters of the cells, row by row, left to right."""
    return ["".join(CHARACTERS[c] for c in row if c < NONE) for row in image.cells[..., 0]]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_an_image_has_a_question_about_the_whole_and_one_to_read(train, kind, seed):
    image = Painter(train, seed).draw(kind)
    assert image.image.size == (SIDE, SIDE)
    assert image.image.mode == "RGB"
    kinds = [question.kind for question in image.questions]
    assert set(kinds) <= {*SCENE_KINDS, *READING_KINDS}
    assert kinds.count("type") == 1
    assert any(question.reading for question in image.questions)
    assert [question.answer for question in image.questions if question.kind == "type"] == [kind]
    texts = [question.question for question in image.questions]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_to_be_read_stands_in_the_cells(train, kind, seed):
    """Each in one row, all characters in their order; a number that is asked by its colour in that colour."""
    image = Painter(train, seed).draw(kind)
    lines = written(image)
    for question in image.questions:
        if question.reading:
            answer = question.answer.replace(" ", "")
            assert any(answer in line for line in lines), (question, lines)
        if question.kind == "label":
            ink = INKS.index(question.question.split()[3])
            shown = ["".join(CHARACTERS[c] for c, i in row if i == ink) for row in image.cells]
            assert "".join(shown) == question.answer


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_drawings_subject_fills_its_box(train, seed):
    image = Painter(train, seed).draw("drawing")
    shown = {question.kind: question.answer for question in image.questions}["drawing"]
    found = set(np.unique(image.subject).tolist())
    assert found == {list(DRAWINGS).index(shown), len(DRAWINGS)}
    rows, cols = np.nonzero(image.subject < len(DRAWINGS))
    assert (np.ptp(rows) + 1) * (np.ptp(cols) + 1) == len(rows)
    assert 92 // CELL - 1 <= np.ptp(rows) + 1 <= 114 // CELL + 1


def test_the_same_seed_gives_the_same_images(train):
    one, other = ([*images(train, (3, 1), 10)] for _ in range(2))
    assert [image.image.tobytes() for image in one] == [image.image.tobytes() for image in other]
    assert [image.questions for image in one] == [image.questions for image in other]
    assert [image.kind for image in one] == [*KINDS, *KINDS]
    another = [*images(train, (3, 2), 10)]
    assert all(a.image.tobytes() != b.image.tobytes() for a, b in zip(one, another, strict=True))


@pytest.mark.parametrize("kind", CHARTS)
def test_bars_are_where_they_are_said_to_be(kind):
    for seed in range(5):
        made = chart(kind, np.random.default_rng(seed), COLOURS)
        assert made.image.size == (SIDE, SIDE)
        assert bool(made.bars) == (kind == "bar")
        for name, x, top in made.bars:
            pixel = made.image.getpixel((round(x), min(round(top) + 4, SIDE - 33)))
            assert np.abs(np.subtract(pixel, COLOURS[name])).max() <= 3
            assert top >= 24  # a value fits above it


def test_words_are_spelled():
    assert spelled("OPEN") == "O P E N"

"""Questions of similar length are answered together, whatever their order; every question once."""

import pytest

from tests.conftest import image
from tokenflex.evaluation.order import batches
from tokenflex.evaluation.questions import Questions
from tokenflex.testing.tiny_hosts import tiny_llava_next_processor


def row(i, words, size=None):
    shown = {"image": image(i).resize(size)} if size else {"images": []}
    return {"id": f"q{i}", **shown, "question": " ".join(f"w{j}" for j in range(words)), "answer": "w1"}


ROWS = [row(0, 2, (56, 56)), row(1, 9), row(2, 2, (56, 112)), row(3, 3), row(4, 8, (56, 56)), row(5, 9)]


def test_longest_first_and_images_apart():
    made, questions = tiny_llava_next_processor(), Questions(ROWS)
    places = [place for some in batches(made, questions, 2) for place in some]
    pictured = [place for place in places if questions.sample(place).images]
    assert places == [*pictured, 1, 5, 3]
    lengths = [
        made(text=f"<image> {ROWS[i]['question']}", images=ROWS[i]["image"], return_tensors="pt").input_ids.shape[1]
        for i in pictured
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("size", [1, 4, 6, 9])
def test_every_question_once(size):
    found = batches(tiny_llava_next_processor(), Questions(ROWS), size)
    assert sorted(place for places in found for place in places) == list(range(len(ROWS)))
    assert [len(places) for places in found[:-1]] == [size] * (len(found) - 1)


def test_alone_they_keep_their_order():
    assert batches(None, Questions(ROWS), 1) == [[i] for i in range(len(ROWS))]


def test_equal_lengths_keep_their_order():
    rows = [row(i, 3, (56, 56)) for i in range(5)]
    assert batches(tiny_llava_next_processor(), Questions(rows), 2) == [[0, 1], [2, 3], [4]]


def test_a_image_that_cannot_be_read_is_told_of_later():
    rows = [{**ROWS[0], "image": b"no image"}, *ROWS[1:]]
    assert len(batches(tiny_llava_next_processor(), Questions(rows), 6)) == 1

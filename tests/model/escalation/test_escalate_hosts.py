"""Escalation on hosts of every family: answers are those of the last level, and what is kept is what is read again."""

import pytest
import torch

from tests.hosts.test_every_host import SERVED
from tests.model.escalation.test_escalate import MEASURES, answers, mixed, model, same_as_plain
from tokenflex import Escalate
from tokenflex.testing.zoo.recipe import AN_IMAGE

HOSTS = [
    "llava_next", "llava_onevision", "llava", "internvl", "gemma3", "paligemma", "idefics3", "qwen2_5_vl", "qwen3_vl",
    "qwen3_5", "mistral3", "ovis2", "glm4v", "granite4_vision", "exaone4_5", "lfm2_vl",
]  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", HOSTS)
def test_answers_are_those_of_the_last_level(name, measure, side):
    flex, inputs = model(name, side=side)
    escalate = mixed(flex, inputs, measure)
    out = answers(flex, inputs, escalate, return_dict_in_generate=True)
    assert len({len(d.tried) for d in out.decisions}) > 1, "all rows settle alike"
    plain = same_as_plain(flex, inputs, out)
    assert torch.equal(answers(flex, inputs, escalate), plain.sequences)


LONG = tuple(range(1, 9))
HEADED = (
    (*LONG, AN_IMAGE, 3),
    (4, 5, 6, 7, 8),
    (*LONG, 9, AN_IMAGE, 9, 10, AN_IMAGE, 11),
    (AN_IMAGE, 2),
    (*LONG, 1, AN_IMAGE),
)


def first_confidences(flex, inputs, way):
    """Of every pass of every image."""
    flex.batching = way
    escalate = Escalate(threshold=1e9, levels=(0, 2))
    try:
        out = answers(flex, inputs, escalate, return_dict_in_generate=True, max_new_tokens=1)
    finally:
        flex.batching = "auto"
    return [[t.confidence for t in d.tried[:-1]] for d in out.decisions]


def require_the_same_whether_read_again(name, rows):
    """Rows in groups go on from the words in front of their first image; padded, all is read again."""
    flex, inputs = model(name, rows)
    grouped, padded = (first_confidences(flex, inputs, way) for way in ("grouped", "padded"))
    assert grouped == [pytest.approx(one, abs=1e-4) for one in padded]


@pytest.mark.parametrize("name", HOSTS)
def test_words_in_front_of_images_are_not_read_again(name):
    require_the_same_whether_read_again(name, HEADED)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "ovis2", "paligemma"])
def test_answers_behind_words_that_are_not_read_again(name):
    flex, inputs = model(name, HEADED)
    flex.batching = "grouped"
    try:
        for measure in MEASURES:
            out = answers(flex, inputs, mixed(flex, inputs, measure), return_dict_in_generate=True)
            same_as_plain(flex, inputs, out)
    finally:
        flex.batching = "auto"


@pytest.mark.parametrize("name", sorted(set(SERVED) - {*HOSTS, "janus"}))
def test_so_on_every_other_host(name):
    require_the_same_whether_read_again(name, HEADED[:1])

"""Batches as the processor makes them, and which decision belongs to which question."""

from types import SimpleNamespace

import torch

from tests.conftest import image
from tokenflex.contracts import Decision, Grid
from tokenflex.evaluation.answering import Batch
from tokenflex.evaluation.questions import Questions
from tokenflex.evaluation.settings import Setting
from tokenflex.testing.tiny_hosts import TEMPLATE, tiny_llava_next_processor

ROWS = [
    {"image": image(0), "question": "w1", "answer": "w2"},
    {"images": [image(1), image(2)], "question": "w3 w4 w5", "answer": "w2"},
    {"question": "w6", "answer": "w2"},
]


def batch(processor, shown=()):
    questions = Questions(ROWS)
    return Batch(processor, {place: questions.sample(place) for place in range(len(ROWS))}, shown)


def test_rows_are_padded_on_the_left_and_end_with_the_prompt(processor, still):
    inputs = batch(processor).inputs(still, (0, 1))
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert sorted(inputs["attention_mask"][:, 0].tolist()) == [0, 1]
    assert processor.batch_decode(inputs["input_ids"][:, -4:]) == ["<image> w1 assistant :", "w4 w5 assistant :"]
    assert len(inputs["image_sizes"]) == 3


class Watched:
    """A processor that notes what it is called with."""

    def __init__(self, processor):
        self.processor, self.calls = processor, []
        self.tokenizer, self.batch_decode = processor.tokenizer, processor.batch_decode
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, **given):
        self.calls.append(given)
        return self.processor(**given)


def test_the_processor_is_asked_once_for_all_settings(processor, still):
    watched = Watched(processor)
    made = batch(watched)
    for level in range(3):
        made.answers(Setting(f"level:{level}", "level", still, level=level), [0, 1, 2], 2)
    assert [len(call["text"]) for call in watched.calls] == [2, 1]
    assert watched.calls[1]["images"] is None


def test_a_template_s_beginning_of_sequence_is_not_doubled(still):
    processor = tiny_llava_next_processor()
    for template, expected in ((TEMPLATE, None), ("<s> " + TEMPLATE, False)):
        processor.chat_template = template
        watched = Watched(processor)
        batch(watched).inputs(still, (0,))
        assert watched.calls[0].get("add_special_tokens") is expected


def test_tiles_routed_one_by_one_stay_with_their_question(processor, still):
    """An adapter that routes every tile: two for each image of a made-up host."""

    def generate(**given):
        images = len(given["image_sizes"])
        decisions = tuple(Decision(level=i, scores=None, tokens=10 + i, of=50) for i in range(2 * images))
        ids = torch.cat([given["input_ids"], given["input_ids"][:, -1:]], dim=1)
        return SimpleNamespace(sequences=ids, decisions=decisions)

    def read(inputs):
        return SimpleNamespace(grids=(Grid(2, 2),) * (2 * len(inputs["image_sizes"])))

    flex = SimpleNamespace(generate=generate, device=torch.device("cpu"), adapter=SimpleNamespace(read=read))
    one, two = batch(processor, shown=(0, 1)).answers(Setting("router", "router", flex), [0, 1], 1)
    assert [d.level for d in one.decisions] == [0, 1]
    assert [d.level for d in two.decisions] == [2, 3, 4, 5]
    assert one.cells is two.cells is None  # which tile lies where isn't known here

"""Which tokens are the instruction: the same in training and at inference, never an answer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenflex
from tokenflex.hosts.instruction import instruction_mask
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_tokenizer
from tokenflex.training import ChatDataset, FlexCollator

IMAGE, MARK = 4, (50, 51)


def mask(ids, labels=None, scope="last-turn", marker=MARK, attended=None):
    batch = torch.tensor([ids])
    attention = None if attended is None else torch.tensor([attended])
    targets = None if labels is None else torch.tensor([labels])
    found = instruction_mask(batch, attention, targets, image_token_id=IMAGE, scope=scope, marker=marker)
    return batch[0][found[0]].tolist()


def test_last_turn_of_a_dialogue():
    ids = [1, *MARK, IMAGE, 10, 60, 11, *MARK, 12, 13, 60, 14]
    labels = [-100] * 6 + [11, -100, -100, -100, -100, -100, 14]
    assert mask(ids[:-1]) == [12, 13, 60]
    assert mask(ids, labels) == [12, 13, 60]


def test_prompt_scope_takes_every_turn_but_answers():
    ids = [1, *MARK, IMAGE, 10, 60, 11, *MARK, 12, 60, 14]
    labels = [-100] * 6 + [11, -100, -100, -100, -100, 14]
    assert mask(ids, labels, scope="prompt") == [1, *MARK, 10, 60, *MARK, 12, 60]


def test_without_a_marker_all_text_before_the_last_answer():
    assert mask([1, IMAGE, 10, 11, 12], [-100, -100, -100, 11, -100], marker=()) == [1, 10]


def test_padding_and_markers_inside_answers_do_not_count():
    assert mask([0, 0, *MARK, 9], attended=[0, 0, 1, 1, 1]) == [9]
    assert mask([*MARK, 7, *MARK, 8], [-100, -100, -100, 50, 51, 8]) == [7]


@given(st.lists(st.integers(5, 40), min_size=1, max_size=12), st.lists(st.integers(5, 40), min_size=1, max_size=6))
def test_answers_never_leak_and_training_equals_inference(prompt, answer):
    ids = [*MARK, IMAGE, *prompt]
    labels = [-100] * len(ids) + answer
    assert mask(ids) == mask([*ids, *answer], labels) == prompt


def test_rows_of_a_batch_are_read_alone():
    short, long = [*MARK, 7], [*MARK, 8, *MARK, 9]
    batch = torch.tensor([[*short, 0, 0, 0], long])
    attention = (batch != 0).long()
    found = instruction_mask(batch, attention, None, image_token_id=IMAGE, marker=MARK)
    assert [batch[i][found[i]].tolist() for i in range(2)] == [[7], [9]]


def test_the_router_reads_the_same_words_in_training_and_at_inference(processor):
    """Collated with its answer or prompted without it, a question gets the same scores."""
    from tests.conftest import image

    row = {
        "image": image(0),
        "messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}],
    }
    trained = FlexCollator(processor)([ChatDataset([row])[0]])
    host = tiny_llava_next()
    marker = tiny_tokenizer()("user :")["input_ids"]
    torch.manual_seed(0)
    flex = tokenflex.wrap(host, adapter=LlavaNextAdapter(host, marker=marker)).eval()
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w1 w2"}]}],
        add_generation_prompt=True,
    )
    prompted = processor(images=[image(0)], text=[text], return_tensors="pt")
    with torch.no_grad():
        one, other = flex.scores(flex.encode(trained)), flex.scores(flex.encode(prompted))
    torch.testing.assert_close(one, other)

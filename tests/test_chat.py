"""Conversations get the ids that transformers' apply_chat_template gives them."""

import pytest
from tokenizers.processors import TemplateProcessing

from tests.conftest import image
from tokenflex.chat import prompt_tokens, special_tokens, written
from tokenflex.errors import DataError
from tokenflex.testing.tiny_hosts import TEMPLATE, tiny_llava_next_processor

ALTERNATING = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('roles must alternate') }}{% endif %}" + TEMPLATE
)


def processor(template=TEMPLATE, adds_bos=True):
    """The tiny processor, whose tokenizer begins every text with ``<s>`` if asked to."""
    made = tiny_llava_next_processor()
    made.chat_template = template
    if adds_bos:
        made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.tokenizer.bos_token_id)]
        )
    return made


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [TEMPLATE, "{{ bos_token }} " + TEMPLATE])
def test_ids_are_those_of_apply_chat_template(template, adds_bos):
    made = processor(template, adds_bos)
    content = [{"type": "image", "image": image(0)}, {"type": "text", "text": "w1 w2"}]
    messages = [{"role": "user", "content": content}]
    text = written(made, messages, "row 0", reply=True)
    inputs = made(text=[text], images=[image(0)], return_tensors="pt", **special_tokens(made, [text]))
    expected = made.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert inputs["input_ids"].tolist() == expected["input_ids"]
    assert int((inputs["input_ids"] == 1).sum()) == int(adds_bos or "bos" in template)


def test_conversations_that_a_template_refuses_are_named():
    with pytest.raises(DataError, match=r"row 3: the chat template refuses the conversation .roles must alternate"):
        written(processor(ALTERNATING), [{"role": "assistant", "content": "w1"}], "row 3")


def test_texts_that_begin_differently_cannot_share_a_batch():
    made = processor()
    assert special_tokens(made, ["w1", "w2"]) == {}
    with pytest.raises(DataError, match="begins some conversations of a batch with '<s>'"):
        special_tokens(made, ["<s> w1", "w2"])
    made.tokenizer.bos_token = None
    assert special_tokens(made, ["<s> w1", "w2"]) == {}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_prompt_tokens_are_those_the_processor_writes(count):
    made = tiny_llava_next_processor()
    images = [image(i).resize(((56, 112), (112, 56))[i]) for i in range(count)]
    text = " ".join(["<image>"] * count + ["w1 w2 w3"])
    inputs = made(text=[text], images=images or None, return_tensors="pt", add_special_tokens=False)
    told = prompt_tokens(made, text, [(one.height, one.width) for one in images])
    assert told == inputs["input_ids"].shape[1] + count  # the text's own mark of every image


def test_prompt_tokens_count_words_alone_where_the_processor_cannot_tell():
    made = tiny_llava_next_processor()
    made._get_num_multimodal_tokens = lambda image_sizes: 1 / 0
    assert prompt_tokens(made, "w1 w2", [(56, 56)]) == 2

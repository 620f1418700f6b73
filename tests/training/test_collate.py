"""Labels stand on answers, and nowhere else."""

import pytest
import torch

from tests.test_chat import ALTERNATING
from tests.test_chat import processor as processor_of
from tests.training.conftest import ROWS, turns
from tokenflex.errors import DataError
from tokenflex.testing.tiny_hosts import TEMPLATE, tiny_llava_next_processor
from tokenflex.training import ChatDataset, FlexCollator, MultiGranularityObjective, RGLFObjective

MARKED = (
    "{% for m in messages %}{{ m.role }} : {% if m.role == 'assistant' %}{% generation %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %} </s>{% endgeneration %} {% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image> {% else %}{{ p.text }}{% endif %}{% endfor %} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def supervised(batch, processor, row):
    labels = batch["labels"][row]
    return processor.tokenizer.convert_ids_to_tokens(labels[labels != -100])


@pytest.mark.parametrize("template", [None, MARKED])
def test_labels_are_the_answers_and_their_ends(template):
    processor = tiny_llava_next_processor()
    processor.chat_template = template or processor.chat_template
    dataset = ChatDataset(ROWS)
    batch = FlexCollator(processor)([dataset[i] for i in range(4)])
    assert supervised(batch, processor, 0) == ["w3", "w4", "</s>"]
    assert supervised(batch, processor, 1) == ["w6", "</s>", "w9", "w10", "w11", "</s>"]
    assert supervised(batch, processor, 2) == ["w14", "</s>"]
    assert supervised(batch, processor, 3) == ["w15", "</s>"]


def test_labels_stand_where_the_tokens_are(training_batch):
    labels, ids = training_batch["labels"], training_batch["input_ids"]
    chosen = labels != -100
    assert (labels[chosen] == ids[chosen]).all()
    assert (training_batch["attention_mask"][chosen] == 1).all()


def test_rows_are_padded_on_the_right(training_batch):
    mask = training_batch["attention_mask"]
    assert (mask[:, 0] == 1).all()
    assert (mask[:, -1] == 0).any()


def test_batches_of_text_alone(collator):
    batch = collator([ChatDataset(ROWS)[2]])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_text_is_cut_but_placeholders_never(processor):
    sample = ChatDataset(ROWS)[1]
    whole = FlexCollator(processor)([sample])
    length = whole["input_ids"].shape[1]
    cut = FlexCollator(processor, max_length=length - 3)([sample])
    assert cut["input_ids"].shape == cut["labels"].shape == (1, length - 3)
    assert (cut["labels"] == whole["labels"][:, : length - 3]).all()
    with pytest.raises(DataError, match=r"row 1 \(id 'b'\).*beyond max_length=20; raise it to"):
        FlexCollator(processor, max_length=20)([sample])


def test_templates_that_rewrite_earlier_turns_are_refused():
    processor = tiny_llava_next_processor()
    processor.chat_template = (
        "{{ messages|length }} {% for m in messages %}{% for p in m.content %}{{ p.text }} {% endfor %}{% endfor %}"
    )
    sample = ChatDataset([{"messages": turns("w1", "w2", "w3", "w4")}])[0]
    with pytest.raises(DataError, match="row 0: the chat template writes earlier turns differently"):
        FlexCollator(processor)([sample])


BOS = "{{ bos_token }} "


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [TEMPLATE, BOS + TEMPLATE, MARKED, BOS + MARKED])
def test_ids_are_those_of_apply_chat_template(template, adds_bos):
    """Above all one beginning of sequence, where template and tokenizer both write it."""
    processor = processor_of(template, adds_bos)
    dataset = ChatDataset(ROWS)
    batch = FlexCollator(processor)([dataset[i] for i in range(4)])
    for row, sample in enumerate(dataset[i] for i in range(4)):
        images = iter(sample.images)
        messages = [
            {**m, "content": [{**p, "image": next(images)} if p["type"] == "image" else p for p in m["content"]]}
            for m in sample.messages
        ]
        expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
        assert batch["input_ids"][row][batch["attention_mask"][row] != 0].tolist() == expected
    assert supervised(batch, processor, 0) == ["w3", "w4", "</s>"]
    assert supervised(batch, processor, 3) == ["w15", "</s>"]


@pytest.mark.parametrize("template", [TEMPLATE, BOS + TEMPLATE, MARKED])
def test_conversations_that_begin_with_the_assistant(template):
    processor = processor_of(template)
    greeting = [{"role": "assistant", "content": "w3 w4"}, *turns("w1", "w5 w6")]
    plain = [{"role": "assistant", "content": "0 w4"}]
    dataset = ChatDataset([{"messages": greeting}, {"image": ROWS[0]["image"], "messages": [*greeting, *plain]}])
    batch = FlexCollator(processor)([dataset[0], dataset[1]])
    assert supervised(batch, processor, 0) == ["w3", "w4", "</s>", "w5", "w6", "</s>"]
    assert supervised(batch, processor, 1) == ["w3", "w4", "</s>", "w5", "w6", "</s>", "<unk>", "w4", "</s>"]
    assert supervised(FlexCollator(processor)([ChatDataset([{"messages": plain}])[0]]), processor, 0)[1:] == [
        "w4",
        "</s>",
    ]


@pytest.mark.parametrize("mark", ["", "{% if false %}{% generation %}{% endgeneration %}{% endif %}"])
def test_conversations_that_the_template_refuses_are_named(mark):
    sample = ChatDataset([{"messages": [{"role": "assistant", "content": "w1"}]}])[0]
    with pytest.raises(DataError, match=r"row 0: the chat template refuses the conversation .roles must alternate"):
        FlexCollator(processor_of(ALTERNATING + mark))([sample])


def test_the_default_of_several_templates():
    several, one = tiny_llava_next_processor(), tiny_llava_next_processor()
    several.chat_template = {"default": TEMPLATE, "other": "w1"}
    sample = ChatDataset(ROWS)[1]
    assert FlexCollator(several)([sample])["labels"].equal(FlexCollator(one)([sample])["labels"])
    several.chat_template = {"other": "w1"}
    with pytest.raises(DataError, match="has no chat template"):
        FlexCollator(several)


def test_processors_without_a_template_are_refused():
    processor = tiny_llava_next_processor()
    processor.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        FlexCollator(processor)


def test_a_blank_image_for_batches_without_any(processor, fresh):
    """Where parameters are sharded all processes must run the vision tower; the loss stays the same."""
    collator = FlexCollator(processor, always_image=True)
    dataset = ChatDataset(ROWS)
    text = collator([dataset[2]])
    assert len(text["input_ids"]) == 2
    assert len(text["pixel_values"]) == 1
    assert bool((text["labels"][1] == -100).all())
    assert len(collator([dataset[0], dataset[2]])["input_ids"]) == 2
    flex = fresh()
    plain = flex(**FlexCollator(processor)([dataset[2]]), objective=MultiGranularityObjective("joint"))
    blank = flex(**text, objective=MultiGranularityObjective("joint"))
    assert blank.levels == (0, 1, 2, 3, 4)
    torch.testing.assert_close(blank.loss, plain.loss)
    blank.loss.backward()
    assert all(p.grad is not None for p in flex.host.model.multi_modal_projector.parameters())
    assert bool(flex(**text, objective=RGLFObjective()).loss.isfinite())

"""The collator with the stock processor of every served architecture: labels exactly on the answers."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BatchFeature

import tokenflex
from tests.conftest import image
from tests.hosts.served import served
from tests.training.processors import NAMED, processor
from tests.training.words import word_processor
from tokenflex.errors import DataError
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.training import ChatDataset, FlexCollator, FlexTrainer, FlexTrainingArguments
from tokenflex.training.expanded import cut

NEEDS_IMAGES = ("got_ocr2", "paligemma", "pp_chart2table")
"""Processors that refuse batches without images."""
ONE_IMAGE = ("got_ocr2",)
IGNORES_TEXT = ("shieldgemma2",)
"""Their processor writes prompts of its own, whatever the text says."""
IMAGE = {"type": "image"}
ANSWERS = ["a cat", "green\n user", "red 1 2"]


def text(words):
    return {"type": "text", "text": words}


def turns(*pairs):
    rows = [[("user", list(asked)), ("assistant", [text(answer)])] for asked, answer in pairs]
    return [{"role": role, "content": content} for row in rows for role, content in row]


def small(number):
    return image(number).resize((64, 48))


def made(name):
    served(name)
    try:
        return processor(name)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")


def read(processor, batch, row):
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


ROWS = [
    {"image": small(0), "messages": turns(([IMAGE, text("what?")], ANSWERS[0]), ([text("and?")], ANSWERS[2]))},
    {"messages": turns(([text("red")], ANSWERS[1]))},
    {"images": [small(1), small(2)],
     "messages": turns(([text("is"), IMAGE, text("this?")], ANSWERS[0]), ([text("and"), IMAGE], ANSWERS[0]))},
]  # fmt: skip
EXPECTED = ["a cat</s>red 1 2</s>", "green\n user</s>", "a cat</s>a cat</s>"]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_labels_are_the_answers(name):
    made_of = made(name)
    samples = ChatDataset(ROWS)
    if name in IGNORES_TEXT:
        with pytest.raises(DataError, match="doesn't hand the conversations' texts to its tokenizer"):
            FlexCollator(made_of)([samples[0]])
        return
    rows = [0] if name in ONE_IMAGE else [0, 2] if name in NEEDS_IMAGES else [0, 1, 2]
    batch = FlexCollator(made_of)([samples[row] for row in rows])
    labels, ids = batch["labels"], batch["input_ids"]
    for i, row in enumerate(rows):
        assert read(made_of, batch, i) == EXPECTED[row]
    assert (labels[labels != -100] == ids[labels != -100]).all()
    assert (batch["attention_mask"][labels != -100] == 1).all()
    if name in NEEDS_IMAGES:
        with pytest.raises(DataError, match="refuses row 1"):
            FlexCollator(made_of)([samples[1]])


@pytest.mark.parametrize("name", ["idefics3", "mistral3", "gemma3", "internvl", "qwen2_vl", "llava_onevision"])
def test_inputs_are_those_of_apply_chat_template(name):
    """With all that the processor makes of images: tiles, masks, types of tokens."""
    made_of, sample = processor(name), ChatDataset(ROWS)[2]
    images = iter(sample.images)
    messages = [
        {**m, "content": [{**p, "image": next(images)} if p["type"] == "image" else p for p in m["content"]]}
        for m in sample.messages
    ]
    expected: BatchFeature = made_of.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    batch = FlexCollator(made_of)([sample])
    assert set(batch) == {*expected, "labels"}
    for key, value in expected.items():
        assert batch[key].equal(value), key


WORDS = st.text("ab12 \n.é", max_size=6)
ODD = st.sampled_from(
    ["</s>", "<row_1_col_1>", "<fake_token_around_image>", "[IMG_END]", "</img>", "assistant\n", "\n\n"]
)
TEXTS = st.lists(WORDS | ODD, min_size=1, max_size=3).map("".join)
ASKED = st.tuples(st.integers(0, 2), TEXTS, st.booleans())
ROUND = st.tuples(ASKED, TEXTS.map(lambda words: "a" + words))


@pytest.mark.parametrize("name", ["idefics3", "mistral3", "gemma3", "internvl", "idefics2", "qwen3_vl", "molmo2"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_labels_are_the_answers_whatever_they_say(name, data):
    """Also words that processors write themselves, several images a turn, or none."""
    made_of, rows = made(name), []
    for _ in range(data.draw(st.integers(1, 2))):
        rounds, count, pairs = data.draw(st.lists(ROUND, min_size=1, max_size=3)), 0, []
        for (images, words, before), answer in rounds:
            shown = [IMAGE] * images
            pairs.append(((*shown, text(words)) if before else (text(words), *shown), answer))
            count += images
        rows.append({"images": [small(i).resize((32, 24)) for i in range(count)], "messages": turns(*pairs)})
    batch = FlexCollator(made_of)([ChatDataset(rows)[i] for i in range(len(rows))])
    for i, row in enumerate(rows):
        answers = [m["content"][0]["text"] for m in row["messages"] if m["role"] == "assistant"]
        assert read(made_of, batch, i) == "".join(f"{answer}</s>" for answer in answers)


@pytest.mark.parametrize(("name", "mark"), [("idefics3", "<image>"), ("gemma3", "<boi>"), ("qianfan_ocr", "<image>")])
def test_placeholders_in_a_text_are_refused(name, mark):
    pairs = (([IMAGE, text("what?")], f"it says {mark}, a cat"),)
    row = {"id": "x", "image": small(0), "messages": turns(*pairs)}
    with pytest.raises(DataError, match=rf"row 0 \(id 'x'\).*has '{mark}', which stands for an image"):
        FlexCollator(processor(name))([ChatDataset([row])[0]])


def test_processors_that_change_the_words_are_refused():
    made_of = processor("llava")

    class Shouting(type(made_of)):
        def __call__(self, images=None, text=None, **options):
            return super().__call__(images=images, text=[one.replace("cat", "CAT") for one in text], **options)

    made_of.__class__ = Shouting
    with pytest.raises(DataError, match="row 0: the processor changes the conversation's text in other places"):
        FlexCollator(made_of)([ChatDataset(ROWS)[0]])


def test_slow_tokenizers_are_refused():
    made_of = processor("llava")
    fast = made_of.tokenizer

    class Slow:
        def __call__(self, *args, **options):
            return BatchFeature(dict(fast(*args, **options)))

        def __getattr__(self, name):
            return getattr(fast, name)

    made_of.tokenizer = Slow()
    with pytest.raises(DataError, match=r"Slow doesn't tell which characters.* Use a fast tokenizer"):
        FlexCollator(made_of)([ChatDataset(ROWS)[1]])


def test_lists_of_images_in_the_form_the_processor_takes():
    """Rows of images as apply_chat_template gives them; a flat list where only that is taken."""
    made_of = processor("llava")

    class Flat(type(made_of)):
        def __call__(self, images=None, text=None, **options):
            if images and isinstance(images[0], list):
                raise ValueError("a flat list, please")
            return super().__call__(images=images, text=text, **options)

    samples = [ChatDataset(ROWS)[i] for i in range(3)]
    nested = FlexCollator(made_of)(samples)
    made_of.__class__ = Flat
    flat = FlexCollator(made_of)(samples)
    assert all(flat[key].equal(value) for key, value in nested.items())


def test_cutting_never_takes_words_of_a_image():
    """Tags around placeholders count as well: without its end an image is none."""
    made_of = processor("internvl")
    row = {"image": small(0), "messages": turns(([text("a " * 3), IMAGE], "a cat"))}
    sample = ChatDataset([row])[0]
    whole = FlexCollator(made_of)([sample])
    end = int((whole["input_ids"][0] == made_of.tokenizer.convert_tokens_to_ids(NAMED["end_image_token"])).nonzero()[0])
    assert FlexCollator(made_of, max_length=end + 1)([sample])["input_ids"].shape[1] == end + 1
    with pytest.raises(DataError, match="an image's placeholders reach beyond"):
        FlexCollator(made_of, max_length=end)([sample])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), st.data())
def test_words_are_found_where_they_are_or_not_at_all(words, data):
    """What is said to be sure is true, whatever the processor writes."""
    written = [data.draw(st.text("abc", max_size=4)) for _ in words[1:]]
    expanded, begins = words[0], [0]
    for more, word in zip(written, words[1:], strict=True):
        begins.append(len(expanded) + len(more))
        expanded += more + word
    found = cut("|".join(words), expanded, "|")
    assert found is not None
    for sure, at, begin, word in zip(found.sure, found.at, begins, words, strict=True):
        assert not (sure and word) or at == begin
    for (first, last), sure, word in zip(found.plain, found.sure, words, strict=True):
        if sure and word:
            ((begin, end),) = found.moved((first, last))
            assert expanded[begin:end] == word
        elif word:
            with pytest.raises(DataError, match="in several places"):
                found.moved((first, last))


WITH_WORDS = {
    "idefics3": lambda tokenizer: transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        tokenizer, image_seq_len=16),
    "mistral3": lambda tokenizer: transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(patch_size=4, size={"longest_edge": 64}), tokenizer, patch_size=2,
        spatial_merge_size=2, image_token="<image>", image_break_token="<break>", image_end_token="</img>"),
    "gemma3": lambda tokenizer: transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": 16, "width": 16}), tokenizer, image_seq_length=16),
    "internvl": lambda tokenizer: transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, max_patches=3), tokenizer,
        transformers.InternVLVideoProcessor(), image_seq_length=16),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_WORDS)
def test_a_step_of_stage_2(name, tmp_path):
    """The processor's batches train the host: the loss is finite, and gradients reach every group of the stage."""
    host, made_of = served(name).build(), word_processor(WITH_WORDS[name])
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    rows = [
        {"image": small(0), "messages": turns(([IMAGE, text("w1 w2")], "w3 w4"))},
        {"messages": turns(([text("w5")], "w6"))},
        {"images": [small(1), small(2)], "messages": turns(([text("w7"), IMAGE, IMAGE], "w8"), ([text("w1")], "w9"))},
    ]
    batch = FlexCollator(made_of)([ChatDataset(rows)[i] for i in range(3)])
    assert [read(made_of, batch, i) for i in range(3)] == ["w3 w4 </s>", "w6 </s>", "w8 </s> w9 </s>"]
    args = FlexTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=3,
                                 save_strategy="no", disable_tqdm=True, logging_steps=1, warmup_steps=0)  # fmt: skip
    trainer = FlexTrainer(flex, args, stage=2, train_dataset=ChatDataset(rows), data_collator=FlexCollator(made_of))
    before = {key: value.clone() for key, value in flex.host.named_parameters()}
    result = trainer.train()
    assert torch.tensor(result.training_loss).isfinite()
    changed = {key for key, value in flex.host.named_parameters() if not torch.equal(value, before[key])}
    names = {id(p): key for key, p in flex.host.named_parameters()}
    for group in ("vision_tower", "projector", "language_model"):
        assert any(names[id(p)] in changed for p in flex.adapter.parameter_groups()[group]), group

"""Answers against ``generate`` called by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import tokenflex
from tokenflex import Budget
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex_lmms_eval import options
from tokenflex_lmms_eval.answering import Answerer
from tokenflex_lmms_eval.samples import Sample

WHOLE = options.parse({"max_new_tokens": 6}, 6)
IMAGES = (1, 0, 2, 1, 1)
DECIDERS = (
    {},
    {"level": 0},
    {"level": -1},
    {"budget": Budget(ratio=0.3)},
    {"budget": Budget(tokens=60)},
    {"budget": Budget(tokens=90, per="request")},
    {"budget": Budget(weight=0.2)},
)


@pytest.fixture(scope="module")
def samples(image):
    """One, none, two, one and one image; texts of several lengths."""
    return [
        Sample(
            f"sample {i}",
            tuple(image(10 * i + j) for j in range(count)),
            (
                {
                    "role": "user",
                    "content": [*[{"type": "image"}] * count, {"type": "text", "text": " ".join(["w3"] * (1 + 2 * i))}],
                },
            ),
        )
        for i, count in enumerate(IMAGES)
    ]


def by_hand(flex, processor, sample, **asked):
    """(new ids, decisions) of one sample."""
    words = sample.messages[0]["content"][-1]["text"]
    text = f"user : {'<image> ' * len(sample.images)}{words} assistant : "
    inputs = processor(text=[text], images=[list(sample.images)] if sample.images else None, return_tensors="pt")
    output = flex.generate(
        **inputs, **{"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True} | asked
    )
    return output.sequences[0, inputs["input_ids"].shape[1] :], output.decisions


@pytest.mark.parametrize("decider", DECIDERS, ids=str)
def test_a_batch_gives_what_generate_gives_one_by_one(flex, processor, samples, decider):
    answers = Answerer(flex, processor, **decider)(samples, WHOLE)
    for sample, answer in zip(samples, answers, strict=True):
        ids, decisions = by_hand(flex, processor, sample, **decider)
        assert answer.ending.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer.ending.tokens == len(ids)
        assert answer.levels == tuple(decision.level for decision in decisions)
        assert answer.visual_tokens == sum(decision.tokens for decision in decisions)
        assert answer.finest_tokens == sum(decision.of for decision in decisions)
        words = len(sample.messages[0]["content"][-1]["text"].split()) + 4  # user : ... assistant :
        assert answer.input_tokens == answer.visual_tokens + words


def test_the_finest_level_is_the_plain_host(flex, processor, samples):
    for sample, answer in zip(samples, Answerer(flex, processor, level=-1)(samples, WHOLE), strict=True):
        ids, _ = by_hand(flex, processor, sample, level=-1)
        text = f"user : {'<image> ' * len(sample.images)}{sample.messages[0]['content'][-1]['text']} assistant : "
        inputs = processor(text=[text], images=list(sample.images) or None, return_tensors="pt")
        expected = flex.host.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert torch.equal(ids, expected)
        assert answer.ending.text == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_texts_that_end_an_answer(flex, processor, samples):
    answerer = Answerer(flex, processor)
    whole = answerer(samples, WHOLE)
    stop = whole[0].ending.text.split()[2]
    cut = answerer(samples, options.parse({"max_new_tokens": 6, "until": stop}, 6))
    assert {answer.ending.stopped for answer in cut} == {"until", "length"}
    for before, after in zip(whole, cut, strict=True):
        assert after.ending.text == before.ending.text.partition(stop)[0].strip()
        assert (after.ending.stopped == "until") == (stop in before.ending.text)
        assert after.ending.tokens <= before.ending.tokens
        assert (after.levels, after.input_tokens) == (before.levels, before.input_tokens)


def test_nothing_is_generated_after_such_a_text(flex, processor, samples, monkeypatch):
    lengths, generate = [], type(flex).generate

    def watched(*args, **kwargs):
        output = generate(*args, **kwargs)
        lengths.append(output.sequences.shape[1] - kwargs["input_ids"].shape[1])
        return output

    monkeypatch.setattr(type(flex), "generate", watched)
    (whole,) = Answerer(flex, processor)(samples[:1], WHOLE)
    stop = whole.ending.text.split()[1]
    (cut,) = Answerer(flex, processor)(samples[:1], options.parse({"max_new_tokens": 6, "until": stop}, 6))
    assert lengths == [6, cut.ending.tokens]
    assert cut.ending.tokens < 6


def test_batches_are_padded_on_the_left(flex, processor, samples):
    mask = Answerer(flex, processor).inputs(samples[2:4])["attention_mask"]
    assert mask[1, 0] == 0
    assert torch.equal(mask, mask.sort(-1).values)


def test_the_end_token_ends_a_row_and_no_other(flex, processor, samples):
    ids, _ = by_hand(flex, processor, samples[0])
    ends = tokenflex.wrap(tiny_llava_next())
    ends.load_state_dict(flex.state_dict())
    ends.generation_config.eos_token_id = [2, int(ids[2])]
    answers = Answerer(ends, processor)(samples, WHOLE)
    assert (answers[0].ending.tokens, answers[0].ending.stopped) == (3, "eos")
    for sample, answer in zip(samples, answers, strict=True):
        alone = by_hand(ends, processor, sample)[0]
        assert answer.ending.tokens == len(alone)
        assert answer.ending.text == processor.tokenizer.decode(alone, skip_special_tokens=True).strip()
    assert "length" in {answer.ending.stopped for answer in answers}


def test_sampling_and_beams(flex, processor, samples):
    hot = options.parse({"max_new_tokens": 6, "temperature": 5.0}, 6)
    answerer = Answerer(flex, processor)
    torch.manual_seed(0)
    first, second = answerer(samples, hot), answerer(samples, hot)
    assert [a.ending.text for a in first] != [a.ending.text for a in second]
    beams = options.parse({"max_new_tokens": 6, "num_beams": 3}, 6)
    expected, _ = by_hand(flex, processor, samples[0], num_beams=3)
    (answer,) = answerer(samples[:1], beams)
    assert answer.ending.text == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()


@pytest.mark.parametrize("written", [False, True])
def test_one_token_begins_the_prompt(flex, processor, samples, written):
    """Whether the template writes it or the tokenizer adds it."""
    own = copy.deepcopy(processor)
    own.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    own.chat_template = ("<s> " if written else "") + processor.chat_template
    for part in (samples[:1], samples[1:2]):
        ids = Answerer(flex, own).inputs(part)["input_ids"]
        assert (ids == 1).sum() == 1
        assert ids[0, 0] == 1


def test_images_take_the_type_of_the_host(processor, samples):
    flex = tokenflex.wrap(tiny_llava_next().bfloat16())
    answerer = Answerer(flex, processor, level=1)
    batch = answerer.inputs(samples[:1])
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert batch["input_ids"].dtype == torch.long
    assert len(answerer(samples, WHOLE)) == len(samples)


def test_tiles_that_are_routed_one_by_one_belong_to_their_sample(flex, processor, samples, monkeypatch):
    answerer = Answerer(flex, processor)
    assert answerer._units(samples[2:4], 3) == [2, 1]
    read = flex.adapter.read
    monkeypatch.setattr(flex.adapter, "read", lambda inputs: replace(read(inputs), grids=read(inputs).grids * 2))
    assert answerer._units(samples[2:4], 6) == [4, 2]

"""Where the user's last turn begins, from templates of many kinds and tokens that depend on what stands before."""

import logging

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tokenflex
from tokenflex.errors import ConfigError
from tokenflex.hosts import turns
from tokenflex.hosts.instruction import instruction_mask, markers
from tokenflex.hosts.llava_next import LlavaNextAdapter
from tokenflex.hosts.turns import turn_markers
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor

PARTS = (
    "{% for p in m.content %}{% if p.type == 'image' %}<image>\n{% else %}{{ p.text }}{% endif %}{% endfor %}"
)  # fmt: skip
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n" + PARTS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "vicuna": "A chat between a user and an assistant. {% for m in messages %}{% if m.role == 'user' %}USER: "
    + PARTS + " {% else %}ASSISTANT: " + PARTS + "</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "instruct": "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] " + PARTS + " [/INST]{% else %} " + PARTS
    + "</s>{% endif %}{% endfor %}",
    "gemma": "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n" + PARTS
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "texts only": "{% for m in messages %}{{ m.role.upper() + ': ' + m.content + ' ' }}{% endfor %}",
}  # fmt: skip
SPECIAL = ["<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bos>"]
TEXT = [
    "A chat between a user and an assistant. USER: what is this? ASSISTANT: a cat </s>USER: and where? ASSISTANT:",
    "[INST] what colour has it? [/INST] red user assistant model USER ASSISTANT",
] * 4


def tokenizer(kind):
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    if kind == "metaspace":
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [chr(c) for c in range(33, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def conversation(words, plain):
    """Three turns; the last one, with an image, asks ``words``."""
    shown = [] if plain else [{"type": "image"}]

    def turn(role, text, parts=()):
        return {"role": role, "content": text if plain else [*parts, {"type": "text", "text": text}]}

    earlier = [turn("user", "what is this?", shown), turn("assistant", "a cat")]
    return [*earlier, turn("user", words, shown)]


@pytest.mark.parametrize("kind", ["metaspace", "bytes"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_is_found(name, kind):
    made = tokenizer(kind)
    made.chat_template = TEMPLATES[name]
    marker = turn_markers(made)
    assert marker
    text = made.apply_chat_template(conversation("what colour has it?", name == "texts only"), tokenize=False)
    ids = torch.tensor([made(text, add_special_tokens=False)["input_ids"]])
    image = made.convert_tokens_to_ids("<image>")
    mask = instruction_mask(ids, None, None, image_token_id=image, marker=marker)
    read = made.decode(ids[mask].tolist()).strip()
    assert read.startswith("what colour has it?"), read
    assert "cat" not in read
    assert "this" not in read


def test_templates_that_do_not_tell_give_no_marker():
    made = tokenizer("bytes")
    assert turn_markers(made) == ()
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert turn_markers(made) == ()
    made.chat_template = "{{ raise_exception('no') }}"
    assert turn_markers(made) == ()
    assert turn_markers(object()) == ()


def two_turns(processor, second):
    from tests.conftest import image

    text = f"user : <image> w1 w2 w3 assistant : w4 </s> user : {second} assistant :"
    return dict(processor(images=[image(0)], text=[text], return_tensors="pt"))


def words_read(flex, inputs):
    (instruction,) = flex.encode(inputs).instructions
    table = flex.get_input_embeddings().weight
    return [int((table == row).all(-1).nonzero()[0]) for row in instruction.embeddings]


def test_wrap_with_a_processor_reads_the_last_turn(tmp_path):
    processor = tiny_llava_next_processor()
    host = tiny_llava_next()
    flex = tokenflex.wrap(host, processor=processor)
    expected = processor.tokenizer("w7 w8 assistant :")["input_ids"]
    inputs = two_turns(processor, "w7 w8")
    assert words_read(flex, inputs) == expected
    assert words_read(tokenflex.wrap(host), inputs) != expected
    flex.save_parts(tmp_path)
    assert words_read(tokenflex.load_parts(tmp_path, host=host), inputs) == expected
    tokenflex.wrap(host).save_parts(tmp_path)
    assert words_read(tokenflex.load_parts(tmp_path, host=host, processor=processor), inputs) == expected


def test_an_own_marker_is_kept():
    processor, host = tiny_llava_next_processor(), tiny_llava_next()
    adapter = LlavaNextAdapter(host, marker=(9,))
    assert tokenflex.wrap(host, adapter=adapter, processor=processor).adapter.marker == ((9,),)
    prompt = LlavaNextAdapter(host, scope="prompt")
    assert tokenflex.wrap(host, adapter=prompt, processor=processor).adapter.marker == ()


def test_what_is_read_is_said_once(caplog):
    turns._say_that_all_is_read.cache_clear()
    host, processor = tiny_llava_next(), tiny_llava_next_processor()
    with caplog.at_level(logging.WARNING, logger="tokenflex"):
        tokenflex.wrap(host, processor=processor)
        tokenflex.wrap(host, router="constant", voter="mean")
        assert not caplog.records
        tokenflex.wrap(host), tokenflex.wrap(host)
    (said,) = caplog.records
    assert "read all text of the prompt" in said.getMessage()
    with caplog.at_level(logging.WARNING, logger="tokenflex"):
        processor.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        tokenflex.wrap(host, processor=processor)
    assert "doesn't show where a user's turn begins" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 2


def test_one_marker_or_several():
    assert markers(()) == ()
    assert markers([1, 2]) == ((1, 2),)
    assert markers([[1, 2], [3], []]) == ((1, 2), (3,))
    for wrong in ("ab", [1, "a"], [[1.5]], [[True]]):
        with pytest.raises(ConfigError, match="give the ids of the prompt tokens"):
            markers(wrong)

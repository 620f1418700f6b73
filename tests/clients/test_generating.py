"""Ways in which clients call a FlexModel: as assistant, compiled, quantised, streamed, with settings of its own."""

import copy
import threading

import pytest
import torch
from transformers import AutoModelForImageTextToText, QuantoConfig, TextIteratorStreamer
from transformers.generation import utils

import tokenflex
from tests.hosts.served import served
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.testing.zoo.recipe import AN_IMAGE

PROMPT = "user : <image> w1 assistant :"
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def other():
    return tokenflex.wrap(tiny_llava_next(seed=3), router="constant", voter="mean")


def test_a_host_is_assisted(host, other, batch):
    inputs = batch(PROMPT)
    expected = host.generate(**inputs, **GREEDY)
    assert torch.equal(host.generate(**inputs, **GREEDY, assistant_model=other), expected)


@pytest.mark.parametrize("level", [0, "finest"])
def test_a_flex_model_is_assisted(flex, other, batch, level):
    """By a plain host or another FlexModel, which reads as many visual tokens as the first."""
    inputs = batch(PROMPT)
    expected = flex.generate(**inputs, level=level, **GREEDY)
    for assistant in (other, other.host):
        assert torch.equal(flex.generate(**inputs, level=level, **GREEDY, assistant_model=assistant), expected)


def test_settings_of_ones_own_come_as_one_configuration(flex, batch, monkeypatch):
    """transformers won't take options beside a configuration for long, and warns."""
    warned = []
    monkeypatch.setattr(utils.logger, "warning_once", lambda text, *_: warned.append(text))
    inputs, own = batch(PROMPT), flex.generation_config
    expected = flex.generate(**inputs, level=0, **GREEDY)
    flex.generation_config = copy.deepcopy(own)
    try:
        found = flex.generate(**inputs, level=0, **GREEDY)
        longest = flex.generate(**inputs, level=0, do_sample=False, max_length=inputs["input_ids"].shape[1] + 6)
        flex.generation_config.max_new_tokens = 2
        short = flex.generate(**inputs, level=0, do_sample=False)
    finally:
        flex.generation_config = own
    assert torch.equal(found, expected)
    assert torch.equal(longest, expected)
    assert torch.equal(short, expected[:, :-4])
    assert [text for text in warned if "generation_config" in text] == []


def test_streamed_from_a_thread(flex, batch, processor):
    inputs = batch(PROMPT)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    options = {**inputs, **GREEDY, "level": 0, "streamer": streamer}
    thread = threading.Thread(target=lambda: flex.generate(**options))
    thread.start()
    text = "".join(streamer)
    thread.join()
    answer = flex.generate(**inputs, level=0, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    assert text == processor.tokenizer.decode(answer)


@pytest.mark.slow
def test_compiled_as_a_whole():
    """What is compiled is the host; a batch is read as before."""
    tiny = served("llava")
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean").eval()
    inputs = tiny.batch(flex.host.config, ((1, AN_IMAGE, 2),))
    compiled = torch.compile(flex, backend="eager")
    with torch.no_grad():
        expected = flex(**inputs, level=0).logits
        assert torch.allclose(compiled(**inputs, level=0).logits, expected, atol=1e-5)
    torch.compiler.reset()


def test_quantised_by_quanto(batch, tmp_path):
    pytest.importorskip("optimum.quanto", reason="comes with the extra [test]")
    tiny_llava_next().save_pretrained(tmp_path)
    host = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QuantoConfig(weights="int8"))
    flex = tokenflex.wrap(host, router="constant", voter="mean").eval()
    inputs = batch(PROMPT)
    with torch.no_grad():
        assert torch.equal(flex(**inputs, level="finest").logits, host(**inputs).logits)
        states = flex.base_model(**inputs, level=0).last_hidden_state
        expected = flex(**inputs, level=0, align="input").logits
    assert torch.allclose(flex.get_output_embeddings()(states)[:, -3:], expected[:, -3:], atol=1e-4)
    assert flex.generate(**inputs, level=0, **GREEDY).shape[1] > inputs["input_ids"].shape[1]

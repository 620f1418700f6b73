"""The endpoint answers as the model itself does; OpenAI's own client asks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from tests.serving.server.conftest import NAME, WAIT, direct, part, question, until

EXTRA = {"level": 1}


def ask(client, messages, new=8, **options):
    return client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=new, **options)


def told(answer):
    usage = answer.usage
    return answer.choices[0].message.content, usage.prompt_tokens, usage.visual_tokens, usage.visual_tokens_full


def streamed(client, messages, new=8, **options):
    options = {"stream": True, "stream_options": {"include_usage": True}} | options
    chunks = list(ask(client, messages, new, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    return (text, usage.prompt_tokens, usage.visual_tokens, usage.visual_tokens_full), chunks


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ({}, {}),
        ({"level": 1}, {"level": 1}),
        ({"level": "finest"}, {"level": -1}),
        ({"level": [0]}, {"level": 0}),
        ({"budget": {"ratio": 0.3}}, {"budget": {"ratio": 0.3}}),
        ({"budget": 0.5}, {"budget": 0.5}),
    ],
)
def test_images_whole_and_streamed(start, small, drawn, said, choice):
    client, extra = start(), {"extra_body": {"tokenflex": said}}
    for image, text in zip(drawn[:2], ("which photo", "how many"), strict=True):
        expected = direct(small, text, image, **choice)
        messages = question(text, image)
        assert told(ask(client, messages, **extra)) == expected
        assert streamed(client, messages, **extra)[0] == expected


def test_text_alone(start, small):
    client = start()
    expected = direct(small, "which wash")
    assert told(ask(client, question("which wash"))) == expected
    assert told(ask(client, [{"role": "user", "content": "which wash"}])) == expected
    assert streamed(client, question("which wash"))[0] == expected
    assert expected[2:] == (0, 0)
    assert told(ask(client, question("which wash"), extra_body={"tokenflex": {"level": 1}})) == expected


@pytest.mark.parametrize(("detail", "choice"), [("low", {"level": 0}), ("auto", {}), ("high", {"level": -1})])
def test_detail_is_a_level(start, small, drawn, detail, choice):
    client = start()
    answer = ask(client, question("which wash", drawn[0], detail=detail))
    assert told(answer) == direct(small, "which wash", drawn[0], **choice)


def test_details_of_several_images(start, small, drawn):
    client = start()
    content = [part(drawn[0], "low"), part(drawn[1], "high"), {"type": "text", "text": "how many"}]
    answer = ask(client, [{"role": "user", "content": content}])
    assert told(answer) == direct(small, "how many", *drawn[:2], level=[0, -1])
    content[1] = part(drawn[1])
    answer = ask(client, [{"role": "user", "content": content}], extra_body={"tokenflex": {"budget": {"ratio": 0.3}}})
    levels = answer.tokenflex["levels"]
    assert levels[0] == 0
    assert told(answer) == direct(small, "how many", *drawn[:2], level=levels)
    flex, processor = small
    inputs = processor(text=["<image> <image> how many "], images=drawn[:2], return_tensors="pt")
    assert levels[1] == flex.decide(**inputs, budget={"ratio": 0.3})[1].level


def history(drawn, count):
    """A user shows an image per turn, and is answered."""
    messages = []
    for image in drawn[:count]:
        messages += question("which photo", image)
        messages.append({"role": "assistant", "content": "cat"})
    return messages


def test_a_conversations_images_share_a_budget(start, small, drawn):
    client, shared = start(), {"tokens": 60, "step": 1, "recall": 0.0}
    found = []
    for count in (1, 2, 3):
        messages = [*history(drawn, count), *question("how many")]
        answer = ask(client, messages, extra_body={"tokenflex": {"conversation": shared}})
        again = ask(client, messages, extra_body={"tokenflex": {"conversation": shared}})
        assert told(answer) == told(again), "whoever answers, the same images have the same levels"
        assert answer.usage.visual_tokens <= 60
        found.append(answer.tokenflex["levels"])
    assert all(levels == sorted(levels) for levels in found)
    assert found[2][0] < found[0][0], "the first image has faded"
    more = ask(
        client, [*history(drawn, 3), *question("which wash")], extra_body={"tokenflex": {"conversation": shared}}
    )
    assert more.tokenflex["levels"] == found[2], "another question, the same prefix"


def test_a_server_may_share_by_itself(start, drawn):
    client = start(conversation=60)
    messages = [*history(drawn, 3), *question("how many")]
    assert ask(client, messages).usage.visual_tokens <= 60
    finest = ask(client, messages, extra_body={"tokenflex": {"level": -1}}).usage
    assert finest.visual_tokens == finest.visual_tokens_full > 60


def test_a_prompt_that_fits_only_as_it_is_shortened(start, small, drawn):
    client, text = start(), "how many " * 225
    _, length, used, full = direct(small, text.strip(), drawn[0], new=1, level=0)
    new = 512 - length
    assert length - used + full + new > 512
    for level in ({"level": 0}, {"budget": {"ceiling": 0}}):
        answer = ask(client, question(text.strip(), drawn[0]), new, extra_body={"tokenflex": level})
        assert told(answer) == direct(small, text.strip(), drawn[0], new=new, level=0)
    with pytest.raises(openai.BadRequestError, match="the model's context has 512") as caught:
        ask(client, question(text.strip(), drawn[0]), new, extra_body={"tokenflex": {"level": -1}})
    assert caught.value.code == "context_length_exceeded"


def test_the_form_of_an_answer(start, drawn):
    client = start()
    answer = ask(client, question("which photo", drawn[0]), new=3)
    usage = answer.usage
    assert (answer.object, answer.model, answer.choices[0].message.role) == ("chat.completion", NAME, "assistant")
    assert answer.choices[0].finish_reason == ("length" if usage.completion_tokens == 3 else "stop")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.visual_tokens <= usage.visual_tokens_full
    (text, *_), chunks = streamed(client, question("which photo", drawn[0]), 3)
    assert text == answer.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == answer.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    *_, last = ask(client, question("which photo", drawn[0]), 3, stream=True)
    assert last.usage is None
    assert last.choices[0].finish_reason


def test_a_conversation_that_goes_on(start, small, drawn):
    """What the client was given can be handed back as it is."""
    client = start()
    messages = question("which photo", drawn[0])
    first = ask(client, messages).choices[0].message
    further = ask(client, [*messages, first.model_dump(), {"role": "user", "content": "how many"}])
    assert further.usage.prompt_tokens > 0
    assert further.usage.visual_tokens > 0


class Held:
    """Holds the model's first call until it is released, and notes how many rows every call has."""

    def __init__(self, flex, monkeypatch):
        self.entered, self.released, self.rows, self.inner = threading.Event(), threading.Event(), [], flex.generate
        monkeypatch.setattr(flex, "generate", self)

    def __call__(self, **options):
        self.rows.append(len(options["input_ids"]))
        if len(self.rows) == 1:
            self.entered.set()
            assert self.released.wait(WAIT)
        return self.inner(**options)


def test_what_waits_is_answered_together(start, small, drawn, monkeypatch):
    client, held = start(wait=0.001), Held(small[0], monkeypatch)
    with ThreadPoolExecutor(6) as pool:
        pool.submit(ask, client, question("which wash"))
        assert held.entered.wait(WAIT)
        asked = [pool.submit(ask, client, question("which photo", image)) for image in drawn[:4]]
        other = pool.submit(ask, client, question("which photo", drawn[4]), extra_body={"tokenflex": EXTRA})
        until(lambda: len(start.engine.batcher._waiting) == 5)
        held.released.set()
        answers = [told(one.result()) for one in asked]
        assert told(other.result()) == direct(small, "which photo", drawn[4], level=1)
    assert sorted(held.rows[:3]) == [1, 1, 4]
    assert answers == [direct(small, "which photo", image) for image in drawn[:4]]


def test_too_many_at_a_time(start, small, monkeypatch):
    client, held = start(requests=1), Held(small[0], monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, question("which wash"))
        assert held.entered.wait(WAIT)
        with pytest.raises(openai.RateLimitError, match="is answering 1 requests, as many as it takes") as caught:
            ask(client, question("which wash"))
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "overloaded"
        held.released.set()
        assert told(first.result()) == direct(small, "which wash")
    assert told(ask(client, question("which wash"))) == direct(small, "which wash")


def test_a_flood_gets_answers_or_is_told_to_come_again(start, small, drawn):
    client, expected = start(requests=4, batch=2), direct(small, "which photo", drawn[0])

    def one(i):
        try:
            return told(ask(client, question("which photo", drawn[0])))
        except openai.RateLimitError:
            return None

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(one, range(48)))
    assert set(answers) <= {expected, None}
    assert expected in answers
    until(lambda: "tokenflex_requests_open 0.0" in httpx.get(f"{start.url}/metrics").text)
    assert one(0) == expected


def broken(flex, monkeypatch, bad):
    """The model fails where a row says ``bad``."""
    inner = flex.generate

    def generate(**options):
        if (options["input_ids"] == bad).any():
            raise RuntimeError("a secret of the model")
        return inner(**options)

    monkeypatch.setattr(flex, "generate", generate)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_harms_no_other(start, small, drawn, monkeypatch, stream):
    flex, processor = small
    client = start(wait=0.001)
    broken(flex, monkeypatch, processor.tokenizer.convert_tokens_to_ids("navy"))
    with ThreadPoolExecutor(6) as pool:
        good = [pool.submit(ask, client, question("which photo", image)) for image in drawn[:4]]
        bad = pool.submit(ask, client, question("which navy", drawn[4]), stream=stream)
        with pytest.raises(openai.InternalServerError, match="The model failed on this request") as caught:
            bad.result()
        assert "secret" not in str(caught.value)
        for one, image in zip(good, drawn, strict=False):
            assert told(one.result()) == direct(small, "which photo", image)


def test_who_leaves_is_answered_no_further(start, small, monkeypatch):
    """Rows of a client that has left end; the next request needn't wait for them."""
    client, held = start(requests=2), Held(small[0], monkeypatch)
    ended = threading.Event()
    inner = held.inner

    def generate(**options):
        options["min_new_tokens"] = 200
        output = inner(**options)
        held.made = output.sequences.shape[1] - options["input_ids"].shape[1]
        ended.set()
        return output

    held.inner = generate
    body = {"model": NAME, "messages": question("which wash"), "max_tokens": 200}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{start.url}/v1/chat/completions", json=body, timeout=0.5)
    assert held.entered.wait(WAIT)
    until(lambda: "tokenflex_requests_open 0.0" in httpx.get(f"{start.url}/metrics").text)
    held.released.set()
    assert ended.wait(WAIT)
    assert held.made < 200
    held.inner = inner
    assert told(ask(client, question("which wash"))) == direct(small, "which wash")


def test_how_words_are_chosen(start, small, drawn, monkeypatch):
    client, seen = start(), []
    inner = small[0].generate
    monkeypatch.setattr(small[0], "generate", lambda **options: (seen.append(options), inner(**options))[1])
    messages = question("which photo", drawn[0])
    sampled = [told(ask(client, messages, temperature=1.5, top_p=0.9, seed=seed)) for seed in (3, 3, 4, 5, 6)]
    assert sampled[0] == sampled[1]
    assert len(set(sampled)) > 1
    assert (seen[0]["do_sample"], seen[0]["temperature"], seen[0]["top_p"], seen[0]["top_k"]) == (True, 1.5, 0.9, 0)
    assert told(ask(client, messages, temperature=0)) == direct(small, "which photo", drawn[0])
    assert seen[5]["do_sample"] is False
    state = torch.random.get_rng_state()
    ask(client, messages, temperature=1.0, seed=1)
    assert torch.random.get_rng_state().equal(state)


def test_strings_that_end_an_answer(start, small, drawn):
    client = start()
    whole = direct(small, "which photo", drawn[0], new=12)[0]
    words = whole.split()
    stop = next(word for word in words if word != words[0])
    expected = whole[: whole.index(stop)]
    answer = ask(client, question("which photo", drawn[0]), 12, stop=[stop])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    (text, *_), _ = streamed(client, question("which photo", drawn[0]), 12, stop=stop)
    assert text == expected


def test_models_health_and_metrics(start, small, drawn):
    client = start()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "tokenflex"
    with pytest.raises(openai.NotFoundError, match="There is no model 'other' here"):
        client.models.retrieve("other")
    health = httpx.get(f"{start.url}/health")
    assert (health.status_code, health.json()["status"], health.json()["engine"]) == (200, "ok", "transformers")
    answer = ask(client, question("which photo", drawn[0]), extra_body={"tokenflex": {"level": 1}})
    with pytest.raises(openai.BadRequestError):
        ask(client, question("which photo"), temperature=9)
    until(lambda: "tokenflex_requests_open 0.0" in httpx.get(f"{start.url}/metrics").text)
    counted = httpx.get(f"{start.url}/metrics").text
    assert 'tokenflex_requests_total{status="200"} 1.0' in counted
    assert 'tokenflex_requests_total{status="400"} 1.0' in counted
    assert f'tokenflex_tokens_total{{kind="visual"}} {answer.usage.visual_tokens}.0' in counted
    assert f'tokenflex_tokens_total{{kind="visual_full"}} {answer.usage.visual_tokens_full}.0' in counted
    assert 'tokenflex_images_total{level="1"} 1.0' in counted

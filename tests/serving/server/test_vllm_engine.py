"""A front before a server that reads messages as vLLM's does, but generates with the plain host."""

import base64
import io
import json
import logging

import httpx
import openai
import pytest
import torch

from tests.serving.server.conftest import NAME, direct, part, question
from tokenflex.errors import ConfigError
from tokenflex.serving import Front
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.vllm_engine import VllmEngine

UPSTREAM = "http://engine:8001"


class Upstream:
    """vLLM's chat completions, with ``image_embeds`` parts."""

    def __init__(self, flex, processor):
        self.host, self.processor, self.asked, self.reply = flex.host, processor, [], None

    def __call__(self, request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "the-host"}]})
        if request.url.path == "/health":
            return httpx.Response(200)
        self.asked.append(json.loads(request.content))
        return self.reply(request) if self.reply else httpx.Response(200, text=self.answered(self.asked[-1]))

    def answered(self, body):
        embeddings, messages = [], []
        for message in body["messages"]:
            parts = []
            for one in message["content"]:
                if one["type"] == "image_embeds":
                    embeddings.append(torch.load(io.BytesIO(base64.b64decode(one["image_embeds"])), weights_only=True))
                    one = {"type": "image"}
                parts.append(one)
            messages.append({"role": message["role"], "content": parts})
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.processor.tokenizer(text)["input_ids"]
        table, left, rows = self.host.get_input_embeddings(), iter(embeddings), []
        for token in ids:
            image = token == self.host.config.image_token_id
            rows.append(next(left) if image else table(torch.tensor([token])).detach())
        assert next(left, None) is None
        prompt = torch.cat(rows)[None]
        made = self.host.generate(
            inputs_embeds=prompt, attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            max_new_tokens=body["max_tokens"], do_sample=False,
        )[0]  # fmt: skip
        usage = {"prompt_tokens": prompt.shape[1], "completion_tokens": len(made)}
        deltas = [{"role": "assistant", "content": ""}]
        deltas += [{"content": self.processor.tokenizer.decode(made, skip_special_tokens=True)}]
        events = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        events += [{"choices": [{"delta": {}, "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        return "".join(f"data: {json.dumps(one)}\n\n" for one in events) + ": a comment\n\ndata: [DONE]\n\n"


@pytest.fixture
def upstream(small):
    return Upstream(*small)


@pytest.fixture
def client(start, small, upstream):
    engine = VllmEngine(Front(*small), UPSTREAM, Limits(), transport=httpx.MockTransport(upstream))
    return start(engine)


def ask(client, messages, **options):
    return client.chat.completions.create(model=NAME, messages=messages, max_tokens=8, **options)


def told(answer):
    usage = answer.usage
    return answer.choices[0].message.content, usage.prompt_tokens, usage.visual_tokens, usage.visual_tokens_full


@pytest.mark.parametrize("choice", [{}, {"level": 0}, {"level": 2}, {"level": -1}, {"budget": {"ratio": 0.3}}])
def test_answers_are_the_model_s_own(client, small, drawn, upstream, choice):
    expected = direct(small, "which photo", drawn[0], **choice)
    extra = {"extra_body": {"tokenflex": choice}}
    assert told(ask(client, question("which photo", drawn[0]), **extra)) == expected
    chunks = list(ask(client, question("which photo", drawn[0]), stream=True, **extra))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected[0]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert upstream.asked[0]["model"] == "the-host"
    first, second = (asked["messages"][0]["content"][0]["uuid"] for asked in upstream.asked)
    assert first == second


def test_text_alone_and_several_images(client, small, drawn):
    assert told(ask(client, question("which wash"))) == direct(small, "which wash")
    content = [part(drawn[0], "high"), part(drawn[1], "low"), {"type": "text", "text": "how many"}]
    answer = ask(client, [{"role": "user", "content": content}])
    assert told(answer) == direct(small, "how many", *drawn[:2], level=[-1, 0])
    assert answer.tokenflex == {"levels": [small[0].compressor.num_levels - 1, 0]}


def test_what_the_server_is_asked(client, upstream):
    ask(client, question("which wash"), temperature=0.5, top_p=0.8, seed=4, stop=["x"])
    body = upstream.asked[0]
    assert {name: body[name] for name in ("temperature", "top_p", "seed", "stop", "max_tokens", "stream")} == {
        "temperature": 0.5, "top_p": 0.8, "seed": 4, "stop": ["x"], "max_tokens": 8, "stream": True,
    }  # fmt: skip
    ask(client, question("which wash"))
    assert not {"temperature", "top_p", "seed", "stop"} & set(upstream.asked[1])


def dead(request):
    raise httpx.ConnectError("10.1.2.3 refused")


def broken_off(request):
    async def pieces():
        yield b'data: {"choices": [{"delta": {"content": "half"}, "finish_reason": null}]}\n\n'
        raise httpx.ReadError("died")

    return httpx.Response(200, content=pieces())


def silent(request):
    return httpx.Response(200, text='data: {"choices": [{"delta": {"content": "half"}}]}\n\n')


def error(status, message="no such thing"):
    return lambda request: httpx.Response(status, json={"error": {"message": message, "code": status}})


def inside(request):
    return httpx.Response(200, text='data: {"error": {"message": "a tensor of a secret", "code": 500}}\n\n')


@pytest.mark.parametrize(
    ("reply", "kind", "status", "message"),
    [
        (dead, openai.InternalServerError, 502, r"broke off or can't be reached \(ConnectError\)"),
        (broken_off, openai.InternalServerError, 502, r"broke off or can't be reached \(ReadError\)"),
        (silent, openai.InternalServerError, 502, "broke off its answer"),
        (error(500), openai.InternalServerError, 502, r"The engine behind this server failed \(500\)"),
        (error(401), openai.InternalServerError, 502, r"The engine behind this server failed \(401\)"),
        (inside, openai.InternalServerError, 502, r"The engine behind this server failed \(500\)"),
        (error(400), openai.BadRequestError, 400, "The engine refuses the request: no such thing"),
        (error(429), openai.RateLimitError, 429, "is busy. Ask again"),
        (error(503), openai.InternalServerError, 503, "is busy. Ask again"),
    ],
)
def test_a_server_that_fails(client, small, upstream, reply, kind, status, message):
    upstream.reply = reply
    with pytest.raises(kind, match=message) as caught:
        ask(client, question("which wash"))
    assert caught.value.status_code == status
    assert "secret" not in str(caught.value)
    assert "10.1.2.3" not in str(caught.value)
    upstream.reply = None
    assert told(ask(client, question("which wash"))) == direct(small, "which wash")


def test_a_stream_that_breaks_off_says_so(client, upstream):
    upstream.reply = broken_off
    chunks, stream = [], ask(client, question("which wash"), stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        chunks.extend(stream)
    assert upstream.asked


def test_health_is_the_server_s(start, client, upstream):
    assert httpx.get(f"{start.url}/health").json()["engine"] == "vllm"
    start.engine.client._transport.handler = dead
    answer = httpx.get(f"{start.url}/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, "The vLLM server can't be reached (ConnectError).")


def test_prompts_that_are_read_otherwise_are_logged_once(client, upstream, caplog):
    whole = upstream.answered
    upstream.answered = lambda body: whole(body).replace('"prompt_tokens": 2', '"prompt_tokens": 3')
    with caplog.at_level(logging.WARNING, logger="tokenflex.serving"):
        for _ in range(2):
            assert ask(client, question("which wash")).usage.prompt_tokens == 3
    (record,) = [one for one in caplog.records if one.name == "tokenflex.serving"]
    assert "read a prompt of 3 tokens that has 2 here: its chat template" in record.getMessage()


def test_the_server_s_key_is_sent(start, small, upstream):
    given, upstream.reply = [], lambda request: given.append(request.headers.get("authorization"))
    engine = VllmEngine(Front(*small), UPSTREAM, Limits(), key="k", transport=httpx.MockTransport(upstream))
    with pytest.raises(openai.InternalServerError):
        ask(start(engine), question("which wash"))
    assert given == ["Bearer k"]


def test_what_is_no_front_or_no_address(small):
    with pytest.raises(ConfigError, match="'engine:8001' is no address"):
        VllmEngine(Front(*small), "engine:8001", Limits())
    with pytest.raises(ConfigError, match="the front has no processor"):
        VllmEngine(Front(small[0]), UPSTREAM, Limits())

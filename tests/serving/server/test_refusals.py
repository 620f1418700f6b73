"""What can't be answered is refused with a sentence, in the form that OpenAI's clients read."""

import base64
import io
import json
import socket

import httpx
import openai
import pytest
from PIL import Image

from tests.serving.server.conftest import NAME, part, question, url

TEXT = question("which wash")


def body(**changes):
    return {"model": NAME, "messages": TEXT, "max_tokens": 2} | changes


def with_url(address):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]


def parts(*given, role="user"):
    return [{"role": role, "content": list(given)}]


def sized(width, height):
    return url(Image.new("L", (width, height)))


AN_IMAGE = part(Image.new("RGB", (8, 8)))
REFUSED = [
    (body(n=2), "n isn't supported by this server; leave it out or give 1. Supported: model, messages"),
    (body(n=True), "n isn't supported"),
    (body(logprobs=True), "logprobs isn't supported"),
    (body(frequency_penalty=0.5), "frequency_penalty isn't supported by this server; leave it out or give 0."),
    (body(tools=[{"type": "function"}]), "tools isn't supported"),
    (body(response_format={"type": "json_object"}), "response_format isn't supported"),
    (body(guided_json="x"), "guided_json isn't supported by this server; leave it out. Supported"),
    (body(best_of=3), "best_of isn't supported"),
    (body(messages=[]), "messages: List should have at least 1 item"),
    (body(messages="hello"), "messages: Input should be a valid list"),
    (body(messages=[{"role": "user"}]), "messages.0.content: Field required."),
    (body(messages=[{"role": "tool", "content": "x"}]), "messages.0.role: Input should be 'system'"),
    (body(messages=[{"role": "user", "content": []}]), "messages.0.content: List should have at least 1 item"),
    (body(messages=[{"role": "user", "content": 3}]), "messages.0.content: Input should be a valid list"),
    (body(messages=parts({"type": "input_audio"})), "messages.0.content.0: Input tag 'input_audio'"),
    (body(messages=parts({"type": "image_url", "image_url": "data:"})), "image_url: Input should be"),
    (body(messages=parts(AN_IMAGE, role="assistant")), "A message of role assistant has an image"),
    (body(messages=question("a <image> here")), "A text has '<image>', which stands for an image"),
    (body(temperature=3), "temperature: Input should be less than or equal to 2."),
    (body(temperature="hot"), "temperature: Input should be a valid number"),
    (body(top_p=0), "top_p: Input should be greater than 0."),
    (body(max_tokens=0), "max_tokens: Input should be greater than or equal to 1."),
    (body(max_tokens=4096), "max_completion_tokens=4096: this server writes at most 1024."),
    (body(max_completion_tokens=3), "max_tokens and max_completion_tokens differ; give one of them."),
    (body(max_tokens=600), "The prompt has 2 tokens and the answer may have 600; the model's context has 512."),
    (body(seed=2**70), "seed: "),
    (body(stop=["a", "b", "c", "d", "e"]), "stop: List should have at most 4 items"),
    (body(stop=""), "stop.0: String should have at least 1 character"),
    (body(stream="yes"), "stream: Input should be a valid boolean"),
    (body(tokenflex={"level": 9}), "tokenflex: level 9 is out of range: this scaler has"),
    (body(tokenflex={"level": "low"}), "tokenflex: level='low' (str) is no level"),
    (body(tokenflex={"level": 1, "budget": 0.5}), "tokenflex: level=1 forces the level, so the budget has no say"),
    (body(tokenflex={"budget": 3}), "write Budget(tokens=...) or Budget(ratio=...)"),
    (body(tokenflex={"budget": {"ratio": 3}}), "tokenflex: ratio=3"),
    (body(tokenflex={"budget": {"rato": 0.3}}), "rato"),
    (body(tokenflex={"conversation": {"tokens": 0}}), "tokenflex: tokens=0 allows nothing"),
    (body(tokenflex={"conversation": 9}), "give them by name"),
    (body(tokenflex={"conversation": {"tokens": 9}, "budget": 0.3}), "are two budgets; give one of them"),
    (body(tokenflex={"conversation": {"tokens": 9}, "level": 0}), "level=0 forces the level, so the budget has no say"),
    (body(tokenflex={"levels": 1}), "tokenflex.levels: Extra inputs are not permitted."),
    (body(tokenflex=3), "tokenflex: Input should be"),
    (body(tokenflex={"level": [0, 1]}, messages=parts(AN_IMAGE)), "tokenflex: level has 2 entries for 1 images"),
    (
        body(tokenflex={"level": 1}, messages=parts(part(Image.new("L", (8, 8)), "low"))),
        "tokenflex.level and image_url.detail both choose a level",
    ),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "1"}}]}]),
        "detail: Input should be 'low', 'auto' or 'high'.",
    ),
    (body(messages=with_url("/etc/passwd")), "image 0: expected a data:image/...;base64, URL, got '/etc/passwd'."),
    (body(messages=with_url("file:///etc/passwd")), "image 0: expected a data:image/...;base64, URL"),
    (body(messages=with_url("data:text/plain;base64,aGk=")), "image 0: expected a data:image/...;base64, URL"),
    (body(messages=with_url("data:image/png;base64,/etc/passwd!")), "isn't base64"),
    (body(messages=with_url("data:image/png;base64,aGFsbG8=")), "image 0 can't be read; expected a file of one of PNG"),
    (body(messages=with_url("http://127.0.0.1:22/a.png")), "images aren't fetched from http://127.0.0.1:22"),
    (body(messages=with_url("http://[::1")), "image 0: its URL can't be read."),
    (body(messages=parts(*[AN_IMAGE] * 9)), "The request has 9 images; at most 8 are taken."),
]


@pytest.fixture(scope="module")
def address(small):
    from tests.serving.server.conftest import running
    from tokenflex.serving.server.app import create
    from tokenflex.serving.server.limits import Limits
    from tokenflex.serving.server.transformers_engine import TransformersEngine

    limits = Limits(body=2**20, image_bytes=2**19, pixels=100_000, characters=5_000)
    with running(create(TransformersEngine(*small, limits), NAME, limits)) as found:
        yield found


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["code"]
    assert "Traceback" not in error["message"]
    assert error["message"].endswith(".")
    return error["message"]


def post(address, content, **options):
    options = {"timeout": 60, "headers": {"content-type": "application/json"}} | options
    return httpx.post(f"{address}/v1/chat/completions", content=content, **options)


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_malformed_requests(address, given, message):
    assert message in refused(post(address, json.dumps(given)))


def test_the_server_has_lived_through_all_that(address):
    assert post(address, json.dumps(body())).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"model": "\xff"}', b"[" * 10_000, b'{"model": NaN}', b'{"a": "\\ud800"}'],
)
def test_what_is_no_json(address, content):
    assert refused(post(address, content)).startswith("The body is no JSON")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_web_pages_can_send_to_any_address(address, kind):
    """Without asking first, they can send these kinds only."""
    answer = post(address, json.dumps(body()), headers={"content-type": kind})
    assert "Content-Type: application/json" in refused(answer, 415)


def test_another_model_route_and_method(address):
    answer = post(address, json.dumps(body(model="gpt-4o")))
    assert refused(answer, 404) == "There is no model 'gpt-4o' here; this server has 'quickstart/model'."
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "POST /v1/completions isn't served here; there are POST /v1/chat" in refused(
        httpx.post(f"{address}/v1/completions", json={}), 404
    )
    assert "GET /v1/chat/completions isn't served here" in refused(httpx.get(f"{address}/v1/chat/completions"), 405)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (body(messages=question("w " * 3000)), "The texts have 6000 characters; at most 5000 are taken."),
        (body(messages=with_url(sized(400, 300))), "brings the request to 120000 pixels; at most 100000 are taken."),
        (
            body(messages=parts(*[{"type": "image_url", "image_url": {"url": sized(300, 200)}}] * 2)),
            "image 1: it brings the request to 120000 pixels",
        ),
        (body(messages=with_url("data:image/png;base64," + "A" * 800_000)), "image 0: its file has more than 524288"),
        (body(messages=question("x" * 2**20)), "The request has more than 1048576 bytes; send smaller images"),
    ],
)
def test_what_is_too_large(address, given, message):
    content = json.dumps(given).encode()
    assert message in refused(post(address, content), 413)
    assert message in refused(post(address, (content[i : i + 2**16] for i in range(0, len(content), 2**16))), 413)


def test_a_image_that_is_cut_off(address):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(whole, format="PNG")
    cut = base64.b64encode(whole.getvalue()[:-2000]).decode()
    assert "image 0 can't be read" in refused(post(address, json.dumps(body(messages=with_url(
        f"data:image/png;base64,{cut}")))))  # fmt: skip


def test_options_that_ask_for_nothing_are_taken(address):
    neutral = {"n": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logprobs": False, "top_logprobs": None}
    neutral |= {"tools": [], "response_format": {"type": "text"}, "user": "somebody", "metadata": {}, "stop": None}
    assert post(address, json.dumps(body(**neutral))).status_code == 200


def test_the_client_raises_its_own_errors(address):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(**body(temperature=9))
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**body(temperature=9), stream=True)


def test_a_request_that_never_ends(start):
    """The client promises more than it sends."""
    start(seconds=0.2)
    host, port = start.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        for said in ("POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"):
            line.sendall(f"{said}\r\n".encode())
        line.sendall(b"Content-Length: 100\r\n\r\n{")
        assert b" 408 " in line.recv(4096).split(b"\r\n")[0]

"""``tokenflex serve --engine vllm`` before vLLM's own server, asked by OpenAI's client; in the end the engine dies."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed; 'just vllm' makes an environment that has it")

import openai
import uvicorn

from tokenflex.serving import Front
from tokenflex.serving.server.app import create
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.metrics import Metrics
from tokenflex.serving.server.vllm_engine import VllmEngine

WAIT = 300
NEW = 12


@pytest.fixture(scope="module")
def engine(llava_next, tmp_path_factory):
    """(process, address) of a vLLM server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(llava_next.folder),
        "--host", "127.0.0.1", "--port", str(port), "--enable-mm-embeds", "--dtype", "float32",
        "--max-model-len", "1024", "--enforce-eager", "--limit-mm-per-prompt", '{"image": 4}',
        "--served-model-name", "host",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if "Application startup complete" in line:
            break
    else:
        pytest.fail("".join(said[-30:]))
    threading.Thread(target=process.stdout.read, daemon=True).start()
    yield process, f"http://127.0.0.1:{port}"
    kill(process)


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT)


class Server(uvicorn.Server):
    def __init__(self, app):
        super().__init__(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()


@pytest.fixture(scope="module")
def client(llava_next, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    llava_next.flex.save_pretrained(folder)
    llava_next.processor.save_pretrained(folder)
    front = Front.from_pretrained(folder)
    front.require_engine(llava_next.folder)
    limits, metrics = Limits(), Metrics()
    server = Server(create(VllmEngine(front, engine[1], limits), "tiny", limits, metrics))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.ready.wait(WAIT)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    server.should_exit = True
    thread.join(WAIT)


def messages(served, index, words, detail="auto"):
    written = io.BytesIO()
    served.image(index).save(written, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url, "detail": detail}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": content}]


def words_of(text):
    """The engine's decoder begins an answer with a space where the tokenizer's doesn't."""
    return text.split()


def ask(client, said, **settings):
    return client.chat.completions.create(
        model="tiny", messages=said, max_tokens=NEW, temperature=0, stop=None, **settings
    )


def expected(served, index, words, **choice):
    """(text, visual tokens, prompt tokens) of the model itself."""
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}]
    text = served.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    inputs = served.processor(images=[served.image(index)], text=[text], return_tensors="pt")
    ids = served.flex.generate(**inputs, max_new_tokens=NEW, do_sample=False, **choice)[
        0, inputs["input_ids"].shape[1] :
    ]
    (request,) = served.flex.export(**inputs, **choice)
    return (
        words_of(served.processor.decode(ids, skip_special_tokens=True)),
        request.visual_tokens,
        len(request.compact_ids),
    )


@pytest.mark.parametrize("level", range(5))
def test_levels(llava_next, client, level):
    found = ask(client, messages(llava_next, level, "w1 w2"), extra_body={"tokenflex": {"level": level}})
    told = (words_of(found.choices[0].message.content), found.usage.visual_tokens, found.usage.prompt_tokens)
    assert told == expected(llava_next, level, "w1 w2", level=level)


@pytest.mark.parametrize(("detail", "choice"), [("low", {"level": 0}), ("auto", {}), ("high", {"level": -1})])
def test_detail_and_streaming(llava_next, client, detail, choice):
    said = messages(llava_next, 1, "w3", detail)
    text, *_ = expected(llava_next, 1, "w3", **choice)
    pieces = ask(client, said, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert words_of(streamed) == words_of(ask(client, said).choices[0].message.content) == text


def test_text_alone(llava_next, client):
    inputs = llava_next.processor(text=["user : w1 w2 w3 assistant : "], return_tensors="pt")
    ids = llava_next.flex.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    found = ask(client, [{"role": "user", "content": "w1 w2 w3"}])
    text = llava_next.processor.decode(ids, skip_special_tokens=True)
    assert words_of(found.choices[0].message.content) == words_of(text)


def test_many_at_once(llava_next, client):
    asked = [(i % 4, f"w{i}", i % 5) for i in range(24)]

    def one(question):
        index, words, level = question
        found = ask(client, messages(llava_next, index, words), extra_body={"tokenflex": {"level": level}})
        return words_of(found.choices[0].message.content)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, asked))
    assert found == [expected(llava_next, index, words, level=level)[0] for index, words, level in asked]


def test_an_engine_that_dies(llava_next, client, engine):
    # The last test: the engine isn't started again.
    said = messages(llava_next, 1, "w3")
    pieces = ask(client, said, stream=True)
    next(pieces)
    kill(engine[0])
    with pytest.raises(openai.APIError, match=r"engine behind this server"):
        ask(client, said)
    assert client.models.list().data[0].id == "tiny"
    with pytest.raises(openai.APIError):
        ask(client, [{"role": "user", "content": "w1"}])

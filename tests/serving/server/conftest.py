"""A server on a free port of this machine, with the quickstart's model, untrained; and OpenAI's client for it."""

import base64
import io
import threading
import time
from contextlib import ExitStack, contextmanager

import openai
import pytest
import torch
import uvicorn

import tokenflex
from tokenflex.quickstart.host import seeded
from tokenflex.quickstart.images import scenes
from tokenflex.serving.server.app import create
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.transformers_engine import TransformersEngine

NAME = "quickstart/model"
WAIT = 60


class Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, app):
        super().__init__(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"


def until(condition):
    """Wait for something that another thread brings about."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it doesn't happen"
        threading.Event().wait(0.002)


@contextmanager
def running(app):
    """The address of an application, served by a thread."""
    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.ready.wait(WAIT)
        yield server.url
    finally:
        server.should_exit = True
        thread.join(WAIT)


@pytest.fixture(scope="session")
def small():
    """(model, processor); large random weights, so that answers differ and some end by themselves."""
    host, processor = seeded(0)
    with torch.no_grad():
        for matrix in host.model.language_model.parameters():
            matrix.mul_(3.0 if matrix.dim() > 1 else 1.0)
    torch.manual_seed(1)
    return tokenflex.wrap(host).eval(), processor


@pytest.fixture(scope="session")
def drawn():
    return [image.image for image in scenes(0, "test", 6)]


@pytest.fixture
def start(small):
    """Serve; gives a client. ``start.url`` is where."""
    with ExitStack() as stack:

        def begin(engine=None, images=None, **limits):
            bounds = Limits(**limits)
            engine = engine or TransformersEngine(*small, bounds)
            begin.engine = engine
            begin.url = stack.enter_context(running(create(engine, NAME, bounds, images=images)))
            client = openai.OpenAI(base_url=f"{begin.url}/v1", api_key="none", max_retries=0, timeout=WAIT)
            return stack.enter_context(client)

        yield begin


def url(image):
    """An image as a data: URL."""
    written = io.BytesIO()
    image.save(written, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def part(image, detail=None):
    told = {"url": url(image)} | ({"detail": detail} if detail else {})
    return {"type": "image_url", "image_url": told}


def question(text, *images, detail=None):
    """Messages of one question."""
    return [{"role": "user", "content": [*(part(image, detail) for image in images), {"type": "text", "text": text}]}]


def direct(small, text, *images, new=8, **choice):
    """(text of the answer, tokens of the prompt, visual tokens, of so many) from the model itself."""
    flex, processor = small
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    inputs = dict(processor(text=[prompt], images=list(images) or None, return_tensors="pt"))
    output = flex.generate(
        **inputs, **choice, max_new_tokens=new, do_sample=False, num_beams=1, return_dict_in_generate=True
    )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :]
    decisions = output.get("decisions") or ()
    full, used = sum(one.of for one in decisions), sum(one.tokens for one in decisions)
    length = inputs["input_ids"].shape[1] - full + used
    return processor.tokenizer.decode(ids, skip_special_tokens=True), length, used, full

"""Answers from a vLLM server: images are shortened here, and their embeddings are sent there.

The server is somebody else's: started with ``--enable-mm-embeds`` and the model that this front was loaded from, and
not reachable by clients, since it trusts the embeddings it is sent.
"""

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import torch

from tokenflex.errors import ConfigError
from tokenflex.serving import Front, Request, chat_items
from tokenflex.serving.server.asking import Ask
from tokenflex.serving.server.batching import Batcher, Job
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.protocol import Usage
from tokenflex.serving.server.reading import Reader
from tokenflex.serving.server.refusals import RefusedError

logger = logging.getLogger("tokenflex.serving")

DATA = "data:"
CONNECT, SILENT = 5.0, 120.0
"""Seconds to reach the server, and between two pieces of its answer."""
PASSED_ON = (408, 429, 503)


class VllmEngine:
    """A front before a vLLM server.

    Args:
        front: tower, parts and word embeddings.
        upstream: the server's address, such as ``http://127.0.0.1:8001``.
        model: as that server calls it; None: the first that it lists.
        key: that it was started with (``--api-key``); None: it has none.
        transport: of httpx, for tests; None: the network.
        seen: called with the size of every batch of images.

    Raises:
        ConfigError: the address isn't one, or the front has no processor.
    """

    name = "vllm"

    def __init__(
        self,
        front: Front,
        upstream: str,
        limits: Limits,
        *,
        model: str | None = None,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        seen: Callable[[int], None] = lambda rows: None,
    ) -> None:
        if not upstream.startswith(("http://", "https://")):
            raise ConfigError(f"upstream {upstream!r} is no address; expected one such as http://127.0.0.1:8001.")
        if front.processor is None:
            raise ConfigError("the front has no processor; save the host's beside the model.")
        self.front, self.reader = front, Reader(front.flex, front.processor)
        self.num_levels, self.placeholders = front.flex.compressor.num_levels, self.reader.placeholders
        self.batcher = Batcher(self._export, limits.batch, limits.wait, seen)
        self.client = httpx.AsyncClient(
            base_url=upstream.rstrip("/").removesuffix("/v1"),
            transport=transport,
            headers={"authorization": f"Bearer {key}"} if key else None,
            trust_env=False,
            timeout=httpx.Timeout(SILENT, connect=CONNECT),
            limits=httpx.Limits(max_connections=None),
        )
        self.model, self._warned = model, False

    async def serve(self) -> None:
        """Answer requests until it is cancelled."""
        try:
            await self.batcher.serve()
        finally:
            await self.client.aclose()

    async def refusal(self) -> str | None:
        """Why the server can't be asked; None where it can."""
        try:
            status = (await self.client.get("/health", timeout=CONNECT)).status_code
        except httpx.HTTPError as error:
            return f"The vLLM server can't be reached ({type(error).__name__})."
        return None if status == 200 else f"The vLLM server's health is {status}."

    async def answer(self, ask: Ask) -> AsyncIterator[str | tuple[str, Usage]]:
        """Pieces of text, and at the end the reason why it ended, and what it took.

        Raises:
            RefusedError: it can't be answered, here or there.
        """
        async with aclosing(self.batcher.pieces(ask)) as pieces:  # pyright: ignore[reportArgumentType]
            request = await anext(pieces)
        try:
            body = {"model": self.model or await self._first(), **asked(ask, request)}
            async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, await response.aread())
                async for piece in self._pieces(response, request):
                    yield piece
        except httpx.HTTPError as error:
            raise RefusedError(
                f"The engine behind this server broke off or can't be reached ({type(error).__name__}). Ask again.",
                "engine_unreachable",
                502,
            ) from error

    @torch.no_grad()
    def _export(self, jobs: Sequence[Job]) -> None:
        asks = [job.ask for job in jobs]
        inputs = self.reader.inputs(asks)
        for job, request in zip(jobs, self.front.export(**inputs, **self.reader.choice(inputs, asks)), strict=True):
            job.tell(request)

    async def _pieces(self, response: httpx.Response, request: Request) -> AsyncIterator[str | tuple[str, Usage]]:
        reason, usage = "", None
        async for line in response.aiter_lines():
            if not line.startswith(DATA) or line[len(DATA) :].strip() == "[DONE]":
                continue
            event = _read(line[len(DATA) :].encode())
            if event.get("error"):
                raise _refused(_status(event), line[len(DATA) :].encode())
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason") or reason
                if (choice.get("delta") or {}).get("content"):
                    yield choice["delta"]["content"]
        if not reason or usage is None:
            raise RefusedError(
                "The engine behind this server broke off its answer. Ask again.", "engine_broke_off", 502
            )
        prompt = int(usage["prompt_tokens"])
        if prompt != len(request.compact_ids) and not self._warned:
            self._warned = True
            logger.warning(
                "the engine read a prompt of %d tokens that has %d here: its chat template or its model differs from "
                "the front's", prompt, len(request.compact_ids),
            )  # fmt: skip
        levels = tuple(image.decision.level for image in request.images)
        completion = int(usage.get("completion_tokens") or 0)
        yield reason, Usage(prompt, completion, request.visual_tokens, request.visual_tokens_full, levels)

    async def _first(self) -> str:
        """The server's name for the first model that it lists."""
        response = await self.client.get("/v1/models", timeout=CONNECT)
        names = [entry.get("id") for entry in _read(response.content).get("data") or ()]
        if not names:
            raise RefusedError("The engine behind this server names no model.", "engine_unreachable", 502)
        self.model = str(names[0])
        return self.model


def asked(ask: Ask, request: Request) -> dict[str, Any]:
    """What the server is asked: the same conversation, with embeddings in the places of images."""
    items = iter(chat_items(request))
    messages = [
        {**message, "content": [next(items) if item["type"] == "image" else item for item in message["content"]]}
        for message in ask.messages
    ]
    sampling = ask.sampling
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    return {
        "messages": messages,
        "max_tokens": sampling.new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in settings.items() if value is not None},
        **({"stop": list(ask.stop)} if ask.stop else {}),
    }


def _read(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _status(event: Mapping[str, Any]) -> int:
    code = event["error"].get("code") if isinstance(event["error"], dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _refused(status: int, content: bytes) -> RefusedError:
    """What a client is told of a server's error."""
    error = _read(content).get("error") or _read(content)
    said = str(error.get("message", "") if isinstance(error, Mapping) else error)[:300]
    if status in PASSED_ON:
        return RefusedError("The engine behind this server is busy. Ask again in a moment.", "engine_busy", status)
    if 400 <= status < 500 and status not in (401, 403, 404):
        return RefusedError(f"The engine refuses the request: {said}", "engine_refused", 400)
    logger.error("the engine answered %d: %s", status, said)
    return RefusedError(f"The engine behind this server failed ({status}).", "engine_failed", 502)

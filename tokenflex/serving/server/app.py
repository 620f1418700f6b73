"""The endpoint: routes, the door that keeps requests to the limits, and answers as they are sent."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tokenflex.serving.server import protocol
from tokenflex.serving.server.asking import Ask, read_ask
from tokenflex.serving.server.images import Images
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.metrics import CONTENT_TYPE, Metrics
from tokenflex.serving.server.protocol import Usage, Writer
from tokenflex.serving.server.refusals import RefusedError, refusal_of

CHAT = "/v1/chat/completions"


class Engine(Protocol):
    """What answers requests with a model."""

    name: str
    num_levels: int
    placeholders: tuple[str, ...]

    async def serve(self) -> None:
        """Work for ever; cancelled at the end."""
        ...

    async def refusal(self) -> str | None:
        """Why it can't answer at the moment, as a sentence."""
        ...

    def answer(self, ask: Ask) -> AsyncIterator[str | tuple[str, Usage]]:
        """Pieces of text, and at the end the reason why it ended, and what it took."""
        ...


def create(
    engine: Engine, name: str, limits: Limits, metrics: Metrics | None = None, images: Images | None = None
) -> Starlette:
    """The application, for any ASGI server.

    Args:
        name: as clients call the model.
        images: reads images; None: by the limits.
    """
    metrics = metrics or Metrics()
    images = images or Images(limits)
    served = Served(engine, name, limits, metrics, images)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(engine.serve())
        yield
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await images.close()

    return Starlette(
        routes=[
            Route(CHAT, served.chat, methods=["POST"]),
            Route("/v1/models", served.models),
            Route("/v1/models/{model:path}", served.model),
            Route("/health", served.health),
            Route("/metrics", served.counted),
        ],
        middleware=[Middleware(Door, limits=limits, metrics=metrics)],
        exception_handlers={RefusedError: _refused, HTTPException: _not_found, Exception: _refused},
        lifespan=lifespan,
    )


class Door:
    """Lets so many requests for answers in at a time, until their answers are sent, and counts them."""

    def __init__(self, app: Any, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics, self.open = app, limits, metrics, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let one request in, or refuse it where as many are being answered as the limits allow."""
        if scope["type"] != "http" or scope["path"] != CHAT:
            await self.app(scope, receive, send)
            return
        if self.open >= self.limits.requests:
            self.metrics.refused(429)
            full = RefusedError(
                f"The server is answering {self.open} requests, as many as it takes. Ask again in a moment.",
                "overloaded",
                429,
            )
            await _written(full)(scope, receive, send)
            return
        status, begun = 499, time.monotonic()  # nothing was sent: the client has left

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.open += 1
        self.metrics.opened()
        try:
            await self.app(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            self.open -= 1
            self.metrics.closed(status, time.monotonic() - begun)


class Served:
    """The routes under which one model is served."""

    def __init__(self, engine: Engine, name: str, limits: Limits, metrics: Metrics, images: Images) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.metrics, self.images, self.since = metrics, images, int(time.time())

    async def chat(self, request: Request) -> Response:
        """Answer a conversation: the route ``/v1/chat/completions``."""
        asked = protocol.read_chat(await self._body(request))
        self._require(asked.model)
        ask = await read_ask(asked, self.images, self.limits, self.engine.num_levels, self.engine.placeholders)
        pieces = self.engine.answer(ask)
        if asked.stream:
            first = await _unless_gone(request, anext(pieces))
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = self._events(first, pieces, usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        text, (reason, usage) = await _unless_gone(request, _whole(pieces))
        self.metrics.answered(usage)
        return JSONResponse(Writer(self.name).whole(text, reason, usage))

    async def models(self, request: Request) -> Response:
        """The list of models, which has one: the route ``/v1/models``."""
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        self._require(request.path_params["model"])
        return JSONResponse(self._described())

    async def health(self, request: Request) -> Response:
        """Whether requests can be answered: 200 where they can, else 503 with the reason."""
        reason = await self.engine.refusal()
        body = {"status": "ok" if reason is None else "unavailable", "model": self.name, "engine": self.engine.name}
        return JSONResponse(body if reason is None else {**body, "reason": reason}, 200 if reason is None else 503)

    async def counted(self, request: Request) -> Response:
        """The counters as text, for Prometheus."""
        return Response(self.metrics.written(), media_type=CONTENT_TYPE)

    def _described(self) -> dict[str, Any]:
        levels = self.engine.num_levels
        return {"id": self.name, "object": "model", "created": self.since, "owned_by": "tokenflex", "levels": levels}

    def _require(self, model: str) -> None:
        if model != self.name:
            raise RefusedError(f"There is no model {model[:100]!r} here; this server has {self.name!r}.",
                          "model_not_found", 404, "model")  # fmt: skip

    async def _body(self, request: Request) -> bytes:
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise RefusedError("Send the request with Content-Type: application/json.", "unsupported_media_type", 415)
        found, limit = bytearray(), self.limits.body
        too_large = RefusedError(
            f"The request has more than {limit} bytes; send smaller images, or fewer.", "too_large", 413
        )
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for piece in request.stream():
                    found += piece
                    if len(found) > limit:
                        raise too_large
        except TimeoutError as error:
            raise RefusedError(
                f"The request wasn't sent within {self.limits.seconds:g} seconds.", "timeout", 408
            ) from error
        except ClientDisconnect as error:
            raise RefusedError("The client has left.", "client_left", 499) from error
        return bytes(found)

    async def _events(self, first: Any, pieces: Any, usage: bool) -> AsyncIterator[str]:
        writer = Writer(self.name)
        yield writer.chunk({"role": "assistant", "content": ""})
        try:
            piece = first
            while isinstance(piece, str):
                yield writer.chunk({"content": piece})
                piece = await anext(pieces)
            reason, took = piece
            self.metrics.answered(took)
            yield writer.chunk({}, reason)
            if usage:
                yield writer.usage(took)
        except Exception as error:  # the answer has begun: its status is sent
            yield protocol.event(refusal_of(error).body)
        finally:
            await pieces.aclose()
        yield "data: [DONE]\n\n"


async def _whole(pieces: Any) -> tuple[str, tuple[str, Usage]]:
    text = list[str]()
    try:
        piece: Any = await anext(pieces)
        while isinstance(piece, str):
            text.append(piece)
            piece = await anext(pieces)
        return "".join(text), piece
    finally:
        await pieces.aclose()


async def _unless_gone(request: Request, answer: Any) -> Any:
    """The answer, or nothing further as soon as the client has left."""
    work, left = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise RefusedError("The client has left.", "client_left", 499)
    finally:
        for task in (work, left):
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _written(refusal: RefusedError) -> JSONResponse:
    headers = {"retry-after": "1"} if refusal.status == 429 else None
    return JSONResponse(refusal.body, refusal.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    return _written(refusal_of(error))


async def _not_found(request: Request, error: Any) -> Response:
    known = f"POST {CHAT}, GET /v1/models, GET /health and GET /metrics"
    message = f"{request.method} {request.url.path[:100]} isn't served here; there are {known}."
    return _written(RefusedError(message, "not_found", error.status_code))

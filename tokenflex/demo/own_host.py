"""Pages that ask their own server only: what names others is taken out, and the browser is told to ask no other."""

import re
from collections.abc import Mapping
from typing import Any

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "frame-src 'none'",
        "frame-ancestors 'self'",
        "form-action 'none'",
        "base-uri 'self'",
    )
)
"""Content-Security-Policy. gradio makes its templates of inline scripts and with ``eval``, so both stay allowed."""
HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": POLICY.encode("ascii"),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
CARDS = re.compile(rb"<meta\s+(?:property=\"og:|name=\"twitter:)[^>]*>\s*")
"""What a page says of itself to social networks: addresses of gradio's."""


class OwnHostOnly:
    """ASGI middleware: `HEADERS` on every answer, and no `CARDS` in pages.

    Args:
        app: what answers.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request: with `HEADERS`, and pages without `CARDS`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun: list[dict[str, Any]] = []
        body = bytearray()

        async def reply(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                headers = [(name, value) for name, value in event["headers"] if name.lower() not in HEADERS]
                event = {**event, "headers": [*headers, *HEADERS.items()]}
                if _is_page(event["headers"]):
                    begun.append(event)
                    return
            elif begun and event["type"] == "http.response.body":
                body.extend(event.get("body", b""))
                if event.get("more_body"):
                    return
                page = CARDS.sub(b"", bytes(body))
                await send(_with_length(begun.pop(), len(page)))
                event = {"type": "http.response.body", "body": page}
            await send(event)

        await self.app(scope, receive, reply)


def _is_page(headers: Any) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)


def _with_length(event: dict[str, Any], length: int) -> dict[str, Any]:
    kept = [(name, value) for name, value in event["headers"] if name.lower() != b"content-length"]
    return {**event, "headers": [*kept, (b"content-length", str(length).encode("ascii"))]}

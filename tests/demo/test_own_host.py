"""Pages name no other server, and tell the browser to ask none."""

import asyncio

import pytest

from tokenflex.demo.own_host import HEADERS, OwnHostOnly

PAGE = (
    b'<html><meta charset="utf-8" /><meta property="og:image"\n content="https://elsewhere.example/a.jpg" />'
    b'<meta name="twitter:card" content="x"/><meta name="viewport" content="y"><b>text</b></html>'
)
CLEAN = b'<html><meta charset="utf-8" /><meta name="viewport" content="y"><b>text</b></html>'


def asked(chunks, content_type, scope="http"):
    """Events that reach the visitor."""
    events = []

    async def app(scope, receive, send):
        headers = [(b"Content-Type", content_type), (b"content-length", b"%d" % sum(map(len, chunks)))]
        headers.append((b"Content-Security-Policy", b"default-src *"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for place, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": place + 1 < len(chunks)})

    async def send(event):
        events.append(event)

    asyncio.run(OwnHostOnly(app)({"type": scope}, None, send))
    return events


@pytest.mark.parametrize("cut", [len(PAGE), 40, 7])
def test_pages_lose_what_names_other_servers(cut):
    chunks = [PAGE[place : place + cut] for place in range(0, len(PAGE), cut)]
    start, body = asked(chunks, b"text/html; charset=utf-8")
    assert body == {"type": "http.response.body", "body": CLEAN}
    headers = start["headers"]
    assert (b"content-length", b"%d" % len(CLEAN)) in headers
    assert [name.lower() for name, _ in headers].count(b"content-length") == 1
    assert [value for name, value in headers if name.lower() == b"content-security-policy"] == [
        HEADERS[b"content-security-policy"]
    ]


def test_everything_else_passes_as_it_is_piece_by_piece():
    start, *bodies = asked([PAGE, b"more"], b"application/json")
    assert [event["body"] for event in bodies] == [PAGE, b"more"]
    assert bodies[0]["more_body"]
    assert set(HEADERS.items()) <= set(start["headers"])


def test_other_protocols_are_left_alone():
    start, *_ = asked([b"x"], b"text/html", scope="lifespan")
    assert not set(HEADERS.items()) & set(start["headers"])


def test_the_policy_allows_no_other_server():
    sources = {word for rule in HEADERS[b"content-security-policy"].decode().split(";") for word in rule.split()[1:]}
    assert sources == {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}

"""Images come from where they may come from, and from nowhere else."""

import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image

from tests.serving.server.conftest import url
from tokenflex.serving.server.images import Images, is_public
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.refusals import RefusedError

PUBLIC = "93.184.216.34"


def png():
    written = io.BytesIO()
    Image.new("RGB", (5, 4), (9, 8, 7)).save(written, format="PNG")
    return written.getvalue()


def sent(content):
    """An answer that comes in pieces, as those of a network do."""

    async def pieces():
        for i in range(0, len(content), 50):
            yield content[i : i + 50]

    return httpx.Response(200, content=pieces())


def read(address, handler=None, addresses=(PUBLIC,), hosts=("images.example",), **limits):
    """The image of a URL; ``handler`` answers in place of the network."""
    asked = []

    def answer(request):
        asked.append(request)
        return handler(request) if handler else sent(png())

    async def resolve(name, port):
        found = addresses[name] if isinstance(addresses, dict) else addresses
        if isinstance(found, Exception):
            raise found
        return list(found)

    async def run():
        images = Images(Limits(hosts=frozenset(hosts), **limits), httpx.MockTransport(answer), resolve)
        try:
            return await images.read([address])
        finally:
            await images.close()

    read.asked = asked
    return asyncio.run(run())[0]


def refused(address, message, *args, **options):
    with pytest.raises(RefusedError, match=message):
        read(address, *args, **options)
    return read.asked


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_data(kind):
    written = io.BytesIO()
    Image.new("RGB", (6, 3), (200, 10, 10)).save(written, format=kind)
    found = read(f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}")
    assert (found.size, found.mode) == ((6, 3), "RGB")


def test_formats_that_run_programs_are_not_opened():
    drawn = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    refused(f"data:image/png;base64,{base64.b64encode(drawn).decode()}", "expected a file of one of PNG, JPEG")


def test_an_allowed_server_is_asked_at_the_address_that_was_checked():
    found = read("https://Images.example/a/b.png?c=d")
    assert found.getpixel((0, 0)) == (9, 8, 7)
    (request,) = read.asked
    assert str(request.url) == f"https://{PUBLIC}/a/b.png?c=d"
    assert request.headers["host"] == "images.example"
    assert request.extensions["sni_hostname"] == "images.example"
    assert request.headers["accept-encoding"] == "identity"


def test_another_port_is_named_with_it():
    assert refused("http://images.example:8080/a", "images aren't fetched from http://images.example:8080") == []
    read("http://images.example:8080/a", hosts=("images.example:8080",))
    assert read.asked[0].headers["host"] == "images.example:8080"


@pytest.mark.parametrize(
    "address",
    [
        "http://other.example/a.png",
        "http://images.example.evil.example/a.png",
        "http://images.example@evil.example/a.png",
        "http://user@images.example/a.png",
        "http://evil.example/#images.example",
        "http:///a.png",
        "http://127.0.0.1/a.png",
        "http://2130706433/a.png",
    ],
)
def test_servers_that_are_not_on_the_list(address):
    assert refused(address, "images aren't fetched from") == []


def test_none_is_on_the_list_by_default():
    assert refused("http://images.example/a.png", "--allow-images-from", hosts=()) == []


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://images.example/a", "gopher://x", "a.png", "", "//x"])
def test_other_schemes_are_not_opened(address):
    assert refused(address, "expected a data:image/...;base64, URL or a URL of an allowed server") == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fd00::1"],
        ["::ffff:127.0.0.1"],
        ["0.0.0.0"],
        ["100.64.0.1"],
        ["224.0.0.1"],
        ["2002:7f00:1::"],
        ["64:ff9b::7f00:1"],
        [PUBLIC, "192.168.1.1"],
        [],
        ["no address"],
    ],
)
def test_names_with_addresses_that_are_not_public(addresses):
    assert refused("http://images.example/a.png", "an address that isn't public", addresses=addresses) == []


def test_public_addresses():
    assert is_public(PUBLIC)
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


def test_a_name_without_an_address():
    refused("http://images.example/a.png", "has no address", addresses=OSError("no such name"))


@pytest.mark.parametrize("place", ["http://other.example/a", "http://127.0.0.1/a", "file:///etc/passwd"])
def test_redirects_don_t_lead_off_the_list(place):
    asked = refused(
        "http://images.example/a", "images aren't fetched from",
        lambda request: httpx.Response(302, headers={"location": place}),
    )  # fmt: skip
    assert len(asked) == 1


def test_redirects_on_the_list_are_checked_again_and_followed():
    def moved(request):
        ends = request.url.path == "/b"
        return sent(png()) if ends else httpx.Response(301, headers={"location": "/b"})

    assert read("http://images.example/a", moved).size == (5, 4)
    assert [str(one.url) for one in read.asked] == [f"http://{PUBLIC}/a", f"http://{PUBLIC}/b"]
    there = {"images.example": [PUBLIC], "inner.example": ["10.0.0.7"]}
    refused(
        "http://images.example/a", "an address that isn't public",
        lambda request: httpx.Response(302, headers={"location": "http://inner.example/"}),
        addresses=there, hosts=tuple(there),
    )  # fmt: skip


def test_redirects_end():
    asked = refused(
        "http://images.example/a", "more than 3 redirects",
        lambda request: httpx.Response(302, headers={"location": "/a"}),
    )  # fmt: skip
    assert len(asked) == 4


def test_files_that_are_too_large_are_not_read_to_their_end():
    given = []

    async def endless():
        while True:
            given.append(1)
            yield b"x" * 1000

    refused(
        "http://images.example/a", "its file has more than 5000 bytes",
        lambda request: httpx.Response(200, content=endless()), image_bytes=5000,
    )  # fmt: skip
    assert len(given) <= 7


def test_servers_that_fail():
    def down(request):
        raise httpx.ConnectError("a secret of the network")

    refused("http://images.example/a", r"image 0: its server couldn't be read \(ConnectError\)\.$", down)
    refused("http://images.example/a", "its server answered 404", lambda request: httpx.Response(404))
    refused("http://images.example/a", "can't be read; expected", lambda request: sent(b"<html>"))


def test_servers_that_are_slow():
    async def never():
        await asyncio.Event().wait()
        yield b""

    refused(
        "http://images.example/a", "couldn't be fetched within 0.05 seconds",
        lambda request: httpx.Response(200, content=never()), seconds=0.05,
    )  # fmt: skip


def test_pixels_are_counted_before_they_are_made(monkeypatch):
    given = url(Image.new("L", (8, 8)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *args: pytest.fail("pixels were made"))
    refused(given, "brings the request to 64 pixels; at most 63 are taken", pixels=63)

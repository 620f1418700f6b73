"""Images of requests: from ``data:`` URLs, or from servers that were allowed by name; never from files.

A remote image is asked of an address that was checked: the name must be on the list, every address that it has must be
a public one, and the connection goes to one of those very addresses. Redirects are followed by the same rules.
"""

import asyncio
import base64
import binascii
import io
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from PIL import Image

from tokenflex.errors import DataError
from tokenflex.images import decode
from tokenflex.serving.server.limits import Limits
from tokenflex.serving.server.refusals import RefusedError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""As OpenAI takes them. Others are opened by codecs that few people try to break, or that run programs."""
DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
REDIRECTS = 3
MOVED = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolved(name: str, port: int) -> list[str]:
    """The addresses that a name has."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Images:
    """Reads the images of requests.

    Args:
        transport: of httpx, for tests; None: the network.
        resolve: gives a name's addresses.
    """

    def __init__(
        self, limits: Limits, transport: httpx.AsyncBaseTransport | None = None, resolve: Resolve = resolved
    ) -> None:
        self.limits, self.resolve = limits, resolve
        self.client = httpx.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=limits.seconds
        )

    async def close(self) -> None:
        """Close what is open to other servers."""
        await self.client.aclose()

    async def read(self, urls: Sequence[str]) -> tuple[Image.Image, ...]:
        """The images, upright in 8-bit RGB.

        Raises:
            RefusedError: one can't be had or read, is larger than the limits, or they are too many.
        """
        if len(urls) > self.limits.images:
            raise RefusedError(
                f"The request has {len(urls)} images; at most {self.limits.images} are taken.", "too_many_images"
            )
        try:
            async with asyncio.timeout(self.limits.seconds):
                files = [await self._file(url, f"image {i}") for i, url in enumerate(urls)]
        except TimeoutError as error:
            raise RefusedError(
                f"The images couldn't be fetched within {self.limits.seconds:g} seconds. Send them as data: URLs.",
                "image_timeout",
            ) from error
        return await asyncio.to_thread(self._opened, files)

    async def _file(self, url: str, name: str) -> bytes:
        data = DATA.match(url)
        if data:
            return self._from_data(url[data.end() :], name)
        if urlsplit_of(url, name).scheme not in PORTS:
            raise RefusedError(
                f"{name}: expected a data:image/...;base64, URL"
                f"{' or a URL of an allowed server' if self.limits.hosts else ''}, got {url[:40]!r}.",
                "invalid_image_url",
            )
        return await self._fetched(url, name)

    def _from_data(self, text: str, name: str) -> bytes:
        if len(text) // 4 * 3 > self.limits.image_bytes + 3:
            raise self._too_large(name)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusedError(
                f"{name}: what follows base64, in its data: URL isn't base64.", "invalid_image"
            ) from error

    async def _fetched(self, url: str, name: str) -> bytes:
        for _ in range(REDIRECTS + 1):
            answer = await self._asked(url, name)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise RefusedError(f"{name}: more than {REDIRECTS} redirects.", "image_not_fetched")

    async def _asked(self, url: str, name: str) -> bytes | str:
        """The file, or where it has moved."""
        request = await self._request(url, name)
        try:
            answer = await self.client.send(request, stream=True)
            try:
                if answer.status_code in MOVED and "location" in answer.headers:
                    return answer.headers["location"]
                if answer.status_code != 200:
                    raise RefusedError(f"{name}: its server answered {answer.status_code}.", "image_not_fetched")
                found = bytearray()
                async for piece in answer.aiter_raw():
                    found += piece
                    if len(found) > self.limits.image_bytes:
                        raise self._too_large(name)
                return bytes(found)
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            raise RefusedError(
                f"{name}: its server couldn't be read ({type(error).__name__}).", "image_not_fetched"
            ) from error

    async def _request(self, url: str, name: str) -> httpx.Request:
        """A request to an address that was checked.

        Raises:
            RefusedError: the server isn't on the list, or has an address that isn't public.
        """
        split = urlsplit_of(url, name)
        host, port = (split.hostname or "").lower(), split.port or PORTS.get(split.scheme, 0)
        usual = port == PORTS.get(split.scheme)
        allowed = {f"{host}:{port}"} | ({host} if usual else set())
        if split.scheme not in PORTS or split.username is not None or not allowed & self.limits.hosts:
            raise RefusedError(
                f"{name}: images aren't fetched from {f'{split.scheme}://{host}:{port}'[:200]}. Send it as a data: "
                "URL, or have the server started with --allow-images-from.",
                "image_url_not_allowed",
            )
        try:
            addresses = await self.resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise RefusedError(f"{name}: {host[:100]} has no address.", "image_not_fetched") from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise RefusedError(f"{name}: {host[:100]} has an address that isn't public.", "image_url_not_allowed")
        address = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
        target = f"{split.scheme}://{address}:{port}{split.path or '/'}{f'?{split.query}' if split.query else ''}"
        headers = {"host": host if usual else f"{host}:{port}", "accept": "image/*", "accept-encoding": "identity"}
        try:
            return self.client.build_request("GET", target, headers=headers, extensions={"sni_hostname": host})
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RefusedError(f"{name}: its URL can't be read.", "invalid_image_url") from error

    def _opened(self, files: Sequence[bytes]) -> tuple[Image.Image, ...]:
        found, pixels = list[Image.Image](), 0
        for i, content in enumerate(files):
            try:
                with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                    pixels += image.width * image.height
                    if pixels > self.limits.pixels:
                        raise RefusedError(
                            f"image {i}: it brings the request to {pixels} pixels; at most {self.limits.pixels} are "
                            "taken. Send smaller ones.",
                            "image_too_large",
                            413,
                        )
                    found.append(decode(image))
            except RefusedError:
                raise
            except DataError as error:
                raise RefusedError(f"image {i} can't be read: {error.__cause__}.", "invalid_image") from error
            except Exception as error:  # whatever a codec raises on bytes that are no image
                raise RefusedError(
                    f"image {i} can't be read; expected a file of one of {', '.join(FORMATS)}.", "invalid_image"
                ) from error
        return tuple(found)

    def _too_large(self, name: str) -> RefusedError:
        return RefusedError(
            f"{name}: its file has more than {self.limits.image_bytes} bytes. Send a smaller one.",
            "image_too_large",
            413,
        )


def urlsplit_of(url: str, name: str) -> Any:
    """A URL, split.

    Raises:
        RefusedError: it is none.
    """
    try:
        split = urlsplit(url)
        _ = split.port
        return split
    except ValueError as error:
        raise RefusedError(f"{name}: its URL can't be read.", "invalid_image_url") from error


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, however it is written."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if int(found) >> 32 == 0x64FF9B << 64:  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast

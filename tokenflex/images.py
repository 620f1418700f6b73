"""Images from files, bytes and data sets as a viewer shows them: upright, in 8-bit RGB.

Files may come from anyone: only codecs that neither run programs nor are slow by design are used (`FORMATS`), and an
image's size is looked at before it is decoded (`MAX_PIXELS`).
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenflex.errors import DataError
from tokenflex.files import inside

DATA_URL = re.compile(r"data:image/[^,]*;base64,", re.IGNORECASE)
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
MAX_PIXELS = 89_478_485
"""Width x height of the largest image that is decoded; set it to allow larger ones: ``images.MAX_PIXELS = 2 * 10**8``.

It is the number above which PIL by itself warns; PIL refuses images of more than twice its own number,
``PIL.Image.MAX_IMAGE_PIXELS``, whatever is set here. Decoding takes at most 16 bytes of memory per pixel.
"""
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA", "PCX", "SGI"),
    "MPO",
)
"""Formats that are read, where PIL or a plugin of it knows them. Encapsulated PostScript, which PIL gives to another
program, is none of them."""
SLOW = 1 << 22
"""Pixels of run-length encoded bitmaps, which PIL decodes in Python."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image upright, by EXIF's orientation."""
ORIENTATION = 0x0112
OPAQUE = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "P": "RGBA"}
"""Modes that PIL can't make RGB of, or only with a warning, and what it is made of first."""
BLOCK = 1 << 20
"""Pixels that are scaled at a time."""


def decode(source: Any, folder: Path | None = None) -> Image.Image:
    """An image upright in 8-bit RGB, without metadata; what is given stays as it is.

    The pixels are those that transformers' ``load_image`` gives, so training and evaluation see what a pipeline sees:
    rotation by EXIF is applied, files hold their first frame, and transparent pixels have the colour that is stored
    for them. Greyscale of more than 8 bits is different: ``load_image`` clips it, here it is scaled. White is 65535 in
    16 bits; 32-bit integers and floats don't say, so white is the least of 1 (floats only), 255 and 65535 that no pixel
    exceeds, else the brightest pixel, and black is 0, or the darkest pixel where there are negative ones.

    Args:
        source: a PIL image, the bytes of an image file, its path, a ``data:image/...;base64,`` URL, or a mapping with
            ``bytes`` or ``path`` as ``datasets`` stores images. No other URL is opened.
        folder: where paths start; they must stay below it, links followed. None takes any path.

    Raises:
        DataError: names what can't be read, whatever the reason: a missing or truncated file, no image or one of a
            format that isn't read, a path that leads out of ``folder``, more pixels than `MAX_PIXELS` or PIL allow.
    """
    if isinstance(source, Mapping):
        content, path = source.get("bytes"), source.get("path")
        if isinstance(content, str):
            raise DataError("an image's 'bytes' are text; expected bytes of an image file, or a 'path'.")
        source = path if content is None else content
    if not isinstance(source, Image.Image | bytes | bytearray | str | Path):
        raise DataError(f"an image is {type(source).__name__}; expected a PIL image, bytes of an image file or a path.")
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(_source(source, folder), formats=_known()) as image:
            return _upright(image)
    except Exception as error:  # whatever a codec raises on bytes that are no image of its kind
        shown = str(source) if isinstance(source, str | Path) else type(source).__name__
        shown = shown if len(shown) <= 200 else f"{shown[:100]}..."
        raise DataError(f"image {shown!r} can't be read ({error}). Mend or remove it.") from error


def size(source: Any, folder: Path | None = None) -> tuple[int, int] | None:
    """(height, width) of an image as it is stored, without reading its pixels; None where it can't be told.

    Args:
        source, folder: as for `decode`.
    """
    if isinstance(source, Mapping):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    try:
        if isinstance(source, Image.Image):
            return source.height, source.width
        with Image.open(_source(source, folder), formats=_known()) as image:
            return image.height, image.width
    except Exception:  # `decode` says what is wrong with it
        return None


def _source(source: bytes | bytearray | str | Path, folder: Path | None) -> io.BytesIO | Path:
    if isinstance(source, bytes | bytearray):
        return io.BytesIO(source)
    if isinstance(source, str):
        encoded = DATA_URL.match(source)
        if encoded:
            return io.BytesIO(base64.b64decode(source[encoded.end() :]))
        if URL.match(source):
            raise ValueError("URLs aren't opened; download it and give its path")
    path = Path(source) if folder is None else inside(folder, str(source))
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is no file")
    return path


def _known() -> list[str]:
    """The names of `FORMATS` that are installed."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _upright(image: Image.Image) -> Image.Image:
    whites = _whites(image)
    _require_size(image)
    image.load()
    turn = UPRIGHT.get(_orientation(image))
    turned = image if turn is None else image.transpose(turn)
    if whites:
        turned = _scaled(turned, whites)
    made = (turned.convert(OPAQUE[turned.mode]) if turned.mode in OPAQUE else turned).convert("RGB")
    made.info.clear()
    return made


def _require_size(image: Image.Image) -> None:
    """Refuse an image that is empty or too large, before it is decoded."""
    pixels, sides = image.width * image.height, f"{image.width} x {image.height} pixels"
    if not pixels:
        raise ValueError(f"it has {sides}")
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"it has {sides}, {pixels:,} in all; at most tokenflex.images.MAX_PIXELS = {MAX_PIXELS:,} are decoded. "
            "Shrink it, or set that to more"
        )
    tiles: Any = getattr(image, "tile", None)
    if pixels > SLOW and tiles and any(tile[0] == "bmp_rle" for tile in tiles):
        raise ValueError(f"it is a run-length encoded bitmap of {sides}; at most {SLOW:,} are decoded. Save it as PNG")


def _orientation(image: Image.Image) -> Any:
    """The number by which EXIF tells how the image is turned; None where EXIF tells nothing or can't be read."""
    try:
        found = image.getexif().get(ORIENTATION)
        return found if isinstance(found, int) else None
    except Exception:
        return None


def _whites(image: Image.Image) -> Sequence[float]:
    """Values that may be white, from the least; none for images of 8 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return (65535,)
    return {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, ())


def _scaled(image: Image.Image, whites: Sequence[float]) -> Image.Image:
    values = np.asarray(image)
    rows = max(1, BLOCK // values.shape[1])
    blocks = [values[start : start + rows] for start in range(0, len(values), rows)]
    black, brightest = 0.0, 0.0
    for block in blocks:
        finite = block[np.isfinite(block)].astype(np.float64)
        black, brightest = finite.min(initial=black), finite.max(initial=brightest)
    white = next((white for white in whites if brightest <= white), brightest)
    made = np.empty(values.shape, np.uint8)
    for number, block in enumerate(blocks):
        shares = np.nan_to_num((block.astype(np.float64) - black) / (white - black), nan=0, posinf=1, neginf=0)
        made[number * rows :][: len(block)] = np.rint(shares * 255)
    return Image.fromarray(made)

"""Images from files, bytes and data sets as a viewer shows them: upright, in 8-bit RGB."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tokenflex.errors import DataError
from tokenflex.files import inside

DATA_URL = re.compile(r"data:image/[^,]*;base64,", re.IGNORECASE)
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def decode(given: Any, folder: Path | None = None) -> Image.Image:
    """An image upright in 8-bit RGB, without metadata; what is given stays as it is.

    The pixels are those that transformers' ``load_image`` gives, so training and evaluation see what a pipeline sees:
    rotation by EXIF is applied, files hold their first frame, and transparent pixels have the colour that is stored
    for them. Greyscale of more than 8 bits is different: ``load_image`` clips it, here it is scaled. White is 65535 in
    16 bits; 32-bit integers and floats don't say, so white is the least of 1 (floats only), 255 and 65535 that no pixel
    exceeds, else the brightest pixel, and black is 0, or the darkest pixel where there are negative ones.

    Args:
        given: a PIL image, the bytes of an image file, its path, a ``data:image/...;base64,`` URL, or a mapping with
            ``bytes`` or ``path`` as ``datasets`` stores images. No other URL is opened.
        folder: where paths start; they must stay below it, links followed. None takes any path.

    Raises:
        DataError: names what can't be read, whatever the reason: a missing or truncated file, no image, a path that
            leads out of ``folder``, more pixels than PIL allows.
    """
    if isinstance(given, Mapping):
        content, path = given.get("bytes"), given.get("path")
        if isinstance(content, str):
            raise DataError("a picture's 'bytes' are text; expected bytes of an image file, or a 'path'.")
        given = path if content is None else content
    if not isinstance(given, Image.Image | bytes | bytearray | str | Path):
        raise DataError(f"a picture is {type(given).__name__}; expected a PIL image, bytes of an image file or a path.")
    try:
        if isinstance(given, Image.Image):
            return _upright(given)
        with Image.open(_source(given, folder)) as image:
            return _upright(image)
    except Exception as error:  # whatever a codec raises on bytes that are no image of its kind
        shown = str(given) if isinstance(given, str | Path) else type(given).__name__
        shown = shown if len(shown) <= 200 else f"{shown[:100]}..."
        raise DataError(f"picture {shown!r} can't be read ({error}). Mend or remove it.") from error


def size(given: Any, folder: Path | None = None) -> tuple[int, int] | None:
    """(height, width) of an image as it is stored, without reading its pixels; None where it can't be told.

    Args:
        given, folder: as for `decode`.
    """
    if isinstance(given, Mapping):
        given = given.get("path") if given.get("bytes") is None else given["bytes"]
    try:
        if isinstance(given, Image.Image):
            return given.height, given.width
        with Image.open(_source(given, folder)) as image:
            return image.height, image.width
    except Exception:  # `decode` says what is wrong with it
        return None


def _source(given: bytes | bytearray | str | Path, folder: Path | None) -> io.BytesIO | Path:
    if isinstance(given, bytes | bytearray):
        return io.BytesIO(given)
    if isinstance(given, str):
        encoded = DATA_URL.match(given)
        if encoded:
            return io.BytesIO(base64.b64decode(given[encoded.end() :]))
        if URL.match(given):
            raise ValueError("URLs aren't opened; download it and give its path")
    path = Path(given) if folder is None else inside(folder, str(given))
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is no file")
    return path


def _upright(image: Image.Image) -> Image.Image:
    whites = _whites(image)
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    image.load()
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # EXIF that can't be read says nothing
        turned = image
    if whites:
        turned = _scaled(turned, whites)
    if turned.mode == "P":
        turned = turned.convert("RGBA")  # PIL warns of a palette's alpha on the way to RGB
    made = turned.convert("RGB")
    made.info.clear()
    return made


def _whites(image: Image.Image) -> Sequence[float]:
    """Values that may be white, from the least; none for images of 8 bits."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return (65535,)
    return {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, ())


def _scaled(image: Image.Image, whites: Sequence[float]) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    black, brightest = finite.min(initial=0), finite.max(initial=0)
    white = next((white for white in whites if brightest <= white), brightest)
    shares = np.nan_to_num((values - black) / (white - black), nan=0, posinf=1, neginf=0)
    return Image.fromarray(np.rint(shares * 255).astype(np.uint8))

"""Images with what was kept of them drawn in: the decision is data, so it can be shown."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from PIL import Image, ImageDraw

from tokenflex.contracts import HostInputs
from tokenflex.images import decode
from tokenflex.model import FlexModel
from tokenflex.model.encoding import chosen
from tokenflex.pages import CardImage, Overlay

WIDE, TINY = 480, 192
"""Pixels that images are shrunk to, and below which they are kept without loss."""
LARGEST = 2048
"""Pixels of the longer side of images in galleries; only larger ones are shrunk, so that pages of photographs open."""


@dataclass(frozen=True)
class Cells:
    """What became of the tokens of the view that shows the whole image.

    Attributes:
        rows, cols: of the view's grid before scaling; of a smaller image where that is what was encoded.
        into: row-major, the kept token each token went into; -1 where it was dropped.
    """

    rows: int
    cols: int
    into: Sequence[int]


@torch.no_grad()
def cells(flex: FlexModel, inputs: HostInputs, levels: Sequence[int]) -> list[Cells]:
    """Which tokens are kept of every image of a batch: of its first view, at its level."""
    made = chosen(flex, inputs, flex.encode(inputs, look=False), levels)
    return [
        Cells(image.grid.rows, image.grid.cols, kept.assignment[0].tolist())
        for image, kept in zip(made.images, made.scaled, strict=True)
    ]


def as_data(found: Sequence[Cells]) -> list[dict[str, object]]:
    """The cells of images as JSON-ready data."""
    return [asdict(one) for one in found]


def stored(image: Image.Image) -> bytes:
    """An image for a gallery, at its own resolution up to `LARGEST`: small ones without loss, others as JPEG."""
    return _encoded(image, LARGEST, quality=90)


def seen(content: bytes, kept: Cells | None, alt: str) -> CardImage:
    """A stored image as a gallery shows it; what the page holds is encoded here, whoever stored it.

    Raises:
        DataError: it can't be read.
    """
    image = decode(content)
    made = stored(image)
    kind = "image/png" if max(image.size) <= TINY else "image/jpeg"
    scale = min(1.0, LARGEST / max(image.size))
    overlay = None if kept is None else Overlay(kept.rows, kept.cols, kept.into)
    return CardImage(made, kind, round(image.width * scale), round(image.height * scale), alt, overlay)


def thumbnail(content: Image.Image) -> bytes:
    """An image for a page: small ones as they are, others shrunk."""
    return _encoded(content, WIDE, quality=85)


def _encoded(image: Image.Image, longest: int, quality: int) -> bytes:
    """Small images without loss, others as JPEG and at most ``longest`` pixels long."""
    target = io.BytesIO()
    if max(image.size) <= TINY:
        image.save(target, format="PNG", optimize=True)
        return target.getvalue()
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    image.save(target, format="JPEG", quality=quality)
    return target.getvalue()


def with_kept_tokens(content: bytes, kept: Cells | None) -> Image.Image:
    """The image, enlarged if it is small, with lines between kept tokens and what was dropped darkened."""
    image = decode(content)
    factor = max(1, WIDE // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if kept is None:
        return image
    xs = [round(i * image.width / kept.cols) for i in range(kept.cols + 1)]
    ys = [round(i * image.height / kept.rows) for i in range(kept.rows + 1)]
    into = [list(kept.into[row * kept.cols : (row + 1) * kept.cols]) for row in range(kept.rows)]
    dark = Image.new("RGB", image.size, (15, 23, 42))
    mask = Image.new("L", image.size, 0)
    shade, lines = ImageDraw.Draw(mask), list[tuple[int, int, int, int]]()
    for row in range(kept.rows):
        for col in range(kept.cols):
            here, box = into[row][col], (xs[col], ys[row], xs[col + 1], ys[row + 1])
            if here < 0:
                shade.rectangle(box, fill=190)
            if col and into[row][col - 1] != here:
                lines.append((box[0], box[1], box[0], box[3]))
            if row and into[row - 1][col] != here:
                lines.append((box[0], box[1], box[2], box[1]))
    image = Image.composite(dark, image, mask)
    right, low = image.width - 1, image.height - 1
    lines += [(0, 0, right, 0), (0, low, right, low), (0, 0, 0, low), (right, 0, right, low)]
    pen = ImageDraw.Draw(image)
    for width, colour in ((3, (15, 23, 42)), (1, (255, 255, 255))):
        for line in lines:
            pen.line(line, fill=colour, width=width)
    return image


def data_address(image: Image.Image) -> str:
    """An image as a data address, which a page can hold."""
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")

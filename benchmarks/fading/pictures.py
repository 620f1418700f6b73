"""Pictures that are named, told apart and looked at in detail: data that ships inside Python packages.

A washed crop of a photograph (scikit-image) is 4 x 4 cells of 16 pixels. The first cell has a printed letter, the
picture's name. One block of 2 x 2 cells is full of handwritten digits (scikit-learn), every one in another ink.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data as photographs

from tokenflex.quickstart.images import INKS, PHOTOS, WASHES, Split, digit_scans

CELL, SIDE = 16, 4
"""Pixels of a cell, and cells of a picture, down and across."""
NAMES = tuple("ABCDEFGHIJKL")
BLOCKS = ((0, 2), (2, 0), (2, 2))
"""First cells of the blocks that can hold digits; the fourth has the name."""
EMPTY = (10, len(INKS))
"""Digit and ink of a cell that has none."""


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows.

    Attributes:
        cells: ``(SIDE, SIDE, 2)``, digit and ink per cell, or `EMPTY`.
        name, photo, wash: indices into `NAMES`, ``PHOTOS``, ``WASHES``.
        digits: digit by ink, as indices.
    """

    image: Image.Image
    cells: np.ndarray
    name: int
    photo: int
    wash: int
    digits: dict[int, int]

    @property
    def looks(self) -> tuple[int, int]:
        """Photograph and wash, by which a picture can be told from others."""
        return self.photo, self.wash


@cache
def _photograph(number: int) -> np.ndarray:
    """A greyscale photograph, 0..1, a little larger than a picture."""
    photo = Image.fromarray(getattr(photographs, list(PHOTOS.values())[number])()).convert("L")
    scale = 1.3 * SIDE * CELL / min(photo.size)
    size = (round(photo.width * scale), round(photo.height * scale))
    return np.asarray(photo.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255


@cache
def _letter(number: int, across: int, down: int) -> np.ndarray:
    """A printed letter, dark on light, 0..255."""
    chip = Image.new("L", (CELL, CELL), 235)
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(chip).text((CELL / 2 + across, CELL / 2 + down), NAMES[number], fill=0, font=font, anchor="mm")
    return np.asarray(chip, dtype=np.float32)[..., None]


def draw(rng: np.random.Generator, split: Split, name: int, looks: tuple[int, int] | None = None) -> Picture:
    """A random picture of that name, 64 x 64 pixels.

    Args:
        split: of the handwritten digits; the two share none.
        looks: photograph and wash; None: random ones.
    """
    photo, wash = looks or (int(rng.integers(len(PHOTOS))), int(rng.integers(len(WASHES))))
    source, side = _photograph(photo), SIDE * CELL
    top, left = (int(rng.integers(extent - side + 1)) for extent in source.shape)
    pixels = 110 * source[top : top + side, left : left + side, None] + 0.55 * np.array(list(WASHES.values())[wash])
    pixels[:CELL, :CELL] = _letter(name, *(int(n) for n in rng.integers(-1, 2, 2)))
    cells = np.tile(np.array(EMPTY), (SIDE, SIDE, 1))
    top, left = BLOCKS[int(rng.integers(len(BLOCKS)))]
    places = [(top + i, left + j) for i in range(2) for j in range(2)]
    scans, labels = digit_scans(split)
    values, inks, contrast = rng.permutation(10)[:4], rng.permutation(len(INKS))[:4], rng.uniform(0.7, 1.0)
    for (row, column), value, ink in zip(places, values, inks, strict=True):
        scan = scans[rng.choice(np.flatnonzero(labels == value))]
        chip = np.zeros((CELL, CELL, 3))
        chip[1:-1, 1:-1] = scan[..., None] * (contrast * np.array(list(INKS.values())[ink]))
        pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = chip
        cells[row, column] = value, ink
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    digits = {int(ink): int(value) for value, ink in zip(values, inks, strict=True)}
    return Picture(image, cells, name, photo, wash, digits)


def stock(seed: int, count: int) -> list[Picture]:
    """``count`` training pictures, their names in turn."""
    rng = np.random.default_rng((seed, count))
    return [draw(rng, "train", i % len(NAMES)) for i in range(count)]

"""Images and questions of the embedded task, made from data that ships inside Python packages.

Handwritten digits (scikit-learn) in coloured ink lie on a washed crop of a photograph (scikit-image). An image
has no digit, one, or several, all of one size. Coarse questions (which photograph, which wash, how many digits)
survive heavy pooling. Fine ones ask about one digit among as many as there is room for, and how much pooling they
survive depends on the image: a digit fills a window of one of the levels of the published pyramid, so coarser levels
mix it with its neighbours, and finer ones waste tokens on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from tokenflex.errors import ConfigError
from tokenflex.ops.pooling import PYRAMID

try:
    from skimage import data as photographs
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    raise ConfigError(
        f"the quickstart's images are made from data inside scikit-image and scikit-learn ({missing}): "
        "pip install 'tokenflex[quickstart]'."
    ) from missing

CELL = 16
ROWS, COLS = 4, 8
INKS = {
    "red": (255, 40, 40),
    "green": (40, 230, 60),
    "blue": (70, 110, 255),
    "yellow": (250, 235, 40),
    "cyan": (40, 235, 235),
    "pink": (255, 80, 230),
    "white": (255, 255, 255),
    "orange": (255, 150, 20),
}
WASHES = {"crimson": (220, 30, 60), "olive": (130, 140, 20), "navy": (30, 40, 160), "teal": (20, 150, 150)}
PHOTOS = {
    "brick": "brick",
    "coins": "coins",
    "page": "page",
    "cameraman": "camera",
    "cat": "chelsea",
    "galaxies": "hubble_deep_field",
}
SIZES = tuple(reversed(PYRAMID))
"""Of digits, small to large: cells down and across, the windows of the levels."""
SIZE_SHARES = (0.3, 0.25, 0.2, 0.15, 0.1)
CROWD = (2, 4, 8)
"""Digits of an image that has several; large ones have room for four or two."""
CONTRAST = (0.6, 1.0)
"""The least and the most of an ink's brightness; one per image."""
COLOURS = np.array(list(INKS.values()), dtype=np.float32)
NO_DIGIT = 10
COUNTS = ("none", "one", "many")
FINE_KINDS = ("digit", "ink")
COARSE_KINDS = ("photo", "wash", "count")
SENTENCES = {
    "which photo": "Which photograph is in the background?",
    "which wash": "Which colour is the photograph washed in?",
    "how many": "How many digits are there: none, one or many?",
    **{f"digit {ink}": f"Which digit is {ink}?" for ink in INKS},
    **{f"ink {digit}": f"Which colour is the digit {digit}?" for digit in range(10)},
}
"""Questions as the language model is asked them, in the few words it knows, and as sentences for the reader."""
Split = Literal["train", "test"]
Row = dict[str, Any]


@dataclass(frozen=True)
class SceneQuestion:
    """One question about one image.

    The fine kinds ask about one digit among as many as there is room for. The same questions about fewer digits
    (``digit-few``, ``ink-few``) are practice: they are easier, and only training uses them.
    """

    kind: str
    question: str
    answer: str

    @property
    def fine(self) -> bool:
        """Whether answering needs detail."""
        return self.kind in FINE_KINDS


@dataclass(frozen=True)
class Scene:
    """An image, what can be asked about it, and what each 16-pixel cell shows.

    Attributes:
        cells: ``(ROWS, COLS, 2)``, digit (10: none) and ink (8: none) per cell; a large digit has several cells.
        photo, wash: indices into ``PHOTOS`` and ``WASHES``.
        size: of its digits, an index into ``SIZES``.
    """

    image: Image.Image
    questions: tuple[SceneQuestion, ...]
    cells: np.ndarray
    photo: int
    wash: int
    size: int

    @property
    def digits(self) -> int:
        """How many digits there are; no two are the same."""
        return len(set(self.cells[..., 0].ravel().tolist()) - {NO_DIGIT})


@cache
def _digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(scans 0..255 at 8 x 8, labels): every fifth scan is a test scan."""
    bunch: Any = load_digits()
    test = np.arange(len(bunch.target)) % 5 == 0
    chosen = test if split == "test" else ~test
    return (bunch.images[chosen] * 255 / 16).astype(np.uint8), bunch.target[chosen]


@cache
def _photo(name: str) -> np.ndarray:
    """Greyscale photograph, 0..1, a little larger than an image."""
    photo = Image.fromarray(getattr(photographs, PHOTOS[name])()).convert("L")
    scale = max(1.2 * ROWS * CELL / photo.height, 1.2 * COLS * CELL / photo.width)
    size = (round(photo.width * scale), round(photo.height * scale))
    return np.asarray(photo.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _background(rng: np.random.Generator, photo: int, wash: int) -> np.ndarray:
    """A random crop of the photograph, washed with a colour: ``(64, 128, 3)``, 0..255."""
    source = _photo(list(PHOTOS)[photo])
    top = rng.integers(0, source.shape[0] - ROWS * CELL + 1)
    left = rng.integers(0, source.shape[1] - COLS * CELL + 1)
    crop = source[top : top + ROWS * CELL, left : left + COLS * CELL, None]
    return 110 * crop + 0.55 * np.array(list(WASHES.values())[wash], dtype=np.float32)


def _places(rng: np.random.Generator, count: str, size: tuple[int, int]) -> tuple[list[tuple[int, int]], int]:
    """(First cells of the digits, how many there is room for): none, one anywhere, or a block in each half.

    A block has two digits down and two across, or as many as a half has room for.

    Args:
        size: cells of a digit, down and across.
    """
    down, across = size
    if count == "none":
        return [], 0
    if count == "one":
        return [(down * int(rng.integers(ROWS // down)), across * int(rng.integers(COLS // across)))], 1
    half = COLS // 2
    high, wide = min(2 * down, ROWS), min(2 * across, half)
    corners = [(high * int(rng.integers(ROWS // high)), left + wide * int(rng.integers(half // wide)))
               for left in (0, half)]  # fmt: skip
    full = [(r + i, c + j) for r, c in corners for i in range(0, high, down) for j in range(0, wide, across)]
    fewer = [number for number in CROWD if number < len(full)]
    number = int(rng.choice(fewer)) if fewer and rng.random() < 0.5 else len(full)
    return [full[i] for i in rng.permutation(len(full))[:number]], len(full)


@cache
def _scans_of(split: Split, digit: int) -> np.ndarray:
    """Numbers of the scans that show a digit."""
    return np.flatnonzero(_digits(split)[1] == digit)


@cache
def _chip(split: Split, scan: int, size: tuple[int, int]) -> np.ndarray:
    """How much ink a digit has where, 0..1, ``(height, width, 1)``; it fills ``size`` cells but for one pixel around."""
    height, width = size[0] * CELL, size[1] * CELL
    drawn = Image.fromarray(_digits(split)[0][scan]).resize((width - 2, height - 2), Image.Resampling.BICUBIC)
    chip = np.zeros((height, width, 1), dtype=np.float32)
    chip[1:-1, 1:-1, 0] = np.asarray(drawn, dtype=np.float32) / 255
    return chip


def draw(rng: np.random.Generator, split: Split) -> Scene:
    """One random image, 128 x 64 pixels, with everything that can be asked about it."""
    count = COUNTS[rng.choice(3, p=(0.2, 0.2, 0.6))]
    photo, wash = int(rng.integers(len(PHOTOS))), int(rng.integers(len(WASHES)))
    kind, contrast = int(rng.choice(len(SIZES), p=SIZE_SHARES)), rng.uniform(*CONTRAST)
    pixels, (down, across) = _background(rng, photo, wash), SIZES[kind]
    places, room = _places(rng, count, SIZES[kind])
    values, inks = rng.permutation(10)[: len(places)], rng.permutation(len(INKS))[: len(places)]
    cells = np.stack([np.full((ROWS, COLS), NO_DIGIT), np.full((ROWS, COLS), len(INKS))], axis=-1)
    for (row, col), value, ink in zip(places, values, inks, strict=True):
        alike, top, left = _scans_of(split, int(value)), row * CELL, col * CELL
        chip = _chip(split, int(alike[rng.integers(len(alike))]), SIZES[kind])
        pixels[top : top + down * CELL, left : left + across * CELL] = chip * (contrast * COLOURS[ink])
        cells[row : row + down, col : col + across] = value, ink
    asked = [
        SceneQuestion("photo", "which photo", list(PHOTOS)[photo]),
        SceneQuestion("wash", "which wash", list(WASHES)[wash]),
    ]
    if len(places) != CROWD[0]:
        asked.append(SceneQuestion("count", "how many", count))
    if places:
        few = "" if len(places) == room and count == "many" else "-few"
        for value, ink in zip(values, [list(INKS)[ink] for ink in inks], strict=True):
            asked.append(SceneQuestion(f"digit{few}", f"digit {ink}", str(value)))
            asked.append(SceneQuestion(f"ink{few}", f"ink {value}", ink))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return Scene(image, tuple(asked), cells, photo, wash, kind)


def images(seed: int, split: Split, count: int) -> Iterator[Scene]:
    """``count`` images; the splits share no scan of a digit and no random numbers."""
    rng = np.random.default_rng((seed, ("train", "test").index(split)))
    for _ in range(count):
        yield draw(rng, split)


def practice(seed: int, stock: Sequence[Scene], count: int, turns: int, *, coarse: bool) -> list[Row]:
    """Conversations of several turns about images drawn from ``stock``, in random order.

    Args:
        turns: questions per image, at most.
        coarse: ask all coarse questions too; otherwise only about digits and inks, where there are any.
    """
    rng = np.random.default_rng((seed, count, turns))
    rows = []
    for _ in range(count):
        scene = stock[int(rng.integers(len(stock)))]
        plain = [q for q in scene.questions if q.kind in COARSE_KINDS]
        detail = [q for q in scene.questions if q.kind not in COARSE_KINDS]
        always = plain if coarse or not detail else []
        chosen = [detail[i] for i in rng.permutation(len(detail))[: turns - len(always)]] + always
        rows.append(row(scene, [chosen[i] for i in rng.permutation(len(chosen))]))
    return rows


def exam(seed: int, split: Split, count: int) -> list[tuple[Scene, SceneQuestion]]:
    """``count`` single questions about as many new images, one third of them fine, kinds in equal parts."""
    rng = np.random.default_rng((seed, ("train", "test").index(split), count))
    asked = []
    for i in range(count):
        third, place = divmod(i, 3)
        kind = FINE_KINDS[third % len(FINE_KINDS)]
        if place > 0:
            kind = COARSE_KINDS[(2 * third + place - 1) % len(COARSE_KINDS)]
        fitting: list[SceneQuestion] = []
        while not fitting:
            scene = draw(rng, split)
            fitting = [q for q in scene.questions if q.kind == kind]
        asked.append((scene, fitting[rng.integers(len(fitting))]))
    return asked


def row(scene: Scene, questions: Sequence[SceneQuestion]) -> Row:
    """A row in chat format."""
    messages = []
    for i, question in enumerate(questions):
        parts = [{"type": "image"}] * (i == 0) + [{"type": "text", "text": question.question}]
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": question.answer})
    return {"image": scene.image, "messages": messages}


def described(scene: Scene) -> str:
    """What a scene shows, for those who don't see it."""
    names = list(INKS)
    cells = dict.fromkeys(map(tuple, scene.cells.reshape(-1, 2).tolist()))
    shown = [f"{digit} in {names[ink]}" for digit, ink in cells if digit < NO_DIGIT]
    digits = f"the handwritten digit{'s' * (len(shown) > 1)} {', '.join(shown)}" if shown else "no digit"
    return f'photograph "{list(PHOTOS)[scene.photo]}" washed in {list(WASHES)[scene.wash]}, with {digits}'


def words() -> tuple[str, ...]:
    """Every word that questions and answers use."""
    asked: Sequence[str] = ("which", "photo", "wash", "how", "many", "digit", "ink", "none", "one")
    return tuple(dict.fromkeys([*asked, *map(str, range(10)), *INKS, *WASHES, *PHOTOS]))

"""Images and questions of the embedded task, made from data that ships inside Python packages.

Handwritten digits (scikit-learn) in coloured ink lie on a washed crop of a photograph (scikit-image). An image
has no digit, one, or several, which stand densely or far apart. Coarse questions (which photograph, which wash, how
many digits) survive heavy pooling. Fine ones ask about one digit among several, and how much pooling they survive
depends on the image: every digit has a window of one of the levels of the published pyramid to itself, so coarser
levels mix it with its neighbours, and finer ones waste tokens on it.
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
SPACINGS = tuple(reversed(PYRAMID))
"""Dense to sparse: the window, in cells down and across, that a digit has to itself; those of the levels."""
SPACING_SHARES = (0.3, 0.25, 0.2, 0.15, 0.1)
CROWD = (2, 4, 8)
"""Digits of an image that has several; sparse ones have room for four or two."""
CONTRAST = (0.7, 1.0)
"""The least and the most of the inks' brightness; one per image."""
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
        """Whether the question needs fine detail of the image."""
        return self.kind in FINE_KINDS


@dataclass(frozen=True)
class Scene:
    """An image, what can be asked about it, and what each 16-pixel cell shows.

    Attributes:
        cells: ``(ROWS, COLS, 2)``, digit (10: none) and ink (8: none) per cell.
        photo, wash: indices into ``PHOTOS`` and ``WASHES``.
        spacing: of its digits, an index into ``SPACINGS``.
    """

    image: Image.Image
    questions: tuple[SceneQuestion, ...]
    cells: np.ndarray
    photo: int
    wash: int
    spacing: int


@cache
def digit_scans(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(scans 0..1 at 14 x 14, labels): every fifth scan is a test scan."""
    bunch: Any = load_digits()
    test = np.arange(len(bunch.target)) % 5 == 0
    chosen = test if split == "test" else ~test
    scans = [
        np.asarray(Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((14, 14), Image.Resampling.BICUBIC))
        for scan in bunch.images[chosen]
    ]
    return np.stack(scans).astype(np.float32) / 255, bunch.target[chosen]


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


def _places(rng: np.random.Generator, count: str, spacing: tuple[int, int]) -> tuple[list[tuple[int, int]], int]:
    """(Cells of the digits, how many there is room for): none, one anywhere, or one in each of some windows.

    Either half of the image has a block of two windows down and two across, or as many as it has room for.

    Args:
        spacing: cells of a window, down and across.
    """
    if count == "none":
        return [], 0
    if count == "one":
        return [(int(rng.integers(ROWS)), int(rng.integers(COLS)))], 1
    (down, across), half = spacing, COLS // 2
    high, wide = min(2 * down, ROWS), min(2 * across, half)
    corners = [
        (high * int(rng.integers(ROWS // high)), left + wide * int(rng.integers(half // wide))) for left in (0, half)
    ]
    windows = [(r + i, c + j) for r, c in corners for i in range(0, high, down) for j in range(0, wide, across)]
    fewer = [number for number in CROWD if number < len(windows)]
    number = int(rng.choice(fewer)) if fewer and rng.random() < 0.5 else len(windows)
    chosen = [windows[i] for i in rng.permutation(len(windows))[:number]]
    return [(r + int(rng.integers(down)), c + int(rng.integers(across))) for r, c in chosen], len(windows)


def draw(rng: np.random.Generator, split: Split) -> Scene:
    """One random image, 128 x 64 pixels, with everything that can be asked about it."""
    count = COUNTS[rng.choice(3, p=(0.2, 0.2, 0.6))]
    photo, wash = int(rng.integers(len(PHOTOS))), int(rng.integers(len(WASHES)))
    spacing, contrast = int(rng.choice(len(SPACINGS), p=SPACING_SHARES)), rng.uniform(*CONTRAST)
    pixels = _background(rng, photo, wash)
    places, room = _places(rng, count, SPACINGS[spacing])
    scans, labels = digit_scans(split)
    values, inks = rng.permutation(10)[: len(places)], rng.permutation(len(INKS))[: len(places)]
    cells = np.stack([np.full((ROWS, COLS), NO_DIGIT), np.full((ROWS, COLS), len(INKS))], axis=-1)
    for (row, col), value, ink in zip(places, values, inks, strict=True):
        scan = scans[rng.choice(np.flatnonzero(labels == value))]
        chip = np.zeros((CELL, CELL, 3), dtype=np.float32)
        chip[1:-1, 1:-1] = scan[..., None] * (contrast * COLOURS[ink])
        pixels[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL] = chip
        cells[row, col] = value, ink
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
    return Scene(image, tuple(asked), cells, photo, wash, spacing)


def scenes(seed: int, split: Split, count: int) -> Iterator[Scene]:
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
    """``count`` single questions about as many new images, one third of them fine, kinds in equal shares."""
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
    """A row in chat format: the image, and the questions with their answers."""
    messages = []
    for i, question in enumerate(questions):
        content = [{"type": "image"}] * (i == 0) + [{"type": "text", "text": question.question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": question.answer})
    return {"image": scene.image, "messages": messages}


def scene_in_words(scene: Scene) -> str:
    """What a scene shows, for those who don't see it."""
    names = list(INKS)
    shown = [f"{digit} in {names[ink]}" for digit, ink in scene.cells.reshape(-1, 2).tolist() if digit < NO_DIGIT]
    digits = f"the handwritten digit{'s' * (len(shown) > 1)} {', '.join(shown)}" if shown else "no digit"
    return f'photograph "{list(PHOTOS)[scene.photo]}" washed in {list(WASHES)[scene.wash]}, with {digits}'


def words() -> tuple[str, ...]:
    """Every word that questions and answers use."""
    asked: Sequence[str] = ("which", "photo", "wash", "how", "many", "digit", "ink", "none", "one")
    return tuple(dict.fromkeys([*asked, *map(str, range(10)), *INKS, *WASHES, *PHOTOS]))

"""Images of the study: drawings, photographs, charts, pages and signs, each with text to read and a whole to name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tokenflex.study.charts import CHARTS, Chart, chart
from tokenflex.study.sources import DRAWINGS, Sources

SIDE, CELL = 192, 16
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PITCH = 17
"""Pixels from one character to the next, at least: no two of a line share a cell."""
COLOURS = {
    "red": (200, 30, 40),
    "blue": (30, 60, 190),
    "green": (20, 120, 50),
    "black": (20, 20, 20),
    "purple": (120, 30, 140),
}
KINDS = ("drawing", "photo", "chart", "page", "sign")
SCENE_KINDS = ("type", "drawing", "chart", "colour")
READING_KINDS = ("label", "bar", "word", "number")
SIZES = (19, 22)
"""The least and the largest font, in pixels."""
LINE = 19
"""Pixels from one line of a label to the next."""
WHITE = "white"
INKS = (*COLOURS, WHITE)
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class StudyQuestion:
    """One question about one image.

    Attributes:
        kind: of ``SCENE_KINDS`` or ``READING_KINDS``.
    """

    kind: str
    question: str
    answer: str

    @property
    def reading(self) -> bool:
        """Whether the answer is written in the image."""
        return self.kind in READING_KINDS


@dataclass
class Drawn:
    """An image while it is drawn, and what stands where.

    Attributes:
        characters: each with the middle of its glyph, in pixels, and the name of its colour.
        subject: the box of what a drawing shows, and its name.
    """

    image: Image.Image
    characters: list[tuple[str, float, float, str]] = field(default_factory=list)
    subject: tuple[Box, str] | None = None

    def write(self, text: str, middle: tuple[float, float], font: Any, colour: str = "black") -> None:
        """Write one line around a point, character by character."""
        pen = ImageDraw.Draw(self.image)
        pitches = [max(PITCH, pen.textlength(character, font=font) + 1) for character in text]
        x = middle[0] - sum(pitches) / 2
        for character, pitch in zip(text, pitches, strict=True):
            paint = COLOURS.get(colour, (250, 250, 250))
            pen.text((x + pitch / 2, middle[1]), character, font=font, fill=paint, anchor="mm")
            self.characters.append((character, x + pitch / 2, middle[1], colour))
            x += pitch


@dataclass(frozen=True)
class StudyImage:
    """An image, what can be asked about it, and what its cells show.

    Attributes:
        kind: of ``KINDS``.
        questions: at least one about the whole and one to read.
        cells: ``(12, 12, 2)``, of the character whose middle lies in a cell its index (36: none), and its colour's in
            ``INKS`` (6: none).
        subject: ``(12, 12)``, what a drawing shows, in the cells of its box (10: nothing).
    """

    image: Image.Image
    kind: str
    questions: tuple[StudyQuestion, ...]
    cells: np.ndarray
    subject: np.ndarray


@cache
def font_of(file: Path, size: int) -> Any:
    """A font of Pillow, loaded once."""
    return ImageFont.truetype(str(file), size)


class Painter:
    """Draws random images of one split.

    Args:
        sources: of the split.
        seed: decides everything.
    """

    def __init__(self, sources: Sources, seed: int | tuple[int, ...]) -> None:
        self.sources, self.rng, self._count = sources, np.random.default_rng(seed), 0

    def next(self) -> StudyImage:
        """The next image; the kinds take turns."""
        self._count += 1
        return self.draw(KINDS[(self._count - 1) % len(KINDS)])

    def draw(self, kind: str) -> StudyImage:
        """One image of a kind, 192 x 192 pixels."""
        drawn, asked = getattr(self, f"_{kind}")()
        questions = (StudyQuestion("type", "What type of image is this?", kind), *asked)
        return StudyImage(drawn.image, kind, questions, _cells(drawn), _subject(drawn))

    def _pick(self, among: Sequence[Any]) -> Any:
        return among[int(self.rng.integers(len(among)))]

    def _font(self, size: int | None = None) -> Any:
        return font_of(self._pick(self.sources.fonts), size or int(self.rng.integers(*SIZES, endpoint=True)))

    def _pale(self, least: int = 185) -> tuple[int, int, int]:
        red, green, blue = self.rng.integers(least, 256, 3).tolist()
        return red, green, blue

    def _crop(self) -> Image.Image:
        """A random part of a photograph."""
        photograph = self._pick(self.sources.photographs)
        side = int(min(photograph.size) * self.rng.uniform(0.45, 1.0))
        left = int(self.rng.integers(photograph.width - side + 1))
        top = int(self.rng.integers(photograph.height - side + 1))
        crop = photograph.crop((left, top, left + side, top + side))
        if self.rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    def _number(self, digits: int) -> str:
        return str(int(self.rng.integers(10 ** (digits - 1), 10**digits)))

    def _labels(self, drawn: Drawn, places: Sequence[tuple[float, float]]) -> list[StudyQuestion]:
        """Pale labels with two numbers each, one above the other, all in different colours, by which they are asked."""
        asked, pen = [], ImageDraw.Draw(drawn.image)
        names = [list(COLOURS)[i] for i in self.rng.permutation(len(COLOURS))[: 2 * len(places)]]
        for i, (x, y) in enumerate(places):
            pen.rounded_rectangle((x - 32, y - 24, x + 32, y + 24), 6, fill=self._pale(235), outline=(90, 90, 90))
            font = self._font()
            for name, shift in zip(names[2 * i : 2 * i + 2], (-LINE / 2, LINE / 2), strict=True):
                number = self._number(3)
                drawn.write(number, (x, y + shift), font, name)
                asked.append(StudyQuestion("label", f"What is the {name} number?", number))
        return asked

    def _drawing(self) -> tuple[Drawn, list[StudyQuestion]]:
        drawn = Drawn(Image.new("RGB", (SIDE, SIDE), self._pale()) if self.rng.random() < 0.6 else self._washed())
        subject = self._pick(list(DRAWINGS))
        side = int(self.rng.integers(92, 115))
        emoji = self._pick(self.sources.emoji[subject]).resize((side, side), Image.Resampling.BICUBIC)
        upper = bool(self.rng.random() < 0.5)
        left = int(self.rng.integers(2, SIDE - side - 1))
        top = int(self.rng.integers(2, 8)) if upper else SIDE - side - int(self.rng.integers(2, 8))
        drawn.image.paste(emoji, (left, top), emoji)
        drawn.subject = ((left, top, left + side, top + side), subject)
        free = (side + 30, SIDE - 25) if upper else (25, SIDE - side - 30)
        rows = self.rng.uniform(*free, size=2)
        places = [(self.rng.uniform(34, 60), float(rows[0])), (self.rng.uniform(132, 158), float(rows[1]))]
        return drawn, [StudyQuestion("drawing", "What does the drawing show?", subject), *self._labels(drawn, places)]

    def _washed(self) -> Image.Image:
        return Image.blend(self._crop(), Image.new("RGB", (SIDE, SIDE), self._pale()), self.rng.uniform(0.55, 0.8))

    def _photo(self) -> tuple[Drawn, list[StudyQuestion]]:
        drawn = Drawn(self._crop())
        places = [
            (self.rng.uniform(34, 60), self.rng.uniform(25, SIDE - 25)),
            (self.rng.uniform(132, 158), self.rng.uniform(25, SIDE - 25)),
        ]
        return drawn, self._labels(drawn, places)

    def _chart(self) -> tuple[Drawn, list[StudyQuestion]]:
        made: Chart = chart(self._pick(CHARTS), self.rng, COLOURS)
        drawn, font = Drawn(made.image), self._font()
        word = self._pick(self.sources.words)
        drawn.write(word, (SIDE / 2, SIDE - 14), font)
        asked = [
            StudyQuestion("chart", "What kind of chart is it?", made.kind),
            StudyQuestion("word", "Spell the word under the chart.", spelled(word)),
        ]
        for name, x, top in made.bars:
            value = self._number(2)
            drawn.write(value, (x, top - 11), font)
            asked.append(StudyQuestion("bar", f"What is the value of the {name} bar?", value))
        return drawn, asked

    def _page(self) -> tuple[Drawn, list[StudyQuestion]]:
        paper = int(self.rng.integers(235, 256))
        drawn = Drawn(Image.new("RGB", (SIDE, SIDE), (paper, paper, paper - int(self.rng.integers(0, 12)))))
        pen = ImageDraw.Draw(drawn.image)
        word, number = self._pick(self.sources.words), self._number(2)
        drawn.write(word, (self.rng.uniform(60, 132), 22), self._font())
        drawn.write(number, (self.rng.uniform(40, 152), SIDE - 16), self._font())
        for y in range(44, SIDE - 36, int(self.rng.integers(8, 13))):
            x = 14
            while x < SIDE - 30:
                wide = int(self.rng.integers(8, 30))
                pen.line((x, y, min(x + wide, SIDE - 14), y), fill=(110, 110, 110), width=3)
                x += wide + 5
        asked = [
            StudyQuestion("word", "Spell the word above the text.", spelled(word)),
            StudyQuestion("number", "What is the page number?", number),
        ]
        return drawn, asked

    def _sign(self) -> tuple[Drawn, list[StudyQuestion]]:
        drawn, name = Drawn(self._crop()), self._pick(list(COLOURS))
        pen = ImageDraw.Draw(drawn.image)
        x, y = (float(value) for value in self.rng.uniform(74, SIDE - 74, 2))
        reach = float(self.rng.uniform(54, 68))
        pen.rectangle((x - 4, y, x + 4, SIDE), fill=(120, 120, 120))
        sides, turn = self._pick(((8, 22.5), (6, 0.0), (4, 0.0), (36, 0.0)))
        pen.regular_polygon((x, y, reach), sides, rotation=turn, fill=COLOURS[name], outline=(245, 245, 245), width=3)
        word, number = self._pick(self.sources.words), self._number(2)
        drawn.write(word, (x, y - 12), self._font(), WHITE)
        drawn.write(number, (x, y + 12), self._font(), WHITE)
        asked = [
            StudyQuestion("colour", "What colour is the sign?", name),
            StudyQuestion("word", "Spell the word on the sign.", spelled(word)),
            StudyQuestion("number", "What is the number on the sign?", number),
        ]
        return drawn, asked


def spelled(word: str) -> str:
    """Its letters with spaces between them, so that an answer is a token per letter."""
    return " ".join(word)


def images(sources: Sources, seed: int | tuple[int, ...], count: int) -> Iterator[StudyImage]:
    """``count`` random images, kinds in equal shares."""
    painter = Painter(sources, seed)
    for _ in range(count):
        yield painter.next()


def _cells(drawn: Drawn) -> np.ndarray:
    cells = np.empty((SIDE // CELL, SIDE // CELL, 2), dtype=np.int64)
    cells[...] = len(CHARACTERS), len(INKS)
    for character, x, y, colour in drawn.characters:
        row, col = int(y // CELL), int(x // CELL)
        if 0 <= row < cells.shape[0] and 0 <= col < cells.shape[1]:
            cells[row, col] = CHARACTERS.index(character), INKS.index(colour)
    return cells


def _subject(drawn: Drawn) -> np.ndarray:
    shown = np.full((SIDE // CELL, SIDE // CELL), len(DRAWINGS))
    if drawn.subject is not None:
        (left, top, right, bottom), name = drawn.subject
        half = CELL // 2
        rows, cols = (
            slice((low + half) // CELL, (high + half) // CELL) for low, high in ((top, bottom), (left, right))
        )
        shown[rows, cols] = list(DRAWINGS).index(name)
    return shown

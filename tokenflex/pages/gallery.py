"""Questions with their images, and what was kept of these, drawn over them as lines that scale with the page."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

TINY = 192
"""Pixels of the longer side, up to which an enlarged image shows its pixels instead of blurring them."""
VERDICTS = {"wrong": "wrong", "partly": "partly right", "right": "right"}
"""What becomes of an answer, and how a page says it."""


@dataclass(frozen=True)
class Overlay:
    """What became of the tokens of an image.

    Attributes:
        rows, cols: of the grid that lies over the whole image.
        into: row-major, the kept token each token went into; -1 where it was dropped.
    """

    rows: int
    cols: int
    into: Sequence[int]

    @classmethod
    def grid(cls, rows: int, cols: int) -> "Overlay":
        """Of which every cell is kept."""
        return cls(rows, cols, range(rows * cols))

    @cached_property
    def lines(self) -> str:
        """An SVG path of the borders between kept tokens, in units of cells."""
        runs = [*self._runs(across=True), *self._runs(across=False)]
        frame = f"M0 0h{self.cols}v{self.rows}h-{self.cols}z"
        return "".join([frame, *runs])

    @cached_property
    def dark(self) -> str:
        """An SVG path of the cells that were dropped, in units of cells; empty where none was."""
        found = []
        for row in range(self.rows):
            for start, end in _stretches([self.into[row * self.cols + col] < 0 for col in range(self.cols)]):
                found.append(f"M{start} {row}h{end - start}v1h-{end - start}z")
        return "".join(found)

    @property
    def dropped(self) -> float:
        """Share of the cells that were dropped."""
        return sum(one < 0 for one in self.into) / max(len(self.into), 1)

    def _runs(self, *, across: bool) -> list[str]:
        """Borders along rows (``across``) or along columns; neighbours are one line."""
        outer, inner = (self.rows, self.cols) if across else (self.cols, self.rows)
        found = []
        for line in range(1, outer):
            differs = [self._at(line - 1, i, across) != self._at(line, i, across) for i in range(inner)]
            for start, end in _stretches(differs):
                found.append(f"M{start} {line}h{end - start}" if across else f"M{line} {start}v{end - start}")
        return found

    def _at(self, line: int, place: int, across: bool) -> int:
        row, col = (line, place) if across else (place, line)
        return self.into[row * self.cols + col]


@dataclass(frozen=True)
class CardImage:
    """An image of a card at its own resolution.

    Attributes:
        content: an encoded image.
        kind: its media type, such as ``image/png``.
        alt: what is seen, and what was chosen.
        overlay: None where it is not known what was kept.
    """

    content: bytes
    kind: str
    width: int
    height: int
    alt: str
    overlay: Overlay | None = None

    @property
    def source(self) -> str:
        """The image as a data address, which a page can hold."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def tiny(self) -> bool:
        """Whether its pixels are shown as squares."""
        return max(self.width, self.height) <= TINY


@dataclass(frozen=True)
class Card:
    """A question, its answer, and what is said of it.

    Attributes:
        kind: of the question; empty for none.
        levels: that were chosen, one per image.
        score: of the answer, 0 to 1.
        notes: further lines.
    """

    question: str
    answer: str
    kind: str
    levels: tuple[int, ...]
    score: float
    images: tuple[CardImage, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """How the answer is judged: ``right``, ``partly`` or ``wrong``."""
        return "right" if self.score >= 1 else "partly" if self.score > 0 else "wrong"

    @property
    def said(self) -> str:
        """The verdict for the reader."""
        return VERDICTS[self.verdict]


@dataclass(frozen=True)
class Filter:
    """What cards can be told apart by.

    Attributes:
        name: of the cards' data attribute.
        label: what stands before the choice.
        options: value and text of each.
    """

    name: str
    label: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gallery:
    """Cards, and the choices that leave some of them out."""

    cards: tuple[Card, ...]

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The answers' verdicts, and kinds and levels where there are two or more."""
        levels = sorted({level for card in self.cards for level in card.levels})
        kinds = dict.fromkeys(card.kind for card in self.cards if card.kind)
        counts = Counter(card.verdict for card in self.cards)
        verdicts = [(name, f"{said} ({counts[name]})") for name, said in VERDICTS.items()
                    if counts[name] or name != "partly"]  # fmt: skip
        every = (
            Filter("verdict", "Answers", tuple(verdicts)),
            Filter("kind", "Kind", tuple((kind, kind) for kind in kinds)),
            Filter("level", "Level", tuple((str(level), str(level)) for level in levels)),
        )
        return tuple(one for one in every if len(one.options) > 1)


def _stretches(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, end) of every run of true flags."""
    found, start = list[tuple[int, int]](), None
    for place, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            found.append((start, place))
            start = None
    return found

"""Replies as pieces of HTML, in which every string from outside is escaped; no script, and nothing that is fetched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, Template, select_autoescape
from PIL import Image

from tokenflex.demo.answering import Asked, Model, Reply, Timing
from tokenflex.evaluation.drawing import data_address, thumbnail, with_kept_tokens
from tokenflex.markup import readable
from tokenflex.profiling.timing import Times

TINY = 100_000_000
"""Parameters below which the page says that milliseconds show little."""


@dataclass(frozen=True)
class Bar:
    """A level's score as a bar that begins at 0.

    Attributes:
        left, width, zero: where the bar begins, how long it is and where 0 is, in percent of all bars' range.
    """

    level: int
    text: str
    left: float
    width: float
    zero: float
    chosen: bool


def message(error: BaseException) -> str:
    """What an error says to who reads the page, as HTML."""
    return _piece("message", str(error))


def answer(model: Model, asked: Asked, reply: Reply, share: float, runs: int, timing: Timing | None = None) -> str:
    """An answer with its grid, its cost beside the finest level's, and the scores.

    Args:
        share: of the tokens that was allowed.
        runs: that are timed; 0: none are, and nothing is said of them.
        timing: None where it isn't known yet.
    """
    parameters = model.flex.num_parameters()
    size = {"parameters": f"{parameters / 1e6:.1f} million", "tiny": parameters < TINY}
    drawing, shown = grid(asked.image, reply), bars(reply.scores or (), reply.levels)
    cost = {"share": share, "runs": runs, "timing": timing, **size}
    return _piece("answer", reply, drawing, asked.question, model.levels, shown, cost)


def levels(asked: Asked, replies: Sequence[Reply]) -> str:
    """The answers at all levels, side by side, as HTML."""
    return _piece("levels", replies, [grid(asked.image, reply) for reply in replies], asked.question)


def conversation(model: Model, image: Image.Image | None, turns: Sequence[tuple[str, Reply]]) -> str:
    """Questions and replies, each with the grid of its turn."""
    replies = [reply for _, reply in turns]
    images = [] if image is None else [grid(image, reply) for reply in replies]
    return _piece("conversation", replies, images, [question for question, _ in turns], model.levels)


def grid(image: Image.Image, reply: Reply) -> str:
    """The image with the reply's grid, as a data address."""
    return data_address(with_kept_tokens(thumbnail(image), reply.cells))


def bars(scores: Sequence[float], chosen: Sequence[int]) -> tuple[Bar, ...]:
    """Scores on one scale; those that are no finite number have no bar.

    Args:
        chosen: levels that were picked.
    """
    finite = [score for score in scores if math.isfinite(score)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    range_ = (high - low) or 1.0

    def share(value: float) -> float:
        return round(100 * value / range_, 2)

    return tuple(
        Bar(
            level=level,
            text=f"{score:+.2f}" if math.isfinite(score) else "ruled out" if score < 0 else "no number",
            left=share(min(score, 0.0) - low) if math.isfinite(score) else share(-low),
            width=share(abs(score)) if math.isfinite(score) else 0.0,
            zero=share(-low),
            chosen=level in chosen,
        )
        for level, score in enumerate(scores)
    )


def percent(share: float) -> str:
    """A share, 0 to 1, in percent as the page writes it."""
    return f"{100 * share:.0f}\u00a0%"


def milliseconds(times: Times) -> str:
    """The median, with one digit behind the point where it is short."""
    taken = 1000 * times.median
    return f"{taken:.1f}" if taken < 100 else f"{taken:.0f}"


def _piece(name: str, *arguments: Any) -> str:
    return str(getattr(_template().module, name)(*arguments)).strip()


@cache
def _template() -> Template:
    source = files("tokenflex.demo").joinpath("showing.html.jinja").read_text(encoding="utf-8")
    known = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, finalize=readable)
    known.globals |= {"percent": percent, "ms": milliseconds}
    return known.from_string(source)

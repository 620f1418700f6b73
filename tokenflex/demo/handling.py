"""What the page's buttons do: from what a visitor gave to pieces of HTML; errors become pieces of HTML, too."""

import logging
from collections.abc import Iterator

from PIL import Image

from tokenflex.demo import answering, showing
from tokenflex.demo.answering import Model, Reply, Turn
from tokenflex.errors import TokenFlexError
from tokenflex.images import decode

logger = logging.getLogger(__name__)

Conversation = tuple[tuple[str, Reply], ...]
"""Questions and replies, in their order."""
BROKEN = "The model failed on this question ({}). The terminal in which the demo runs has the details."


def answered(model: Model, image: Image.Image | None, question: str, share: float, runs: int) -> Iterator[str]:
    """The answer as soon as it is there, and the same once more with what it took.

    Args:
        share: of the finest level's tokens that may be used.
        runs: of each side that are timed; 0: none.
    """
    try:
        asked = answering.ask(model, image, question)
        reply = answering.answer(model, asked, share)
        yield showing.answer(model, asked, reply, share, runs)
        if runs:
            timing = answering.timed(model, asked, share, runs)
            yield showing.answer(model, asked, reply, share, runs, timing)
    except Exception as error:  # a model may raise anything on an image that nobody tried
        yield explained(error)


def at_every_level(model: Model, image: Image.Image | None, question: str) -> str:
    """The answers at all levels, side by side, as HTML."""
    try:
        asked = answering.ask(model, image, question)
        return showing.levels(asked, answering.at_every_level(model, asked))
    except Exception as error:
        return explained(error)


def continued(
    model: Model, image: Image.Image | None, question: str, share: float, before: Conversation
) -> tuple[Conversation, str]:
    """The conversation with one more turn, and how it is shown; as it was, with a message, where that fails."""
    try:
        turns = [Turn(asked, reply.text) for asked, reply in before]
        asked = answering.ask(model, image, question, turns)
        longer = (*before, (asked.question, answering.answer(model, asked, share)))
        return longer, showing.conversation(model, image, longer)
    except Exception as error:
        return before, showing.conversation(model, image, before) + explained(error)


def taken(content: bytes | None) -> tuple[Image.Image | None, str]:
    """An uploaded image as `tokenflex.images` reads it, and nothing to say; or None, and why it can't be read."""
    try:
        return decode(content), ""
    except Exception as error:
        return None, explained(error)


def explained(error: Exception) -> str:
    """A message for the page; what is no error of ours is logged with its traceback."""
    if isinstance(error, TokenFlexError):
        return showing.message(error)
    logger.error("the demo's model failed", exc_info=error)
    return showing.message(RuntimeError(BROKEN.format(type(error).__name__)))

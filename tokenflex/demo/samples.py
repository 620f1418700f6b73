"""Images to begin with, and what can be asked about them; all made from data inside Python packages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokenflex.images import decode
from tokenflex.quickstart.images import COARSE_KINDS, SENTENCES, SceneQuestion, exam, photographs, words

SEED, COUNT = 0, 6
PHOTOGRAPHS = {
    "coffee": "What is on the table?",
    "chelsea": "What animal is this?",
    "rocket": "What is happening here?",
    "page": "What does the text say?",
}
"""Photographs of scikit-image, and a question about each."""
ASKED = {sentence.rstrip("?").casefold(): asked for asked, sentence in SENTENCES.items()}
"""The quickstart's questions as its model is asked them, by the sentence without its mark."""
MORE = ("What is in this image?", "What colours does it have?")


@dataclass(frozen=True)
class Example:
    """An image and questions about it, at least one."""

    name: str
    image: Image.Image
    questions: tuple[str, ...]


def examples(processor: Any) -> tuple[Example, ...]:
    """Held-out images of the quickstart where the model knows its words, photographs for every other model.

    Args:
        processor: of the model.
    """
    if speaks_quickstart(processor):
        return tuple(
            Example(str(number), image.image, _ordered(asked, image.questions))
            for number, (image, asked) in enumerate(exam(SEED, "test", COUNT), 1)
        )
    return tuple(
        Example(name, decode(Image.fromarray(getattr(photographs, name)())), (question, *MORE))
        for name, question in PHOTOGRAPHS.items()
    )


def speaks_quickstart(processor: Any) -> bool:
    """Whether the tokenizer has a token for each of the quickstart's words."""
    return set(words()) <= set(getattr(processor, "tokenizer", processor).get_vocab())


def as_asked(processor: Any, text: str) -> str:
    """A question in the words that the model was trained on.

    Args:
        text: a sentence such as ``Which digit is blue?`` becomes ``digit blue`` for the quickstart's model; all other
            texts, and those for other models, stay as they are.
    """
    asked = ASKED.get(" ".join(text.split()).rstrip("?. ").casefold(), text)
    return asked if asked != text and speaks_quickstart(processor) else text


def _ordered(asked: SceneQuestion, rest: Sequence[SceneQuestion]) -> tuple[str, ...]:
    """The question, then the others, as sentences; a fine one second, behind a coarse one, to compare choices."""
    first = [other for other in rest if other.kind in COARSE_KINDS][: int(asked.fine)]
    return tuple(dict.fromkeys(SENTENCES[one.question] for one in (*first, asked, *rest)))

"""Conversations and exam questions made of the study's images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenflex.study.images import READING_KINDS, SCENE_KINDS, StudyImage, StudyQuestion

Row = dict[str, Any]
ANSWER = 12
"""New tokens of an answer, at most."""
SYSTEM = "Answer."
"""Said once in every conversation, in place of the language model's own, longer introduction."""


def row(image: StudyImage, questions: Sequence[StudyQuestion]) -> Row:
    """A row in chat format: the image, and the questions with their answers."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]
    for i, question in enumerate(questions):
        content = [{"type": "image"}] * (i == 0) + [{"type": "text", "text": question.question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": question.answer})
    return {"image": image.image, "messages": messages}


def practice(images: Sequence[StudyImage], seed: int) -> list[Row]:
    """One conversation per image with all its questions, in random order."""
    rng = np.random.default_rng((seed, len(images)))
    return [row(image, [image.questions[i] for i in rng.permutation(len(image.questions))]) for image in images]


def single(images: Sequence[StudyImage], seed: int) -> list[Row]:
    """Two rows per image: one question about the whole, and one to read, with their ``kind``."""
    rng = np.random.default_rng((seed, len(images), 2))
    found = []
    for image in images:
        for kinds in (SCENE_KINDS, READING_KINDS):
            fitting = [question for question in image.questions if question.kind in kinds]
            chosen = fitting[int(rng.integers(len(fitting)))]
            found.append({**row(image, [chosen]), "kind": chosen.kind})
    return found

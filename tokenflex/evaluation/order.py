"""Which questions are answered together: those whose prompts are about as long."""

from typing import Any

from tokenflex.chat import prompt_tokens
from tokenflex.evaluation.questions import Questions


def batches(processor: Any, questions: Questions, size: int) -> list[list[int]]:
    """Places of questions, batch by batch; every place is in one batch.

    Longest first, so that memory runs out at the start or never; those with images before those without, which don't
    share a call of the processor. Nothing but the questions and the processor decides, so every process cuts the same
    batches.

    Args:
        size: questions per batch, at most.
    """
    places = range(len(questions))
    if size > 1:
        keys = [_key(processor, questions, place) for place in places]
        places = sorted(places, key=lambda place: keys[place])
    return [list(places[start : start + size]) for start in range(0, len(questions), size)]


def _key(processor: Any, questions: Questions, place: int) -> tuple[bool, int]:
    sizes = questions.sizes(place)
    length = prompt_tokens(processor, questions.questions[place].text, sizes)
    return not sizes, -length

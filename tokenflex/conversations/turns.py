"""How turns are written: each is the text that the chat template puts behind what was said before.

What was answered stays as it was generated, token by token, so a cache that holds it stays right. Only what stands
behind the answer is written anew: the template is given a word that stands nowhere in place of the last answer, and the
turn is whatever follows that word.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenflex.chat import special_tokens, written
from tokenflex.errors import DataError, InputError
from tokenflex.hosts.appending import PER_TOKEN

ANSWER = "qqanswerqq"
"""Stands nowhere in a template."""
Message = Mapping[str, Any]
KINDS = ("text", "image", "video")


def content_of(text: str | Sequence[Mapping[str, Any]], images: int, videos: int) -> list[Mapping[str, Any]]:
    """The content items of a user's message.

    Args:
        text: the question, behind what is shown; or the content items themselves.
        images, videos: that come with it.

    Raises:
        InputError: items aren't ``{"type": "text", "text": ...}``, ``{"type": "image"}`` or ``{"type": "video"}``, or
            show another number of images than come with them.
    """
    if isinstance(text, str):
        shown = [{"type": "image"}] * images + [{"type": "video"}] * videos
        return [*shown, {"type": "text", "text": text}]
    items = list(text)
    for item in items:
        if not isinstance(item, Mapping) or item.get("type") not in KINDS:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"content item {item!r:.200}; give items with a type of {', '.join(KINDS)}.")
    for kind, number in (("image", images), ("video", videos)):
        placed = sum(item["type"] == kind for item in items)
        if placed != number:
            raise InputError(f"the content shows {placed} {kind}s, and {number} came with it; give one per item.")
    return items


def first_turn(processor: Any, messages: Sequence[Message]) -> tuple[str, dict[str, bool]]:
    """(the text that opens a conversation, options for the tokenizer).

    Raises:
        DataError: the chat template refuses the messages.
    """
    text = written(processor, messages, "the conversation", reply=True)
    return text, special_tokens(processor, [text])


def next_turn(processor: Any, messages: Sequence[Message], content: Sequence[Mapping[str, Any]]) -> str:
    """The text that the template puts behind an answer: its end, the user's next turn, the opening of a reply.

    Args:
        messages: what was said before that answer.
        content: of the user's next message.

    Raises:
        DataError: the template refuses the messages, or doesn't write an answer as it is.
    """
    said = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    text = written(processor, [*messages, said, {"role": "user", "content": content}], "the conversation", reply=True)
    if text.count(ANSWER) != 1:
        raise DataError(
            f"the chat template writes an answer {text.count(ANSWER)} times, so it can't be told what follows it; use "
            "a template that writes every answer once."
        )
    return text.partition(ANSWER)[2]


def processed(
    processor: Any, text: str, images: Sequence[Any], videos: Sequence[Any], options: Mapping[str, bool]
) -> dict[str, Any]:
    """One turn as the processor makes it, one row.

    Raises:
        DataError: the processor refuses it.
    """
    given: dict[str, Any] = {"text": [text], "return_tensors": "pt", **options}
    if videos:
        given["videos"] = list(videos)
    errors: list[Exception] = []
    for shown in ([list(images)], list(images)) if images else (None,):  # some take a list per row, some one list
        try:
            return dict(processor(**given, **({} if shown is None else {"images": shown})))
        except Exception as error:  # a processor raises what it likes
            errors.append(error)
    raise DataError(
        f"the processor refuses a turn of {len(images)} images and {len(videos)} videos, {text!r:.200}: "
        f"{type(errors[0]).__name__}: {str(errors[0])[:200]}"
    ) from errors[0]


def behind(answer: Tensor, turn: dict[str, Any]) -> dict[str, Any]:
    """A turn without the token that ended the answer before it, where the template writes that token again.

    Args:
        answer: ``(tokens,)``, as it was generated.
        turn: as the processor made it, one row.
    """
    ids: Tensor = turn["input_ids"]
    if len(answer) and ids.shape[1] > 1 and int(ids[0, 0]) == int(answer[-1]):
        return {name: value[:, 1:] if name in PER_TOKEN else value for name, value in turn.items()}
    return turn


def spoken(answer: Tensor) -> dict[str, Tensor]:
    """An answer as a turn of its own.

    Args:
        answer: ``(tokens,)``.
    """
    ids = answer[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

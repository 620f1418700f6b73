"""A document's messages as lmms-eval makes them, split into images and what the chat template reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokenflex.errors import DataError
from tokenflex.images import decode

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        name: for messages.
        images: upright RGB images (see `tokenflex.images.decode`), in the order of their places in the messages.
        messages: contents are lists of ``image`` and ``text`` items.
    """

    name: str
    images: tuple[Image.Image, ...]
    messages: tuple[dict[str, Any], ...]


def read(messages: Any, name: str) -> Sample:
    """Split images from text.

    Args:
        messages: a list of ``role`` and ``content``: text, or items with ``type`` and ``text`` or ``url``; the ``url``
            of an image is a PIL image or a path.

    Raises:
        DataError: there is something other than text and images, or nothing at all.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"{name}: messages are {messages!r}; expected a list of role and content.")
    images: list[Image.Image] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise DataError(f"{name}: the message {message!r} is no mapping; expected role and content.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{name}: role {role!r} isn't known; there are {', '.join(ROLES)}.")
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if items is not None and not isinstance(items, Sequence):
            raise DataError(f"{name}: a message's content is {content!r}; expected text or a list of content items.")
        turns.append({"role": role, "content": [_content_item(item, images, name) for item in items or ()]})
    return Sample(name, tuple(images), tuple(turns))


def _content_item(item: Any, images: list[Image.Image], name: str) -> dict[str, Any]:
    """The item for the chat template; its image is added to ``images``."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return {"type": "text", "text": item["text"]}
    if kind == "image":
        images.append(_image(item.get("url"), name))
        return {"type": "image"}
    raise DataError(f"{name}: a content item of type {kind!r} can't be read; this model takes text and images only.")


def _image(given: Any, name: str) -> Image.Image:
    try:
        return decode(given)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error

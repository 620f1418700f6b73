"""Where the user's last turn begins: read off a processor's chat template.

A conversation of two turns is written with the template, once with text tokens and once with an image first. What
stands right before the user's content in every one of these places opens a turn; its tokens are the marker that
`tokenflex.hosts.instruction` looks for.
"""

import functools
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)
Marker = tuple[tuple[int, ...], ...]
FIRST, ANSWER, SECOND = "qqxqq", "zzyzz", "kkvkk"
"""Words that stand nowhere in a template."""


def turn_markers(processor: Any) -> Marker:
    """The ids that open a user's turn, as they may be tokenised in different places; empty where that can't be told.

    Args:
        processor: of the host, with a chat template and a fast tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not getattr(processor, "chat_template", None) or not getattr(tokenizer, "is_fast", False):
        return ()
    plain = _written(processor, image=False)
    if plain is None:
        return ()
    opener = _common_end(*(plain[: plain.index(word)] for word in (FIRST, SECOND))).strip()
    texts = [text for text in (plain, _written(processor, image=True)) if text is not None]
    found = {_tokens(tokenizer, text, place, opener) for text in texts for place in _places(text, opener)}
    return tuple(sorted(ids for ids in found if ids))


def _written(processor: Any, image: bool) -> str | None:
    """A conversation of two turns; None where the template doesn't take it."""
    shown = [{"type": "image"}] if image else []
    for plain in (False, True):  # some templates take parts, some texts

        def content(word: str, parts: Sequence[Any] = (), plain: bool = plain) -> Any:
            return word if plain else [*parts, {"type": "text", "text": word}]

        messages = [
            {"role": "user", "content": content(FIRST, shown)},
            {"role": "assistant", "content": content(ANSWER)},
            {"role": "user", "content": content(SECOND, shown)},
        ]
        try:
            text = processor.apply_chat_template(messages, tokenize=False)
        except Exception:  # templates raise what they like
            continue
        printed = isinstance(text, str) and "{'type'" in text  # a list of parts, as Python prints it
        if not printed and all(isinstance(text, str) and text.count(word) == 1 for word in (FIRST, ANSWER, SECOND)):
            return text
    return None


def _common_end(one: str, other: str) -> str:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return "".join(letter for letter, _ in pairs)[::-1]


def _places(text: str, opener: str) -> list[int]:
    """Where the opener begins in front of each turn."""
    found = [text.rfind(opener, 0, text.index(word)) for word in (FIRST, SECOND)] if opener else []
    return [place for place in found if place >= 0]


def _tokens(tokenizer: Any, text: str, begin: int, opener: str) -> tuple[int, ...]:
    """Ids of the tokens that spell the opener at ``begin``; white space around them doesn't count."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end, ids = begin + len(opener), []
    for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        piece = text[first:last]
        starts, stops = last - len(piece.lstrip()), first + len(piece.rstrip())
        if begin <= starts < stops <= end:
            ids.append(int(token))
    return tuple(ids)


def say_what_is_read(adapter: Any, router: nn.Module) -> None:
    """Say once that a router reads earlier turns too, where an adapter is to read the last one and can't tell.

    Nothing is said of routers without parameters, which look at images only.
    """
    reads = any(True for _ in router.parameters())
    if reads and getattr(adapter, "scope", None) == "last-turn" and not getattr(adapter, "marker", True):
        _say_that_all_is_read()


@functools.cache
def _say_that_all_is_read() -> None:
    logger.warning(
        "Routers read all text of the prompt, earlier turns too. Pass processor=... to wrap() or load_parts(), and "
        "they read the user's last turn."
    )

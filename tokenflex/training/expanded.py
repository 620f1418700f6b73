"""Where the words of a conversation stand in the ids that a processor makes of it.

A processor puts a longer text in the place of every image: placeholders, and with many hosts row and column marks,
line breaks or tags around them. It hands the whole to its tokenizer. That text and the characters of each token are
read off the tokenizer's call here; words outside images are the same in it as in the conversation, further along.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenflex.errors import DataError

Span = tuple[int, int]
"""First character, and the one after the last."""
PLACEHOLDERS = ("image_token", "boi_token", "image_placeholder_token")
"""Attributes of processors and tokenizers that hold what a template writes for an image."""


@dataclass(frozen=True)
class Row:
    """One row as the tokenizer read it.

    Attributes:
        text: with what the processor wrote for each image.
        ids: of the tokens, without padding.
        spans: the characters of each token; empty for tokens that the tokenizer adds.
    """

    text: str
    ids: list[int]
    spans: list[Span]


class _Listening:
    """A tokenizer that keeps what it is called with and what it gives."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.calls = tokenizer, []

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        made = self._tokenizer(text, *args, **options)
        self.calls.append(([text] if isinstance(text, str) else text, made))
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


def processed(processor: Any, texts: Sequence[str], **options: Any) -> tuple[dict[str, Any], list[Row]]:
    """What a processor makes of texts and images, and how its tokenizer read each row.

    Args:
        options: of the processor's call, ``images`` too.

    Raises:
        DataError: the tokenizer doesn't tell which characters its tokens are of.
    """
    listening = _Listening(processor.tokenizer)
    twin = copy.copy(processor)
    twin.tokenizer = listening
    batch = dict(twin(text=list(texts), **options))
    calls = [(read, made) for read, made in listening.calls if read is not None and len(read) == len(texts)]
    if not calls:
        raise DataError(
            f"{type(processor).__name__} doesn't hand the conversations' texts to its tokenizer, so answers can't be "
            "located. It can't be trained with."
        )
    read, made = calls[-1]
    if getattr(made, "encodings", None) is None:
        raise DataError(
            f"{type(processor.tokenizer).__name__} doesn't tell which characters its tokens are of, so answers can't "
            "be located. Use a fast tokenizer, as AutoTokenizer.from_pretrained gives one."
        )
    return batch, [_row(text, encoding) for text, encoding in zip(read, made.encodings, strict=True)]


def _row(text: str, encoding: Any) -> Row:
    kept = [
        (one, span)
        for one, span, mask in zip(encoding.ids, encoding.offsets, encoding.attention_mask, strict=True)
        if mask
    ]
    return Row(text, [one for one, _ in kept], [span for _, span in kept])


def token_places(row: Row, batch: Mapping[str, Any], number: int) -> Int[Tensor, " tokens"]:
    """Where the tokens of a row stand in the batch's ids.

    Raises:
        DataError: the batch has other ids than the tokenizer gave.
    """
    ids = torch.as_tensor(batch["input_ids"])[number]
    mask = torch.as_tensor(batch["attention_mask"])[number] if "attention_mask" in batch else torch.ones_like(ids)
    real = mask.nonzero()[:, 0]
    wanted = torch.tensor(row.ids)
    windows = ids[real].unfold(0, len(wanted), 1) if 0 < len(wanted) <= len(real) else ids.new_zeros(0, 1)
    found = (windows == wanted).all(-1).nonzero()[:, 0]
    if len(found) != 1:
        raise DataError(
            f"the processor gives {len(real)} ids where its tokenizer gave {len(wanted)}, and the one can't be found "
            "in the other; so answers can't be located."
        )
    return real[int(found) : int(found) + len(wanted)]


@dataclass(frozen=True)
class Pieces:
    """The words between the images, in the conversation's text and in the expanded one.

    Attributes:
        plain: spans in the conversation's text.
        at: where each begins in the expanded text.
        sure: whether it can begin nowhere else.
    """

    plain: tuple[Span, ...]
    at: tuple[int, ...]
    sure: tuple[bool, ...]

    def moved(self, span: Span) -> list[Span]:
        """Where the words of a span are in the expanded text, without the images in it.

        Raises:
            DataError: the words could be in several places.
        """
        found = []
        for (first, last), at, sure in zip(self.plain, self.at, self.sure, strict=True):
            begin, end = max(first, span[0]), min(last, span[1])
            if begin < end:
                if not sure:
                    raise DataError("words of an answer could be in several places of what the processor wrote")
                found.append((at + begin - first, at + end - first))
        return found

    def images(self, text: str) -> list[Span]:
        """What the processor wrote for each image, without the white space around it."""
        ends = [at + last - first for (first, last), at in zip(self.plain, self.at, strict=True)]
        found = []
        for end, (_, begin) in zip(ends, pairwise(self.at), strict=False):
            written = text[end:begin]
            shift = len(written) - len(written.lstrip())
            found.append((end + shift, end + len(written.rstrip())))
        return found


def cut(plain: str, expanded: str, mark: str) -> Pieces | None:
    """The pieces of a text between its marks, as they are found in the expanded text; None where one isn't there.

    The first and the last are looked for at the ends. Of the others, and where a processor writes more around the
    whole, the leftmost and the rightmost places in which all of them follow each other are compared.

    Args:
        mark: what stands for an image; an empty one for texts without any.
    """
    texts = plain.split(mark) if mark else [plain]
    spans, begin = [], 0
    for word in texts:
        spans.append((begin, begin + len(word)))
        begin += len(word) + len(mark)
    fixed: dict[int, int] = {}
    if expanded.endswith(texts[-1]):
        fixed[len(texts) - 1] = len(expanded) - len(texts[-1])
    if expanded.startswith(texts[0]):
        fixed[0] = 0
    left, right, low, high = [], [], 0, len(expanded)
    for i, word in enumerate(texts):
        left.append(fixed.get(i, expanded.find(word, low)))
        low = left[-1] + len(word)
    for i, word in reversed([*enumerate(texts)]):
        right.insert(0, fixed.get(i, expanded.rfind(word, 0, high)))
        high = right[0]
    if min(left) < 0 or min(right) < 0 or any(one > other for one, other in zip(left, right, strict=True)):
        return None
    return Pieces(tuple(spans), tuple(left), tuple(one == other for one, other in zip(left, right, strict=True)))


def pieces(processor: Any, plain: str, expanded: str, images: int) -> Pieces:
    """As `cut`, with the mark that the processor's template writes.

    Args:
        images: of the row.

    Raises:
        DataError: no mark stands in the text as often as there are images, or the text was changed elsewhere too.
    """
    known = known_placeholders(processor) if images else [""]
    for mark in known:
        found = cut(plain, expanded, mark) if not mark or plain.count(mark) == images else None
        if found is not None:
            return found
    raise DataError(
        f"the processor changes the conversation's text in other places than those of its {images} image(s), so "
        "answers can't be located"
    )


def known_placeholders(processor: Any) -> list[str]:
    """What may stand for an image in a conversation's text: the likely ones first."""
    tokenizer = processor.tokenizer
    named = [getattr(owner, name, None) for owner in (processor, tokenizer) for name in PLACEHOLDERS]
    special = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
    return [*dict.fromkeys(mark for mark in [*named, "<image>", *special] if isinstance(mark, str) and mark)]


def overlap(row: Row, spans: Sequence[Span]) -> Bool[Tensor, " tokens"]:
    """Which tokens have characters in any of the spans."""
    begins, ends = torch.tensor(row.spans, dtype=torch.long).reshape(-1, 2).unbind(-1)
    found = torch.zeros(len(row.spans), dtype=torch.bool)
    for first, last in spans:
        found |= (begins < ends) & (first < ends) & (begins < last)
    return found

"""An answer's text while its tokens come."""

from collections.abc import Callable, Collection, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for a character of which bytes are missing."""


class Writing:
    """Text of one answer; what has been given out never changes afterwards.

    Args:
        decode: text of token ids.
        ends: ids that end an answer.
        stop: strings that end it, and aren't part of it.
        limit: tokens at most.
        listener: called with every new piece of text, if given.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
        stop: Sequence[str],
        limit: int,
        listener: Callable[[str], None] | None = None,
    ) -> None:
        self.decode, self.ends, self.stop, self.limit, self.listener = decode, ends, stop, limit, listener
        self.ids: list[int] = []
        self.reason = ""
        self.text = ""
        self._given = 0

    def put(self, token: int) -> bool:
        """Take the next token; True when the answer has ended, after which tokens are passed over."""
        if self.reason:
            return True
        self.ids.append(token)
        if token in self.ends:
            self.end("stop")
        elif self.stop or self.listener is not None:
            self._look(last=False)
        if not self.reason and len(self.ids) >= self.limit:
            self.end("length")
        return bool(self.reason)

    def end(self, reason: str) -> None:
        """End it, and give out what was held back."""
        self.reason = reason
        self._look(last=True)

    def _look(self, last: bool) -> None:
        text = self.decode(self.ids[:-1] if self.ids and self.ids[-1] in self.ends else self.ids)
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.reason, text, last = "stop", text[: min(found)], True
        if not last:
            text = text.rstrip(UNFINISHED)
            text = text[: len(text) - begun(text, self.stop)]
        if last or len(text) > self._given:
            self.text = text
        if self.listener is not None and len(self.text) > self._given:
            self.listener(self.text[self._given :])
            self._given = len(self.text)


def begun(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a string that ends it."""
    longest = max((len(one) - 1 for one in stop), default=0)
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(one.startswith(text[-size:]) for one in stop)), 0)

"""Rows of a training set: conversations with images, from the formats people have.

Chat format (Hugging Face ``datasets``): ``images`` (or ``image``) and ``messages`` with ``role`` and ``content``,
a string or a list of content items. Image items may carry their image themselves, under ``image``, ``url``, ``path`` or
``base64``, as transformers' chat templates take them. LLaVA format (JSON or JSON Lines): ``image`` (a path in the image
folder, or a list of them) and ``conversations`` with ``from`` and ``value``, in which ``<image>`` marks each image's
place.
"""

import base64
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from tokenflex import images
from tokenflex.errors import DataError
from tokenflex.images import decode
from tokenflex.training.row_files import read_rows, require_one_split

__all__ = ["ChatDataset", "Rows", "Sample", "read_rows", "read_sample", "undecoded"]

logger = logging.getLogger(__name__)

IMAGE_MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        name: how messages call it: its place in the data set and its ``id``, if it has one.
        images: decoded RGB images, in the order of their places in the text.
        messages: chat messages whose contents are lists of ``image`` and ``text`` items.
    """

    name: str
    images: tuple[Image.Image, ...]
    messages: tuple[dict[str, Any], ...]


@runtime_checkable
class Rows(Protocol):
    """Anything with a length and rows that are mappings: a list, or a ``datasets.Dataset``."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The row at a place, a mapping."""
        ...


@dataclass(frozen=True)
class _Undecoded:
    """Rows of a ``datasets.Dataset`` whose images are the bytes or paths that are stored.

    Attributes:
        table: the data set, with Arrow's tables as rows.
        features: with images that aren't decoded, for everything else.
    """

    table: Any
    features: Any

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Any:
        return self.features.decode_example(self.table[int(index)].to_pylist()[0])


def undecoded(rows: Rows) -> Rows:
    """The same rows; those of a ``datasets.Dataset`` with images as stored, at any depth, so that `decode` reads them.

    A transform of the user's own (``with_transform``) stays.
    """
    shape = getattr(rows, "format", None)
    if getattr(rows, "features", None) is None or not isinstance(shape, Mapping) or shape["type"] == "custom":
        return rows
    import datasets

    def kept(feature: Any) -> Any:
        if getattr(feature, "decode", False):
            return replace(feature, decode=False)
        if isinstance(feature, Mapping):
            return {name: kept(one) for name, one in feature.items()}
        if isinstance(feature, datasets.List | datasets.LargeList):
            return replace(feature, feature=kept(feature.feature))
        return feature

    features: Any = rows.features  # pyright: ignore[reportAttributeAccessIssue]
    table: Any = rows.with_format("arrow", columns=shape["columns"])  # pyright: ignore[reportAttributeAccessIssue]
    return _Undecoded(table, datasets.Features(kept(features)))


class ChatDataset:
    """Decodes rows into `Sample`s when they are asked for.

    Args:
        rows: mappings in chat or LLaVA format.
        image_folder: where image paths start; they must stay below it, links followed. None takes any path.
        on_bad_sample: ``raise`` a `DataError` naming the row, or ``skip`` to the next good row. Skipped rows are
            logged once and listed in ``skipped``.
    """

    def __init__(
        self, rows: Rows | Iterable[Any], image_folder: str | Path | None = None, on_bad_sample: str = "raise"
    ) -> None:
        require_known(on_bad_sample)
        if isinstance(rows, Mapping):
            require_one_split(rows)
        if not isinstance(rows, Rows):
            raise DataError(
                f"a {type(rows).__name__} has no length or no places; use ChatStream for rows that come one by one."
            )
        if len(rows) == 0:
            raise DataError("the data set has no rows.")
        self.rows, self.on_bad_sample = rows, on_bad_sample
        self._stored = undecoded(rows)
        self.image_folder = Path(image_folder) if image_folder is not None else None
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        for offset in range(len(self)):
            place = (index + offset) % len(self)
            try:
                return read_sample(self.row(place), place, self.image_folder)
            except DataError as error:
                pass_over(self, place, error)
        raise DataError(f"none of the {len(self)} rows can be used; the first: {self.skipped['0']}")

    def row(self, place: int) -> Any:
        """A row as it is stored.

        Raises:
            DataError: it can't be read, whatever the reason.
        """
        return row_at(self._stored, place)

    def extent(self, place: int) -> tuple[int, int]:
        """Grows with a sample's length in tokens: pixels of its images, then characters of its text.

        Images aren't decoded: their files say their sizes. A row that can't be used has (0, 0).
        """
        try:
            row = self.row(place)
            name = row_name(row, place)
            messages = [read_message(role, content, name) for role, content in read_turns(row, name) or ()]
            placed = _placed(row, messages, name)
        except DataError:
            return 0, 0
        sides = [images.size(one, self.image_folder) or (0, 0) for one in placed]
        texts = (item.get("text", "") for message in messages for item in message["content"])
        return sum(height * width for height, width in sides), sum(map(len, texts))


def require_known(on_bad_sample: str) -> None:
    """Refuse anything but ``raise`` and ``skip``.

    Raises:
        DataError: names both.
    """
    if on_bad_sample not in ("raise", "skip"):
        raise DataError(f"on_bad_sample={on_bad_sample!r}; use 'raise' or 'skip'.")


def pass_over(data: Any, place: int, error: DataError) -> None:
    """Note a row that can't be used in ``data.skipped``, and log it the first time.

    Args:
        data: has ``on_bad_sample`` and ``skipped``.

    Raises:
        DataError: the row's own error, where ``on_bad_sample`` is ``raise``.
    """
    if data.on_bad_sample == "raise":
        raise error
    if str(place) not in data.skipped:
        data.skipped[str(place)] = str(error)
        logger.warning("skipped a row (%d so far): %s", len(data.skipped), error)


def row_at(rows: Rows, place: int) -> Any:
    """A row.

    Raises:
        DataError: it can't be read, whatever the reason.
    """
    try:
        return rows[place]
    except DataError:
        raise
    except Exception as error:  # rows may be of any class, and read from anywhere
        raise DataError(f"row {place} can't be read ({type(error).__name__}: {error}). Mend or remove it.") from error


def read_sample(row: Any, place: int, image_folder: Path | None, of: str = "") -> Sample:
    """Decode one row, a mapping in chat or LLaVA format.

    Args:
        place: how messages number the row.
        image_folder: where image paths start; they must stay below it, links followed. None takes any path.
        of: what ``place`` counts in, for messages, if it isn't the data set.

    Raises:
        DataError: names the row and what is wrong: an image that is missing, truncated, no image or outside the
            folder, text without places for the images, no answer, an unknown role, anything of another shape.
    """
    name = row_name(row, place, of)
    turns = read_turns(row, name)
    if turns is None:
        raise DataError(f"{name} has neither 'messages' nor 'conversations'; it has {sorted(map(str, row))}.")
    messages = [read_message(role, content, name) for role, content in turns]
    if not any(m["role"] == "assistant" and any(p.get("text") for p in m["content"]) for m in messages):
        raise DataError(f"{name} has no answer: no assistant message with text, so nothing could be learnt from it.")
    images = tuple(_decoded(one, image_folder, name) for one in _placed(row, messages, name))
    for message in messages:
        message["content"] = [{"type": "image"} if p["type"] == "image" else p for p in message["content"]]
    return Sample(name, images, tuple(messages))


def row_name(row: Any, place: int, of: str = "") -> str:
    """How messages call a row.

    Raises:
        DataError: the row is no mapping.
    """
    if not isinstance(row, Mapping):
        raise DataError(
            f"row {place}{of} is a {type(row).__name__}; expected a mapping with 'messages' or 'conversations'."
        )
    return f"row {place}{of}" + (f" (id {row['id']!r})" if row.get("id") is not None else "")


def read_turns(row: Mapping[str, Any], name: str) -> list[tuple[Any, Any]] | None:
    """Role and content of every turn, in either format; None for a row without a conversation.

    Raises:
        DataError: the conversation isn't a list of mappings.
    """
    found = None
    for key in ("messages", "conversations"):
        turns = row.get(key)
        if turns is None:
            continue
        if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
            raise DataError(f"{name}: {key!r} is a {type(turns).__name__}; expected a list of turns.")
        odd = [turn for turn in turns if not isinstance(turn, Mapping)]
        if odd:
            raise DataError(f"{name}: the turn {brief(odd[0])} is no mapping; give it a role and content.")
        found = found or [(_first(turn, ("role", "from")), _first(turn, ("content", "value"))) for turn in turns]
    return found


def read_message(role: Any, content: Any, name: str) -> dict[str, Any]:
    """A chat message whose content is a list of items; an image item has the image it carries, under ``image``.

    Raises:
        DataError: the role is unknown, or the content is neither text nor a list of items.
    """
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{name} has a message of role {role!r}; known are {', '.join(ROLES)}.")
    if isinstance(content, str):
        pieces = read_text(content, name).split(IMAGE_MARK)
        items: list[dict[str, Any]] = []
        for i, piece in enumerate(pieces):
            text = piece.strip() if len(pieces) > 1 else piece
            items += ([{"type": "image"}] if i > 0 else []) + ([{"type": "text", "text": text}] if text else [])
        return {"role": ROLES[role], "content": items}
    if not isinstance(content, Sequence):
        raise DataError(f"{name}: a message's content is {brief(content)}; expected text or a list of content items.")
    return {"role": ROLES[role], "content": [_content_item(item, name) for item in content]}


def read_text(text: str, name: str) -> str:
    """The same text.

    Raises:
        DataError: it has half of a surrogate pair, which tokenizers and files of results refuse.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: {text!r} is no Unicode text ({error}). Mend or remove it.") from error
    return text


def _content_item(item: Any, name: str) -> dict[str, Any]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "image":
        carried = _first(item, ("image", "url", "path"))
        if carried is None and item.get("base64") is not None:
            carried = _from_base64(item["base64"], name)
        return {"type": "image"} if carried is None else {"type": "image", "image": carried}
    if kind == "image_url" and item.get("image_url") is not None:  # OpenAI's, which transformers takes too
        source = item["image_url"]
        return {"type": "image", "image": source.get("url", "") if isinstance(source, Mapping) else source}
    if kind == "text" and isinstance(item.get("text"), str):
        return {"type": "text", "text": read_text(item["text"], name)}
    raise DataError(f"{name}: content item {brief(item)} is neither an image nor a text.")


def _from_base64(encoded: Any, name: str) -> bytes:
    try:
        return base64.b64decode(encoded)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: an image's 'base64' can't be read ({error}). Mend or remove it.") from error


def _placed(row: Mapping[str, Any], messages: list[dict[str, Any]], name: str) -> list[Any]:
    """What each image is given as, in the order of their places: carried by its item, else the row's next one.

    Images of a row whose text has no place at all get one before the first user's text.
    """
    own = next((many for key in ("images", "image") if (many := _listed(row.get(key)))), [])
    places = [item for message in messages for item in message["content"] if item["type"] == "image"]
    user = next((message for message in messages if message["role"] == "user"), None)
    if not places and user is not None:
        places = [{"type": "image"} for _ in own]
        user["content"] = [*places, *user["content"]]
    carried = sum("image" in item for item in places)
    if carried + len(own) != len(places):
        raise DataError(
            f"{name} has {carried + len(own)} image(s) and {len(places)} place(s) for them in its text; "
            f"put one {IMAGE_MARK} (or one image item) per image."
        )
    rest = iter(own)
    return [item["image"] if "image" in item else next(rest) for item in places]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _decoded(source: Any, image_folder: Path | None, name: str) -> Image.Image:
    try:
        return decode(source, image_folder)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _first(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)

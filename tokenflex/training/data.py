"""Rows of a training set: conversations with pictures, from the formats people have.

Chat format (Hugging Face ``datasets``): ``images`` (or ``image``) and ``messages`` with ``role`` and ``content``,
a string or a list of parts. LLaVA format (JSON or JSON Lines): ``image`` (a path in the image folder, or a list
of them) and ``conversations`` with ``from`` and ``value``, in which ``<image>`` marks each picture's place.
"""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from tokenflex.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_MARK = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        name: how messages call it: its place in the data set and its ``id``, if it has one.
        images: decoded RGB pictures, in the order of their places in the text.
        messages: chat messages whose contents are lists of ``image`` and ``text`` parts.
    """

    name: str
    images: tuple[Image.Image, ...]
    messages: tuple[dict[str, Any], ...]


@runtime_checkable
class Rows(Protocol):
    """Anything with a length and rows that are mappings: a list, or a ``datasets.Dataset``."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One row."""
        ...


class ChatDataset:
    """Decodes rows into `Sample`s when they are asked for.

    Args:
        rows: mappings in chat or LLaVA format.
        image_folder: where relative image paths start.
        on_bad_sample: ``raise`` a `DataError` naming the row, or ``skip`` to the next good row. Skipped rows are
            logged once and listed in ``skipped``.
    """

    def __init__(self, rows: Rows, image_folder: str | Path | None = None, on_bad_sample: str = "raise") -> None:
        if on_bad_sample not in ("raise", "skip"):
            raise DataError(f"on_bad_sample={on_bad_sample!r}; use 'raise' or 'skip'.")
        if len(rows) == 0:
            raise DataError("the data set has no rows.")
        self.rows, self.on_bad_sample = rows, on_bad_sample
        self.image_folder = Path(image_folder) if image_folder is not None else None
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        for offset in range(len(self.rows)):
            place = (index + offset) % len(self.rows)
            try:
                return read_sample(self.rows[place], place, self.image_folder)
            except DataError as error:
                if self.on_bad_sample == "raise":
                    raise
                if str(place) not in self.skipped:
                    self.skipped[str(place)] = str(error)
                    logger.warning("skipped a row (%d so far): %s", len(self.skipped), error)
        raise DataError(f"none of the {len(self.rows)} rows can be used; the first: {self.skipped['0']}")


def read_sample(row: Mapping[str, Any], place: int, image_folder: Path | None) -> Sample:
    """Decode one row.

    Raises:
        DataError: names the row and what is wrong: a picture that is missing, truncated or no picture, text
            without places for the pictures, no answer, an unknown role.
    """
    name = f"row {place}" + (f" (id {row['id']!r})" if row.get("id") is not None else "")
    if "messages" in row:
        messages = [_message(m.get("role"), m.get("content"), name) for m in row["messages"]]
    elif "conversations" in row:
        messages = [_message(m.get("from"), m.get("value"), name) for m in row["conversations"]]
    else:
        raise DataError(f"{name} has neither 'messages' nor 'conversations'; it has {sorted(row)}.")
    given = row.get("images") if row.get("images") is not None else row.get("image")
    given = [] if given is None else given if isinstance(given, list | tuple) else [given]
    images = tuple(_picture(image, image_folder, name) for image in given)
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places == 0 and images:
        first = next((m for m in messages if m["role"] == "user"), None)
        if first is not None:
            first["content"] = [{"type": "image"} for _ in images] + first["content"]
            places = len(images)
    if places != len(images):
        raise DataError(
            f"{name} has {len(images)} picture(s) and {places} place(s) for them in its text; "
            f"put one {IMAGE_MARK} (or one image part) per picture."
        )
    if not any(m["role"] == "assistant" and any(p.get("text") for p in m["content"]) for m in messages):
        raise DataError(f"{name} has no answer: no assistant message with text, so nothing could be learnt from it.")
    return Sample(name, images, tuple(messages))


def read_rows(path: str | Path) -> Rows:
    """Rows from a ``.json`` (a list) or ``.jsonl`` file, a ``.parquet`` file, or a saved ``datasets`` folder.

    Raises:
        DataError: the path doesn't exist, or isn't in one of these formats.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(
            f"data {str(path)!r} doesn't exist; give a .json, .jsonl or .parquet file or a datasets folder."
        )
    if source.suffix == ".jsonl":
        lines = source.read_text(encoding="utf-8").splitlines()
        return [_parsed(line, f"{source}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if source.suffix == ".json":
        rows = _parsed(source.read_text(encoding="utf-8"), str(source))
        if not isinstance(rows, list):
            raise DataError(f"{source} holds a {type(rows).__name__}; expected a list of rows.")
        return rows
    if source.is_dir() or source.suffix == ".parquet":
        import datasets

        if source.suffix == ".parquet":
            return datasets.Dataset.from_parquet(str(source))
        return datasets.load_from_disk(str(source))
    raise DataError(f"data {str(path)!r}: unknown format {source.suffix!r}; use .json, .jsonl, .parquet or a folder.")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} isn't valid JSON: {error}.") from error


def _message(role: Any, content: Any, name: str) -> dict[str, Any]:
    if role not in ROLES:
        raise DataError(f"{name} has a message of role {role!r}; known are {', '.join(ROLES)}.")
    if isinstance(content, str):
        pieces = content.split(IMAGE_MARK)
        parts: list[dict[str, Any]] = []
        for i, piece in enumerate(pieces):
            text = piece.strip() if len(pieces) > 1 else piece
            parts += [{"type": "image"}] * (i > 0) + ([{"type": "text", "text": text}] if text else [])
        return {"role": ROLES[role], "content": parts}
    if not isinstance(content, Sequence):
        raise DataError(f"{name}: a message's content is {content!r}; expected text or a list of parts.")
    return {"role": ROLES[role], "content": [_part(part, name) for part in content]}


def _part(part: Any, name: str) -> dict[str, Any]:
    if isinstance(part, Mapping) and part.get("type") == "image":
        return {"type": "image"}
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise DataError(f"{name}: message part {part!r} is neither an image nor a text part.")


def _picture(given: Any, image_folder: Path | None, name: str) -> Image.Image:
    try:
        if isinstance(given, Image.Image):
            return given.convert("RGB")
        if isinstance(given, Mapping) and given.get("bytes") is not None:
            return Image.open(io.BytesIO(given["bytes"])).convert("RGB")
        path = Path(given["path"] if isinstance(given, Mapping) else given)
        return Image.open(image_folder / path if image_folder is not None else path).convert("RGB")
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        shown = given if isinstance(given, str | Path) else type(given).__name__
        raise DataError(f"{name}: picture {str(shown)!r} can't be read ({error}). Mend or remove it.") from error

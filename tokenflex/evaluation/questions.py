"""Questions with reference answers, read from the formats people have.

Each row has image(s) (``image`` or ``images``) and either a ``question`` or a conversation (``messages`` or
``conversations``, see `tokenflex.training.data`). Reference answers are in ``answer`` or ``answers``: texts, numbers,
or mappings with the key ``answer``; without them a conversation's last turn is the reference, if it is the
assistant's. ``choices`` makes the question multiple choice; ``kind`` (or ``category``) sorts results; ``id`` is for the
reader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tokenflex import images
from tokenflex.errors import ConfigError, DataError
from tokenflex.training.data import (
    ChatDataset,
    Sample,
    read_message,
    read_rows,
    read_sample,
    read_text,
    read_turns,
    row_at,
    row_name,
    undecoded,
)

IMAGES = ("image", "images")
Row = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked, without its images.

    Attributes:
        place: in the data set.
        id: the row's own, or its place.
        kind: the row's ``kind`` or ``category``; empty without.
        text: what the last user turn says, for reports.
        references: at least one; for multiple choice the right letter and the right text.
    """

    place: int
    id: str
    kind: str
    text: str
    references: tuple[str, ...]


class Questions:
    """A data set of questions; images are decoded when they are asked for.

    Args:
        rows: a list of mappings, or a ``datasets.Dataset``.
        image_folder: where image paths start; they must stay below it, links followed. None takes any path.
        suffix: written under each question, e.g. ``Answer with a single word or phrase.``
        limit: only so many rows, from the first on.

    Raises:
        DataError: names the row and what is missing; images are looked at later.
    """

    def __init__(
        self, rows: Any, image_folder: str | Path | None = None, suffix: str = "", limit: int | None = None
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit} leaves no row; use 1 or more.")
        self.source = ChatDataset(_first(rows, limit), image_folder)
        self.suffix = suffix
        light = undecoded(_without_images(self.source.rows))
        self.questions = [_question(row_at(light, place), place) for place in range(len(light))]

    def __len__(self) -> int:
        return len(self.questions)

    def sample(self, place: int) -> Sample:
        """Images and messages up to the question.

        Raises:
            DataError: an image can't be read, or images and places for them don't match.
        """
        return read_question(self.source.row(place), place, self.source.image_folder, self.suffix)

    def sizes(self, place: int) -> list[tuple[int, int]]:
        """(height, width) of a question's images in pixels, without reading them; those that can be told."""
        row = self.source.row(place)
        stored = next((row[key] for key in IMAGES if row.get(key) is not None), [])
        several = stored if isinstance(stored, list | tuple) else [stored]
        found = [images.size(one, self.source.image_folder) for one in several]
        return [one for one in found if one is not None]


def read(path: str | Path, **settings: Any) -> Questions:
    """Read questions from a ``.json``, ``.jsonl`` or ``.parquet`` file, or a saved ``datasets`` folder.

    Args:
        settings: see `Questions`.

    Raises:
        ConfigError: the library ``datasets`` is needed and isn't installed.
        DataError: the path doesn't exist, isn't in one of these formats, or a row can't be used.
    """
    return Questions(read_rows(path), **settings)


def read_question(row: Any, place: int, image_folder: Path | None = None, suffix: str = "") -> Sample:
    """Images and messages up to the question of a row; it needs no reference answer.

    Args:
        place: in the data set, for messages.
        image_folder, suffix: as for `Questions`.

    Raises:
        DataError: as for `Questions.sample`.
    """
    name = row_name(row, place)
    messages = [*_prompt(row, name, suffix), {"role": "assistant", "content": "its answer"}]
    own_images = {key: row[key] for key in IMAGES if row.get(key) is not None}
    read = read_sample({"id": row.get("id"), **own_images, "messages": messages}, place, image_folder)
    return Sample(read.name, read.images, read.messages[:-1])


def _first(rows: Any, limit: int | None) -> Any:
    if limit is None or isinstance(rows, Mapping) or limit >= len(rows):
        return rows
    return rows[:limit] if isinstance(rows, list) else rows.select(range(limit))


def _without_images(rows: Any) -> Any:
    """The same rows; a ``datasets.Dataset`` would decode every image that is looked past."""
    if isinstance(rows, list):
        return rows
    return rows.select_columns([name for name in rows.column_names if name not in IMAGES])


def _question(row: Any, place: int) -> Question:
    name = row_name(row, place)
    asked = read_message("user", _prompt(row, name, "")[-1]["content"], name)
    text = " ".join(item["text"] for item in asked["content"] if item["type"] == "text").strip()
    kind = next((_word(row[key], key, name) for key in ("kind", "category") if row.get(key) is not None), "")
    number = next((_word(row[key], key, name) for key in ("id", "question_id") if row.get(key) is not None), str(place))
    references = tuple(read_text(reference, name) for reference in _references(row, name))
    return Question(place, read_text(number, name), read_text(kind, name), text, references)


def _word(value: Any, key: str, name: str) -> str:
    if not isinstance(value, str | int):
        raise DataError(f"{name}: {key!r} is {value!r:.100}; expected a text or a whole number.")
    return str(value)


def _prompt(row: Row, name: str, suffix: str) -> list[Message]:
    """The messages up to the question, with the choices and ``suffix`` under it."""
    turns = read_turns(row, name)
    if not turns:
        if not isinstance(row.get("question"), str):
            raise DataError(f"{name} has no 'question', 'messages' or 'conversations'; it has {sorted(map(str, row))}.")
        listed = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, _choices(row, name), strict=False)]
        return [{"role": "user", "content": "\n".join([row["question"], *listed, *([suffix] if suffix else [])])}]
    roles = [read_message(role, content, name)["role"] for role, content in turns]
    asked = turns[:-1] if roles[-1] == "assistant" else turns
    if not asked or roles[len(asked) - 1] != "user":
        raise DataError(f"{name}: no user's turn comes before the answer, so nothing is asked.")
    messages = [{"role": role, "content": content} for role, content in asked]
    if suffix:
        last = messages[-1]["content"]
        extended = f"{last}\n{suffix}" if isinstance(last, str) else [*last, {"type": "text", "text": f"\n{suffix}"}]
        messages[-1]["content"] = extended
    return messages


def _references(row: Row, name: str) -> tuple[str, ...]:
    stored = next((row[key] for key in ("answers", "answer") if row.get(key) is not None), None)
    if stored is None:
        turns = read_turns(row, name)
        last = read_message(*turns[-1], name) if turns else {"role": None, "content": []}
        if last["role"] != "assistant":
            raise DataError(f"{name} has no reference answer; give 'answer', 'answers', or an assistant's last turn.")
        stored = " ".join(item["text"] for item in last["content"] if item["type"] == "text").strip()
    if isinstance(stored, Mapping):
        stored = stored.get("answer", [])
    several = stored if isinstance(stored, list | tuple) else [stored]
    plain = [one.get("answer") if isinstance(one, Mapping) else one for one in several]
    if not plain or not all(isinstance(one, str | int) or (isinstance(one, float) and isfinite(one)) for one in plain):
        raise DataError(f"{name}: {several!r} are no reference answers; give texts or numbers, at least one.")
    choices = _choices(row, name)
    if not choices:
        return tuple(map(str, plain))
    return tuple(text for one in plain for text in _right_choice(one, choices, name))


def _choices(row: Row, name: str) -> list[str]:
    stored = row.get("choices")
    if stored is None:
        return []
    if not isinstance(stored, list | tuple) or not 2 <= len(stored) <= len(ascii_uppercase):
        raise DataError(f"{name}: choices={stored!r}; give a list of 2 to {len(ascii_uppercase)} texts.")
    if not all(isinstance(choice, str | int | float) for choice in stored):
        raise DataError(f"{name}: choices={stored!r:.300}; each must be a text or a number.")
    return [str(choice) for choice in stored]


def _right_choice(answer: Any, choices: Sequence[str], name: str) -> tuple[str, ...]:
    """The letter and text of the choice that ``answer`` names: by its place, letter or text.

    The text is left out where it would be taken for another choice's letter.
    """
    letters = ascii_uppercase[: len(choices)]
    if isinstance(answer, int):
        found = {answer}
    else:
        said = str(answer).strip()
        found = {i for i, choice in enumerate(choices) if choice.strip() == said}
        found |= {letters.index(said.upper())} if len(said) == 1 and said.upper() in letters else set()
        found = found or ({int(said)} if said.isdecimal() and len(said) < 3 else set())
    if len(found) != 1 or not 0 <= min(found) < len(choices):
        raise DataError(
            f"{name}: the answer {answer!r} doesn't name one of the choices {list(choices)}; give its place (from 0), "
            "its letter or its text."
        )
    right = found.pop()
    text = choices[right]
    return (letters[right],) if text.strip().upper() in letters else (letters[right], text)

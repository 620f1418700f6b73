"""Questions with reference answers, read from the formats people have.

Each row has picture(s) (``image`` or ``images``) and either a ``question`` or a conversation (``messages`` or
``conversations``, see `tokenflex.training.data`). Reference answers are in ``answer`` or ``answers``: texts, numbers,
or mappings with the key ``answer``; without them a conversation's last turn is the reference, if it is the
assistant's. ``choices`` makes the question multiple choice; ``kind`` (or ``category``) sorts results; ``id`` is for the
reader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tokenflex.errors import ConfigError, DataError
from tokenflex.training.data import IMAGE_MARK, ROLES, ChatDataset, Sample, read_rows, read_sample

PICTURES = ("image", "images")
Row = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked, without its pictures.

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
    """A data set of questions; pictures are decoded when they are asked for.

    Args:
        rows: a list of mappings, or a ``datasets.Dataset``.
        image_folder: where relative image paths start.
        suffix: written under each question, e.g. ``Answer with a single word or phrase.``
        limit: only so many rows, from the first on.

    Raises:
        DataError: names the row and what is missing; pictures are looked at later.
    """

    def __init__(
        self, rows: Any, image_folder: str | Path | None = None, suffix: str = "", limit: int | None = None
    ) -> None:
        if isinstance(rows, Mapping):
            raise DataError(f"the data has splits, {', '.join(rows)}; give the folder of one of them.")
        if limit is not None and limit < 1:
            raise ConfigError(f"limit={limit} leaves no row; use 1 or more.")
        self.source = ChatDataset(_first(rows, limit), image_folder)
        self.suffix = suffix
        light = _without_pictures(self.source.rows)
        self.questions = [_question(light[place], place) for place in range(len(light))]

    def __len__(self) -> int:
        return len(self.questions)

    def sample(self, place: int) -> Sample:
        """Pictures and messages up to the question.

        Raises:
            DataError: a picture can't be read, or pictures and places for them don't match.
        """
        row = self.source.rows[place]
        messages = [*_prompt(row, f"row {place}", self.suffix), {"role": "assistant", "content": "its answer"}]
        pictures = {key: row[key] for key in PICTURES if row.get(key) is not None}
        read = read_sample({"id": row.get("id"), **pictures, "messages": messages}, place, self.source.image_folder)
        return Sample(read.name, read.images, read.messages[:-1])


def read(path: str | Path, **settings: Any) -> Questions:
    """From a ``.json``, ``.jsonl`` or ``.parquet`` file, or a saved ``datasets`` folder.

    Args:
        settings: see `Questions`.

    Raises:
        ConfigError: the library ``datasets`` is needed and isn't installed.
        DataError: the path doesn't exist, isn't in one of these formats, or a row can't be used.
    """
    try:
        rows = read_rows(path)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} needs the library datasets: pip install 'tokenflex[eval]'.") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} holds no saved data set ({error}). Write it with save_to_disk.") from error
    return Questions(rows, **settings)


def _first(rows: Any, limit: int | None) -> Any:
    if limit is None or limit >= len(rows):
        return rows
    return rows[:limit] if isinstance(rows, list) else rows.select(range(limit))


def _without_pictures(rows: Any) -> Any:
    """The same rows; a ``datasets.Dataset`` would decode every picture that is looked past."""
    if isinstance(rows, list):
        return rows
    return rows.select_columns([name for name in rows.column_names if name not in PICTURES])


def _question(row: Row, place: int) -> Question:
    name = f"row {place}" + (f" (id {row['id']!r})" if row.get("id") is not None else "")
    prompt = _prompt(row, name, "")
    kind = next((str(row[key]) for key in ("kind", "category") if row.get(key) is not None), "")
    number = next((row[key] for key in ("id", "question_id") if row.get(key) is not None), place)
    return Question(place, str(number), kind, _text(prompt[-1]["content"]), _references(row, name))


def _prompt(row: Row, name: str, suffix: str) -> list[Message]:
    """The messages up to the question, with the choices and ``suffix`` under it."""
    turns = _turns(row)
    if turns is None:
        if not isinstance(row.get("question"), str):
            raise DataError(f"{name} has no 'question', 'messages' or 'conversations'; it has {sorted(row)}.")
        listed = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, _choices(row, name), strict=False)]
        return [{"role": "user", "content": "\n".join([row["question"], *listed, *([suffix] if suffix else [])])}]
    if _role(turns[-1]) == "assistant":
        turns = turns[:-1]
    if not turns or _role(turns[-1]) != "user":
        raise DataError(f"{name}: no user's turn comes before the answer, so nothing is asked.")
    messages = [{"role": turn.get("role", turn.get("from")), "content": _content(turn)} for turn in turns]
    if suffix:
        last = messages[-1]["content"]
        extended = f"{last}\n{suffix}" if isinstance(last, str) else [*last, {"type": "text", "text": f"\n{suffix}"}]
        messages[-1]["content"] = extended
    return messages


def _turns(row: Row) -> list[Row] | None:
    return next((list(row[key]) for key in ("messages", "conversations") if row.get(key)), None)


def _role(turn: Row) -> str | None:
    return ROLES.get(str(turn.get("role", turn.get("from"))))


def _content(turn: Row) -> Any:
    return turn.get("content", turn.get("value"))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content.replace(IMAGE_MARK, " ").strip()
    return " ".join(part["text"] for part in content if part.get("type") == "text").strip()


def _references(row: Row, name: str) -> tuple[str, ...]:
    given = next((row[key] for key in ("answers", "answer") if row.get(key) is not None), None)
    if given is None:
        turns = _turns(row)
        if turns is None or _role(turns[-1]) != "assistant":
            raise DataError(f"{name} has no reference answer; give 'answer', 'answers', or an assistant's last turn.")
        given = _text(_content(turns[-1]))
    if isinstance(given, Mapping):
        given = given.get("answer", [])
    several = given if isinstance(given, list | tuple) else [given]
    plain = [one.get("answer") if isinstance(one, Mapping) else one for one in several]
    if not plain or any(one is None for one in plain):
        raise DataError(f"{name}: {several!r} are no reference answers; give texts or numbers, at least one.")
    choices = _choices(row, name)
    if not choices:
        return tuple(map(str, plain))
    return tuple(text for one in plain for text in _right_choice(one, choices, name))


def _choices(row: Row, name: str) -> list[str]:
    given = row.get("choices")
    if given is None:
        return []
    if not isinstance(given, list | tuple) or not 2 <= len(given) <= len(ascii_uppercase):
        raise DataError(f"{name}: choices={given!r}; give a list of 2 to {len(ascii_uppercase)} texts.")
    return [str(choice) for choice in given]


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
        found = found or ({int(said)} if said.isdecimal() else set())
    if len(found) != 1 or not 0 <= min(found) < len(choices):
        raise DataError(
            f"{name}: the answer {answer!r} doesn't name one of the choices {list(choices)}; give its place (from 0), "
            "its letter or its text."
        )
    right = found.pop()
    text = choices[right]
    return (letters[right],) if text.strip().upper() in letters else (letters[right], text)

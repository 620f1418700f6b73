"""What an evaluation's files promise each other, so that files from anyone can be compared with it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation.drawing import Cells
from tokenflex.evaluation.settings import GROUPS, group_of, rank
from tokenflex.reading import json_text
from tokenflex.run_folder import sealed
from tokenflex.run_folder.sealed import AGAIN

MANIFEST: dict[str, sealed.Rule] = {
    "format": sealed.counted(1),
    "model": sealed.TEXT,
    "data": sealed.TEXT,
    "levels": sealed.counted(1, 1025),
    "fingerprint": sealed.OBJECT,
}
FINGERPRINT: dict[str, sealed.Rule] = {
    "host": sealed.OBJECT,
    "metric": sealed.TEXT,
    "max_new_tokens": sealed.counted(1),
    "data?": (lambda value: isinstance(value, dict) and sealed.counted(1)[0](value.get("rows")), "an object with rows"),
}
OWN = ("level", "router", "budget", "escalate", "random")
"""Groups of settings whose levels are those of the model's own scaler."""
LONGEST = 1000
"""Characters of a setting's name."""
WIDEST = 4096
"""Tokens of a side of a grid that is drawn."""


class Answered(Protocol):
    """What is read of an answer here; see `tokenflex.evaluation.records.Record`."""

    @property
    def place(self) -> int: ...  # noqa: D102 (as in Record)
    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def setting(self) -> str: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def levels(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def of(self) -> int: ...  # noqa: D102
    @property
    def cells(self) -> str | None: ...  # noqa: D102
    @property
    def passes(self) -> int | None: ...  # noqa: D102
    @property
    def wasted(self) -> int | None: ...  # noqa: D102


def require_manifest(found: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest that doesn't say what it must.

    Raises:
        ConfigError: names the key, what was found and what was expected.
    """
    sealed.require(found, MANIFEST, where)
    stored = found["fingerprint"]
    sealed.require(stored, FINGERPRINT, f"{where}: fingerprint", extra=True)
    sealed.require(stored["host"], {"model_type": sealed.TEXT}, f"{where}: host", extra=True)


def require_samples(rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], where: str) -> None:
    """Refuse questions that aren't all there, in order, with references.

    Raises:
        DataError: names the row.
    """
    count = manifest["fingerprint"].get("data", {}).get("rows", len(rows))
    if len(rows) != count or not rows:
        raise DataError(f"{where} has {len(rows)} questions; the manifest says {count}. {AGAIN}")
    for place, row in enumerate(rows):
        if row["place"] != place:
            raise DataError(f"{where}: row {place} is of the question at place {row['place']}. {AGAIN}")
        if not row["references"]:
            raise DataError(f"{where}: row {place} has no references. {AGAIN}")


def require_records(records: Sequence[Answered], ids: Sequence[str], levels: int, where: str) -> None:
    """Refuse answers that can't have been given.

    Args:
        ids: of the questions, by place.
        levels: of the model's own scaler.

    Raises:
        DataError: names the row and what is wrong with it.
    """
    seen, known = set[tuple[str, int]](), dict[str, int]()
    for row, record in enumerate(records):
        if record.setting not in known:
            known[record.setting] = _most(record.setting, levels, f"{where}: row {row}")
        wrong = _wrong(record, ids, known[record.setting])
        if (record.setting, record.place) in seen:
            wrong = "answers the same question in the same setting as another row"
        if wrong:
            raise DataError(f"{where}: row {row} (setting {record.setting!r}) {wrong}. {AGAIN}")
        seen.add((record.setting, record.place))
        cells_of(record.cells, f"{where}: row {row}")


def _most(setting: str, levels: int, where: str) -> int:
    """How many levels a setting may choose among."""
    try:
        group = group_of(setting)
        if len(setting) > LONGEST or not setting.isprintable() or group not in GROUPS:
            raise ValueError
        rank(setting)
    except ValueError:
        raise DataError(f"{where}: the setting {setting!r:.200} isn't one of {', '.join(GROUPS)}. {AGAIN}") from None
    return levels if group in OWN else 1024


def _wrong(record: Answered, ids: Sequence[str], levels: int) -> str:
    """What is wrong with an answer; empty for nothing."""
    passes, wasted = record.passes, record.wasted
    if not 0 <= record.place < len(ids):
        return f"has the place {record.place}; there are {len(ids)} questions"
    if record.id != ids[record.place]:
        return f"has the id {record.id!r:.100}; the question at its place has {ids[record.place]!r:.100}"
    if not 0 <= record.score <= 1:
        return f"has the score {record.score}, expected 0 to 1"
    if any(not 0 <= level < levels for level in record.levels):
        return f"has the levels {list(record.levels)!r:.100}; there are 0 to {levels - 1}"
    if record.tokens < 0 or record.of < 0:
        return f"has {record.tokens} tokens of {record.of}"
    if (passes is not None and passes < 1) or (wasted is not None and wasted < 0):
        return f"has {passes} passes and {wasted} tokens wasted"
    return ""


def cells_of(text: str | None, where: str) -> list[Cells] | None:
    """What was kept of images, from JSON.

    Raises:
        DataError: it isn't what `tokenflex.evaluation.drawing.as_data` gave.
    """
    if text is None:
        return None
    found = json_text(text, f"{where}: cells", DataError)
    try:
        if not isinstance(found, list):
            raise ConfigError(f"{where}: cells are {found!r:.100}, expected a list. {AGAIN}")
        for one in found:
            side = sealed.counted(1, WIDEST + 1)
            sealed.require(one, {"rows": side, "cols": side, "into": _into(one)}, f"{where}: cells")
    except ConfigError as error:
        raise DataError(str(error)) from error
    return [Cells(**one) for one in found]


def made_of(text: str | None, where: str) -> dict[str, Any] | None:
    """How the answers of a file were made, from its metadata; None where they don't say.

    Raises:
        DataError: it isn't what `tokenflex.evaluation.records.AnswerWriter` wrote.
    """
    if text is None:
        return None
    found = json_text(text, f"{where}: made", DataError)
    if not isinstance(found, dict) or not all(isinstance(value, str | int) for value in found.values()):
        raise DataError(f"{where}: made is {found!r:.100}, expected an object of texts and numbers. {AGAIN}")
    return found


def _into(one: Any) -> sealed.Rule:
    def accepted(value: Any) -> bool:
        fits = isinstance(value, list) and len(value) == one["rows"] * one["cols"]
        return fits and all(map(sealed.counted(-1)[0], value))

    return accepted, "a whole number from -1 on for every token of the grid"

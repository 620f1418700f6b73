"""An evaluation as data: every answer of every setting, in a folder that can be gone on with.

``manifest.json``     what was asked of what (see `fingerprint`)
``samples.parquet``   one row per question: ``place`` in the data set, ``id``, ``kind``, ``question``, ``references``,
                      and for some ``images`` for the report's gallery
``part-*.parquet``    one row per answer: ``place``, ``id``, ``setting``, ``answer``, ``score``, ``levels`` (one per
                      image), ``tokens`` and ``of`` (visual tokens the language model saw, and would have seen
                      without TokenFlex; over all images), ``passes`` of the language model and ``wasted``, the tokens
                      of all but the last (null in files of older versions: 1 and 0), and for the gallery ``cells`` (see
                      `tokenflex.evaluation.drawing`); its metadata say under ``made`` how its answers were made (see
                      `tokenflex.measure.surroundings.made`), which files of older versions don't

Files appear as a whole or not at all; an evaluation that was killed loses what it hadn't written and nothing else.
They are read as data that may come from anyone, and have digests (see `tokenflex.training.sealed`).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenflex import checkpoint
from tokenflex.checkpoint import KINDS
from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation import metrics, promised
from tokenflex.evaluation.questions import Question, Questions
from tokenflex.evaluation.settings import rank
from tokenflex.files import as_path, locked, sweep, write_whole
from tokenflex.model import FlexModel
from tokenflex.training import sealed
from tokenflex.training.fingerprint import differences, of_data, of_processor, of_tensors
from tokenflex.training.store import next_part

FORMAT = 1
MANIFEST, SAMPLES, MADE = "manifest.json", "samples.parquet", "made"
Manifest = dict[str, Any]
QUESTIONS = pa.schema(
    [
        ("place", pa.int64()),
        ("id", pa.string()),
        ("kind", pa.string()),
        ("question", pa.string()),
        ("references", pa.list_(pa.string())),
        ("images", pa.list_(pa.binary())),
    ]
)
PART = pa.schema(
    [
        ("place", pa.int64()),
        ("id", pa.string()),
        ("setting", pa.string()),
        ("answer", pa.string()),
        ("score", pa.float64()),
        ("levels", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("of", pa.int32()),
        ("passes", pa.int32()),
        ("wasted", pa.int32()),
        ("cells", pa.string()),
    ]
)


@dataclass(frozen=True)
class Record:
    """One answer; fields as in ``part-*.parquet``."""

    place: int
    id: str
    setting: str
    answer: str
    score: float
    levels: Sequence[int]
    tokens: int
    of: int
    cells: str | None = None
    passes: int | None = 1
    wasted: int | None = 0


@dataclass(frozen=True)
class Shown:
    """A question as reports need it; ``images`` are encoded ones, only for the gallery."""

    question: Question
    images: tuple[bytes, ...] = ()


def fingerprint(flex: FlexModel, processor: Any, questions: Questions, *, metric: str, max_new_tokens: int) -> Manifest:
    """JSON-ready; equal exactly when model, processor, data, metric and prompt are.

    Images that a row names by their path count by that name, not by their pixels.

    Raises:
        ConfigError: a part isn't registered under a name.
    """
    spec = checkpoint.describe(flex.compressor, flex.adapter)
    parts = {
        kind: {
            "name": spec["parts"][kind]["name"],
            "config": spec["parts"][kind]["config"],
            "weights": of_tensors(getattr(flex.compressor, kind).state_dict()),
        }
        for kind in KINDS
    }
    found = {
        "host": {**spec["host"], "dtype": str(flex.host.dtype), "weights": of_tensors(flex.host.state_dict())},
        **parts,
        "processor": of_processor(processor),
        "data": {"rows": len(questions), "content": of_data(questions.source)},
        "metric": metrics.identity(metric),
        "suffix": questions.suffix,
        "max_new_tokens": max_new_tokens,
    }
    return json.loads(json.dumps(found))


def begin(folder: str | os.PathLike[str], manifest: Manifest, samples: Callable[[], Sequence[Shown]]) -> None:
    """Start an evaluation, or make sure that the one in ``folder`` can be gone on with.

    Args:
        manifest: with the key ``fingerprint``.
        samples: gives what reports need; called once.

    Raises:
        ConfigError: the folder holds answers of something else; the message says what differs.
    """
    target = as_path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        for name in (MANIFEST, SAMPLES):
            sweep(target, name)
        if not (target / MANIFEST).exists():
            _write_samples(target / SAMPLES, samples())
            write_whole(target / MANIFEST, sealed.sealed({"format": FORMAT, **manifest}))
    found = differences(read_manifest(target)[0]["fingerprint"], manifest["fingerprint"])
    if found:
        raise ConfigError(
            f"{folder} holds an evaluation of something else: {'; '.join(found)}. Go back to that, or choose another "
            "--out."
        )


class AnswerWriter:
    """Adds parts to an evaluation; one writer per process.

    Args:
        rank: of the process; part of its files' names, so that processes never meet.
        made: how its answers are made; None where nobody says.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int, made: Mapping[str, Any] | None = None) -> None:
        self.folder, self.rank = as_path(folder), rank
        self._made = {} if made is None else {MADE: json.dumps(made, sort_keys=True)}
        self._next = next_part(self.folder, rank)

    def write(self, records: Sequence[Record]) -> None:
        """One part, as a whole or not at all."""
        table = pa.Table.from_pylist([vars(record) for record in records], schema=PART)
        write_whole(self.folder / f"part-{self.rank:05d}-{self._next:05d}.parquet", _parquet(table, self._made))
        self._next += 1


class Evaluation:
    """A folder of answers, read.

    Attributes:
        manifest: what was asked of what.
        samples: every question, by place.
        records: setting -> place -> answer; settings in the order of reports.
        made: every way in which answers were made, in the order of the files; None among them where a file doesn't say.

    Raises:
        ConfigError: there is no evaluation in the folder, or its manifest was changed or is damaged.
        DataError: a file is damaged, was changed, or holds what the others don't promise: answers to questions that
            aren't there or to one question twice in one part, settings, levels or numbers that can't be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder)
        self.manifest, sure = read_manifest(self.folder)
        self.samples = _read_samples(self.folder, self.manifest, sure)
        self.made: list[dict[str, Any] | None] = []
        found: dict[str, dict[int, Record]] = {}
        ids = [shown.question.id for shown in self.samples]
        for path in sorted(self.folder.glob("part-*.parquet")):
            table, metadata = sealed.table(
                self.folder, path.name, PART,
                optional=("passes", "wasted"), nullable=("cells",), metadata=(MADE,), sure=sure,
            )  # fmt: skip
            made = promised.made_of(metadata.get(MADE), str(path))
            if made not in self.made:
                self.made.append(made)
            records = [Record(**row) for row in table.to_pylist()]
            promised.require_records(records, ids, self.manifest["levels"], str(path))
            for record in records:
                found.setdefault(record.setting, {}).setdefault(record.place, record)
        self.records = {name: found[name] for name in sorted(found, key=rank)}

    def missing(self, wanted: Sequence[str] = ()) -> dict[str, int]:
        """How many answers are missing, of every setting that isn't complete.

        Args:
            wanted: settings that must be there besides those that are.
        """
        names = dict.fromkeys([*self.records, *wanted])
        left = {name: len(self.samples) - len(self.records.get(name, {})) for name in names}
        return {name: count for name, count in left.items() if count}

    def require_complete(self) -> None:
        """Refuse an evaluation that isn't finished.

        Raises:
            DataError: answers are missing.
        """
        missing = self.missing()
        if missing or not self.records:
            lacks = ", ".join(f"{name} lacks {n} of {len(self.samples)}" for name, n in missing.items())
            raise DataError(
                f"{self.folder} isn't complete: {lacks or 'it has no answers'}. Run the same command again; it goes on "
                "where it stopped."
            )


def read_manifest(folder: Path) -> tuple[Manifest, bool]:
    """As `begin` wrote it, and whether it has a digest, as those of older versions haven't.

    Raises:
        ConfigError: there is none, it is of another version, was changed or is damaged.
    """
    found, sure = sealed.manifest(folder, MANIFEST, FORMAT, "no evaluation. Make one with 'tokenflex evaluate'.")
    promised.require_manifest(found, str(folder / MANIFEST))
    return found, sure


def _write_samples(path: Path, samples: Sequence[Shown]) -> None:
    rows = [
        {
            "place": shown.question.place,
            "id": shown.question.id,
            "kind": shown.question.kind,
            "question": shown.question.text,
            "references": list(shown.question.references),
            "images": list(shown.images),
        }
        for shown in samples
    ]
    write_whole(path, _parquet(pa.Table.from_pylist(rows, schema=QUESTIONS)))


def _read_samples(folder: Path, manifest: Manifest, sure: bool) -> list[Shown]:
    rows = sealed.table(folder, SAMPLES, QUESTIONS, sure=sure)[0].to_pylist()
    promised.require_samples(rows, manifest, str(folder / SAMPLES))

    def shown(row: Mapping[str, Any]) -> Shown:
        question = Question(row["place"], row["id"], row["kind"], row["question"], tuple(row["references"]))
        return Shown(question, tuple(row["images"]))

    return [shown(row) for row in rows]


def _parquet(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    sealed.write_table(table, sink, metadata)
    return sink.getvalue().to_pybytes()

"""An evaluation as data: every answer of every setting, in a folder that can be gone on with.

``manifest.json``     what was asked of what (see `evaluation_fingerprint`)
``samples.parquet``   one row per question: ``place`` in the data set, ``id``, ``kind``, ``question``, ``references``,
                      and for some ``images`` for the report's gallery
``part-*.parquet``    one row per answer: ``place``, ``id``, ``setting``, ``answer``, ``score``, ``levels`` (one per
                      image), ``tokens`` and ``of`` (visual tokens the language model saw, and would have seen
                      without TokenFlex; over all images), ``passes`` of the language model and ``wasted``, the tokens
                      of all but the last (null in files of older versions: 1 and 0), and for the gallery ``cells`` (see
                      `tokenflex.evaluation.drawing`); its metadata say under ``made`` how its answers were made (see
                      `tokenflex.profiling.surroundings.provenance`), which files of older versions don't

How files appear, how runs go on with them and how they are checked: `tokenflex.run_folder.folder`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenflex import checkpoint
from tokenflex.checkpoint import KINDS
from tokenflex.errors import DataError
from tokenflex.evaluation import metrics, promised
from tokenflex.evaluation.questions import Question, Questions
from tokenflex.evaluation.settings import rank
from tokenflex.model import FlexModel
from tokenflex.ops.digest import of_tensors
from tokenflex.run_folder import Manifest, RunFolder, RunKind, sealed
from tokenflex.training.fingerprint import of_data, of_processor

FORMAT = 1
SAMPLES, MADE = "samples.parquet", "made"
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
ANSWERS = pa.schema(
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


def evaluation_fingerprint(
    flex: FlexModel, processor: Any, questions: Questions, *, metric: str, max_new_tokens: int
) -> Manifest:
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


def begin_evaluation(
    folder: str | os.PathLike[str], manifest: Manifest, samples: Callable[[], Sequence[Shown]]
) -> None:
    """Start an evaluation, or make sure that the one in ``folder`` can be gone on with.

    Args:
        folder: of the evaluation; made where there is none.
        manifest: with the key ``fingerprint``.
        samples: gives what reports need; called where an evaluation is started.

    Raises:
        ConfigError: the folder holds answers of something else; the message says what differs.
    """
    RunFolder(folder, EVALUATION).begin(manifest, lambda: {SAMPLES: partial(sealed.write_table, _asked(samples()))})


class AnswerWriter:
    """Adds shards to an evaluation; one writer per process.

    Args:
        folder: of the evaluation.
        rank: of the process; part of its files' names, so that processes never meet.
        made: how its answers are made; None where nobody says.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int, made: Mapping[str, Any] | None = None) -> None:
        run = RunFolder(folder, EVALUATION)
        self.folder, self._shards = run.path, run.writer(rank)
        self._made = {} if made is None else {MADE: json.dumps(made, sort_keys=True)}

    def write(self, records: Sequence[Record]) -> None:
        """Write one shard, as a whole or not at all.

        Args:
            records: its rows.

        Raises:
            WriteError: it can't be written, as on a full disk.
        """
        self._shards.write(pa.Table.from_pylist([vars(record) for record in records], schema=ANSWERS), self._made)


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
            aren't there or to one question twice in one shard, settings, levels or numbers that can't be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        run = RunFolder(folder, EVALUATION)
        self.folder = run.path
        self.manifest, sure = run.manifest()
        self.samples = _read_samples(self.folder, self.manifest, sure)
        self.made: list[dict[str, Any] | None] = []
        found: dict[str, dict[int, Record]] = {}
        ids = [shown.question.id for shown in self.samples]
        nullable = {"optional": ("passes", "wasted"), "nullable": ("cells",)}
        for shard in run.shards(ANSWERS, sure=sure, metadata=(MADE,), **nullable):
            made = promised.made_of(shard.metadata.get(MADE), str(shard.path))
            if made not in self.made:
                self.made.append(made)
            records = [Record(**row) for row in shard.table.to_pylist()]
            promised.require_records(records, ids, self.manifest["levels"], str(shard.path))
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


def _asked(samples: Sequence[Shown]) -> pa.Table:
    """The table of ``samples.parquet``, one row per question."""
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
    return pa.Table.from_pylist(rows, schema=QUESTIONS)


def _read_samples(folder: Path, manifest: Manifest, sure: bool) -> list[Shown]:
    rows = sealed.read_table(folder, SAMPLES, QUESTIONS, sure=sure)[0].to_pylist()
    promised.require_samples(rows, manifest, str(folder / SAMPLES))

    def shown(row: Mapping[str, Any]) -> Shown:
        question = Question(row["place"], row["id"], row["kind"], row["question"], tuple(row["references"]))
        return Shown(question, tuple(row["images"]))

    return [shown(row) for row in rows]


def _compared(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What two manifests must have in common; names of the model and the data, for reports, may differ."""
    return stored["fingerprint"], now["fingerprint"]


EVALUATION = RunKind(
    version=FORMAT,
    without="no evaluation. Make one with 'tokenflex evaluate'.",
    made="holds an evaluation of",
    instead="choose another --out",
    require=promised.require_manifest,
    compared=_compared,
    once=(SAMPLES,),
)

"""The pass: every question answered with ``generate`` in every setting.

Each process takes its own share of the questions, so it runs unchanged under ``torchrun``; what is finished already,
by whichever process, isn't done again. Batches are cut before either, so that an answer doesn't depend on how many
processes there were or how often they were stopped.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenflex.errors import ConfigError, DataError
from tokenflex.evaluation import drawing, metrics, order
from tokenflex.evaluation.answering import Answer, Batch
from tokenflex.evaluation.questions import Questions
from tokenflex.evaluation.records import (
    EVALUATION,
    AnswerWriter,
    Evaluation,
    Record,
    Shown,
    begin_evaluation,
    evaluation_fingerprint,
)
from tokenflex.evaluation.settings import Setting
from tokenflex.model import FlexModel
from tokenflex.profiling.surroundings import provenance
from tokenflex.run_folder import RunFolder

GALLERY = 24
SHARD_SIZE = 256


def evaluate(
    flex: FlexModel,
    processor: Any,
    questions: Questions,
    metric: str,
    settings: Sequence[Setting],
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 16,
    names: tuple[str, str] = ("", ""),
    process: tuple[int, int] = (0, 1),
    command: str = "",
    waiting: Callable[[], None] = lambda: None,
    begun: Callable[[int, int], None] = lambda done, total: None,
    tick: Callable[[int], None] = lambda answers: None,
) -> Evaluation:
    """Answer what isn't answered yet, and give what is there.

    Args:
        metric: a name, see `tokenflex.evaluation.metrics.find`.
        settings: see `tokenflex.evaluation.settings.parse`.
        folder: of the evaluation; made, or gone on with. Settings may be added later.
        names: of model and data, for the report.
        process: rank of this process, and how many there are.
        command: as it was typed, for the report; empty where this is called from Python.
        waiting: is told if another process of the same rank is at work in the folder; its end is waited for.
        begun: is told how many of this process's answers are there already, and how many there will be.
        tick: is told how many more are there, batch by batch.

    Raises:
        ConfigError: the folder holds an evaluation of something else, or a setting of this function isn't usable.
        DataError: a row can't be used, or answers that were written aren't there at the end.
    """
    rank, processes = process
    _check(batch_size, max_new_tokens, rank, processes)
    one = _Pass(processor, questions, metric, settings, max_new_tokens, _gallery(questions))
    manifest = {
        "model": names[0],
        "data": names[1],
        "levels": flex.compressor.num_levels,
        "fingerprint": evaluation_fingerprint(flex, processor, questions, metric=metric, max_new_tokens=max_new_tokens),
    }
    with RunFolder(folder, EVALUATION).alone(f"rank {rank}", waiting=waiting):
        begin_evaluation(folder, manifest, lambda: _shown(questions, one.gallery))
        own = order.batches(processor, questions, batch_size)[rank::processes]
        done = {name: set(records) for name, records in Evaluation(folder).records.items()}
        todo = [{s.name: [i for i in batch if i not in done.get(s.name, ())] for s in settings} for batch in own]
        total, left = (
            sum(map(len, own)) * len(settings),
            sum(len(some) for batch in todo for some in batch.values()),
        )
        begun(total - left, total)
        _answered(one, todo, AnswerWriter(folder, rank, provenance(flex.device, command)), tick)
        found = Evaluation(folder)
    _require_own(found, own, settings)
    return found


def _answered(
    one: "_Pass", todo: Sequence[Mapping[str, Sequence[int]]], writer: AnswerWriter, tick: Callable[[int], None]
) -> None:
    """Answer batch by batch, and write shards."""
    buffer = list[Record]()
    for places in todo:
        buffer += one(places, tick)
        if len(buffer) >= SHARD_SIZE:
            writer.write(buffer)
            buffer = []
    if buffer:
        writer.write(buffer)


def _require_own(found: Evaluation, own: Sequence[Sequence[int]], settings: Sequence[Setting]) -> None:
    """What this process was to answer is there."""
    places = {place for batch in own for place in batch}
    lost = {s.name: len(places - set(found.records.get(s.name, {}))) for s in settings}
    if any(lost.values()):
        lacks = ", ".join(f"{name} lacks {count}" for name, count in lost.items() if count)
        raise DataError(
            f"answers that were written to {found.folder} aren't there ({lacks}); another machine may have written "
            "into it at the same time. Run the same command again; it goes on where it stopped."
        )


class _Pass:
    """Answers and scores batches; references that the metric can't use are refused before that.

    Args:
        gallery: places of which it is also told what was kept of the images.
    """

    def __init__(
        self,
        processor: Any,
        questions: Questions,
        metric: str,
        settings: Sequence[Setting],
        max_new_tokens: int,
        gallery: set[int],
    ) -> None:
        self.processor, self.questions, self.metric = processor, questions, metric
        self.settings, self.max_new_tokens, self.gallery = settings, max_new_tokens, gallery
        self.function = metrics.find(metric)
        for question in questions.questions:
            metrics.score(metric, self.function, "", question.references)

    def __call__(self, places: Mapping[str, Sequence[int]], tick: Callable[[int], None]) -> list[Record]:
        """The records of one batch.

        Args:
            places: by setting, what is still to be answered.
        """
        wanted = sorted({place for some in places.values() for place in some})
        batch = Batch(self.processor, {place: self.questions.sample(place) for place in wanted}, self.gallery)
        found: list[Record] = []
        for setting in self.settings:
            answers = batch.answers(setting, places[setting.name], self.max_new_tokens)
            found += [self._record(answer, setting.name) for answer in answers]
            tick(len(answers))
        return found

    def _record(self, answer: Answer, setting: str) -> Record:
        question = self.questions.questions[answer.place]
        score = metrics.score(self.metric, self.function, answer.text, question.references)
        levels, tokens = [d.level for d in answer.decisions], sum(d.tokens for d in answer.decisions)
        of = sum(d.of for d in answer.decisions)
        passes = max((len(d.tried) for d in answer.decisions), default=0) or 1
        wasted = sum(tried.tokens for d in answer.decisions for tried in d.tried[:-1])
        known = (question.place, question.id, setting, answer.text, score, levels, tokens, of, answer.cells)
        return Record(*known, passes=passes, wasted=wasted)


def _gallery(questions: Questions) -> set[int]:
    """Places shown with images: the first of each kind."""
    by_kind: dict[str, list[int]] = {}
    for question in questions.questions:
        by_kind.setdefault(question.kind, []).append(question.place)
    each = -(-GALLERY // len(by_kind))
    return {place for places in list(by_kind.values())[:GALLERY] for place in places[:each]}


def _shown(questions: Questions, gallery: set[int]) -> list[Shown]:
    def images(place: int) -> tuple[bytes, ...]:
        return tuple(map(drawing.stored, questions.sample(place).images)) if place in gallery else ()

    return [Shown(question, images(question.place)) for question in questions.questions]


def _check(batch_size: int, max_new_tokens: int, rank: int, processes: int) -> None:
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be 1 or more.")
    if not 0 <= rank < processes:
        raise ConfigError(f"process {rank} of {processes} isn't there; ranks go from 0 to {processes - 1}.")

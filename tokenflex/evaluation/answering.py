"""Batches of questions, answered with ``generate``."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenflex.chat import special_tokens, written
from tokenflex.contracts import Decision
from tokenflex.evaluation import drawing
from tokenflex.evaluation.settings import Setting
from tokenflex.model import FlexModel
from tokenflex.training.data import Sample


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        place: of the question in the data set.
        decisions: one per image, or several where the host's adapter routes tiles.
        cells: what was kept of the images, as JSON (see `tokenflex.evaluation.drawing`); None where nobody asked.
    """

    place: int
    text: str
    decisions: Sequence[Decision]
    cells: str | None


class Batch:
    """Questions that go through the processor once and are then answered in several settings.

    Rows with and without images are never given to the processor together: few processors mix them.

    Args:
        samples: by place.
        shown: places of which it is also told what was kept of the images.
    """

    def __init__(self, processor: Any, samples: Mapping[int, Sample], shown: Collection[int]) -> None:
        self.processor, self.samples, self.shown = processor, samples, shown
        self._inputs: dict[tuple[int, ...], dict[str, Any]] = {}

    def answers(self, setting: Setting, places: Sequence[int], max_new_tokens: int) -> list[Answer]:
        """Greedy answers, one per place, those of questions with images first."""
        found: list[Answer] = []
        for pictured in (True, False):
            some = tuple(place for place in places if bool(self.samples[place].images) == pictured)
            if some:
                found += self._answers(setting, some, max_new_tokens)
        return found

    @torch.no_grad()
    def _answers(self, setting: Setting, places: tuple[int, ...], max_new_tokens: int) -> list[Answer]:
        inputs = self.inputs(setting.flex, places)
        output = setting.flex.generate(
            **inputs,
            level=setting.level,
            budget=setting.budget,
            escalate=setting.escalate,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
        )
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        rest, found = list(output.decisions), list[Answer]()
        for place, text, count in zip(places, texts, self._units(setting.flex, places, len(rest)), strict=True):
            decisions, rest = rest[:count], rest[count:]
            found.append(Answer(place, text.strip(), decisions, self._cells(setting, place, decisions)))
        return found

    def inputs(self, flex: FlexModel, places: tuple[int, ...]) -> dict[str, Any]:
        """The processor's batch, padded on the left, on the model's device."""
        if places not in self._inputs:
            self._inputs[places] = self._processed([self.samples[place] for place in places])
        batch = self._inputs[places]
        return {key: value.to(flex.device) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _processed(self, samples: Sequence[Sample]) -> dict[str, Any]:
        texts = [written(self.processor, sample.messages, sample.name, reply=True) for sample in samples]
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        options |= special_tokens(self.processor, texts)
        images = [list(sample.images) for sample in samples]
        return dict(self.processor(text=texts, images=images if any(images) else None, **options))

    def _units(self, flex: FlexModel, places: Sequence[int], decisions: int) -> list[int]:
        """Decisions per sample: one per image, or as many as its tiles where the host's adapter routes those."""
        counts = [len(self.samples[place].images) for place in places]
        if sum(counts) == decisions:
            return counts
        return [len(flex.adapter.read(self.inputs(flex, (place,))).grids) for place in places]

    def _cells(self, setting: Setting, place: int, decisions: Sequence[Decision]) -> str | None:
        count = len(self.samples[place].images)
        if place not in self.shown or not count or len(decisions) != count:
            return None
        inputs = self.inputs(setting.flex, (place,))
        return json.dumps(drawing.as_data(drawing.cells(setting.flex, inputs, [d.level for d in decisions])))

"""What a tiny random host of one architecture is made of, and the batches it is tested with.

All of them share one vocabulary: the ids below are special, words follow from ``WORD`` on.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PAD, BOS, EOS, IMAGE, VIDEO, START, END, BREAK, ROW, COLUMN, GLOBAL = 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11
WORD, VOCABULARY = 16, 64
PICTURE = "picture"
"""Stands for the batch's next picture in a row of words."""

VIDEO_CLIP = "video"
"""Stands for the batch's next video in a row of words."""

Row = Sequence[int | str]


@dataclass(frozen=True)
class Pictures:
    """What a processor would make of a batch's pictures.

    Attributes:
        inputs: the encoder's arguments for the whole batch, e.g. ``pixel_values`` and ``image_grid_thw``.
        runs: per picture the token ids that stand for it in the text: placeholders and what the processor writes
            around and between them.
    """

    inputs: dict[str, Tensor]
    runs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TinyHost:
    """One architecture at toy size.

    Attributes:
        model_type: of its config.
        build: makes the model from a config, with seeded large random weights, in evaluation mode.
        pictures: given the model's config and, per row of the batch, the numbers of its pictures. Picture ``n`` has
            the same pixels in every batch; where the architecture allows it, sizes differ with ``n``.
        token_types: input that is 1 at placeholders of pictures, 2 at those of videos and 0 elsewhere, if the host
            takes one.
        videos: the same as ``pictures`` for the batch's videos, if the host takes any.
        more_types: makes further inputs from the token ids, or other ones than ``token_types`` says.
        exceptions: law -> why the architecture itself doesn't keep it.
    """

    model_type: str
    build: Callable[[], Any]
    pictures: Callable[[Any, Sequence[Sequence[int]]], Pictures]
    token_types: str | None = None
    videos: Callable[[Any, Sequence[Sequence[int]]], Pictures] | None = None
    more_types: Callable[[Tensor], dict[str, Tensor]] | None = None
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def batch(self, config: Any, rows: Sequence[Row], *, side: str = "left", first: int = 0) -> dict[str, Tensor]:
        """Inputs for the model, padded.

        Args:
            rows: word numbers, ``PICTURE`` for the next picture and ``VIDEO_CLIP`` for the next video.
            side: where shorter rows are padded.
            first: number of the batch's first picture and of its first video.
        """
        seen = self._seen(self.pictures, config, _numbers(rows, PICTURE, first))
        clips = self._seen(self.videos, config, _numbers(rows, VIDEO_CLIP, first))
        runs = {PICTURE: iter(seen.runs), VIDEO_CLIP: iter(clips.runs)}
        texts = [[BOS, *_text(row, runs)] for row in rows]
        length = max(map(len, texts))
        ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
        for i, text in enumerate(texts):
            where = slice(length - len(text), length) if side == "left" else slice(0, len(text))
            ids[i, where], mask[i, where] = torch.tensor(text), 1
        types = {self.token_types: (ids == IMAGE) + 2 * (ids == VIDEO)} if self.token_types else {}
        types |= self.more_types(ids) if self.more_types else {}
        return {"input_ids": ids, "attention_mask": mask, **types, **seen.inputs, **clips.inputs}

    @staticmethod
    def _seen(make: Any, config: Any, numbers: list[list[int]]) -> Pictures:
        return make(config, numbers) if any(numbers) else Pictures({}, ())


def _numbers(rows: Sequence[Row], word: str, first: int) -> list[list[int]]:
    count = itertools.count(first)
    return [[next(count) for item in row if item == word] for row in rows]


def _text(row: Row, runs: Any) -> list[int]:
    ids: list[int] = []
    for item in row:
        ids += next(runs[item]) if isinstance(item, str) else [WORD + item]
    return ids


def pixels(number: int, *shape: int) -> Tensor:
    """The pixels of picture ``number``: noise, the same in every batch."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """Build under a seed, leaving the global one alone; evaluation mode, nothing generated but words."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = make()
    torch.random.set_rng_state(state)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, EOS
    return model.eval()

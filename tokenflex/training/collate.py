"""Conversations to batches, through the host's own processor, with labels on the answers only."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from tokenflex.errors import DataError
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.training.data import Sample

BLANK = Sample("blank row", (Image.new("RGB", (32, 32)),), ({"role": "user", "content": [{"type": "image"}]},))


class FlexCollator:
    """Turns `Sample`s into the inputs of a `FlexModel`, padded on the right, with ``labels``.

    Every assistant turn is supervised, up to and including the end-of-sequence token the chat template writes
    after it; everything else is -100.

    Args:
        processor: the host's processor, with a chat template.
        max_length: longest row in tokens, placeholders included; text beyond it is cut off, placeholders never.
        always_picture: give batches without pictures one more row, a blank picture without an answer. Where parameters
            are sharded all processes must run the same modules, or they wait for each other for ever. The row counts as
            a sample without answers.
    """

    def __init__(self, processor: Any, max_length: int | None = None, always_picture: bool = False) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise DataError(
                f"{type(processor).__name__} has no chat template, so conversations can't be written down; "
                "set processor.chat_template."
            )
        self.processor, self.max_length, self.always_picture = processor, max_length, always_picture
        self.image_token_id: int = processor.image_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A batch of ``input_ids``, ``attention_mask``, ``labels`` and the processor's image tensors.

        Raises:
            DataError: names the row whose text can't be labelled or whose picture doesn't fit ``max_length``.
        """
        if self.always_picture and not any(sample.images for sample in samples):
            samples = [*samples, BLANK]
        texts, spans = zip(*(self._conversation(sample) for sample in samples), strict=True)
        images = [image for sample in samples for image in sample.images]
        batch = self.processor(
            text=list(texts), images=images or None, padding=True, padding_side="right", return_tensors="pt"
        )
        batch = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        rows = zip(batch["input_ids"], batch["attention_mask"], texts, spans, samples, strict=True)
        batch["labels"] = torch.stack([self._labels(*row) for row in rows])
        return self._cut(batch, samples)

    def _conversation(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and where its answers are: half-open character spans."""
        messages = list(sample.messages)
        template = self.processor.chat_template
        if re.search(r"{%-?\s*generation", template):
            names = self.processor.tokenizer.special_tokens_map
            rendered: Any = render_jinja_template(
                [messages], chat_template=template, return_assistant_tokens_mask=True, **names
            )
            (text,), (marked,) = rendered
            return text, [self._until_eos(text, first, last) for first, last in marked]
        text = self.processor.apply_chat_template(messages, tokenize=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.processor.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            after = self.processor.apply_chat_template(messages[: i + 1], tokenize=False)
            if not (text.startswith(after) and after.startswith(before)):
                raise DataError(
                    f"{sample.name}: the chat template writes earlier turns differently once later ones follow, "
                    "so answers can't be located. Use a template that only appends."
                )
            spans.append(self._until_eos(text, len(before), len(after)))
        return text, spans

    def _until_eos(self, text: str, first: int, last: int) -> tuple[int, int]:
        """An answer's span, cut after its last end-of-sequence token: what follows is the template's."""
        eos: str = self.processor.tokenizer.eos_token
        end = text.rfind(eos, first, last) if eos else -1
        return first, last if end < 0 else end + len(eos)

    def _labels(
        self,
        ids: Int[Tensor, " length"],
        mask: Int[Tensor, " length"],
        text: str,
        spans: Sequence[tuple[int, int]],
        sample: Sample,
    ) -> Int[Tensor, " length"]:
        """Labels of one row: the processor repeats image tokens, all other tokens correspond one to one."""
        plain = self.processor.tokenizer(text, return_offsets_mapping=True)
        answers = [
            any(start < end and first < end and start < last for first, last in spans)
            for token, (start, end) in zip(plain["input_ids"], plain["offset_mapping"], strict=True)
            if token != self.image_token_id
        ]
        words = (ids != self.image_token_id) & (mask != 0)
        if int(words.sum()) != len(answers):
            raise DataError(
                f"{sample.name}: the processor made {int(words.sum())} text tokens, the tokenizer "
                f"{len(answers)}; their special-token settings differ."
            )
        labels = torch.full_like(ids, IGNORE)
        chosen: Bool[Tensor, " words"] = torch.tensor(answers, dtype=torch.bool)
        labels[words] = torch.where(chosen, ids[words], IGNORE)
        return labels

    def _cut(self, batch: dict[str, Tensor], samples: Sequence[Sample]) -> dict[str, Tensor]:
        ids = batch["input_ids"]
        if self.max_length is None or ids.shape[1] <= self.max_length:
            return batch
        lost = (ids[:, self.max_length :] == self.image_token_id).any(-1)
        if bool(lost.any()):
            bad = samples[int(lost.nonzero()[0])]
            raise DataError(
                f"{bad.name}: a picture's placeholders reach beyond max_length={self.max_length}; raise it to "
                f"{ids.shape[1]} or use fewer tiles."
            )
        keys = [key for key, value in batch.items() if value.shape[:2] == ids.shape]
        return batch | {key: batch[key][:, : self.max_length] for key in keys}

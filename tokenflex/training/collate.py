"""Conversations to batches, through the host's own processor, with labels on the answers only."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Bool, Int
from jinja2.exceptions import TemplateError
from PIL import Image
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from tokenflex.chat import refused, special_tokens, written
from tokenflex.errors import DataError
from tokenflex.hosts.placeholders import IGNORE
from tokenflex.training.data import Sample

BLANK = Sample("blank row", (Image.new("RGB", (32, 32)),), ({"role": "user", "content": [{"type": "image"}]},))


class FlexCollator:
    """Turns `Sample`s into the inputs of a `FlexModel`, padded on the right, with ``labels``.

    The ids are those of the processor's ``apply_chat_template(..., tokenize=True)``.
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
        if _template(processor) is None:
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
        options: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        special = special_tokens(self.processor, texts)
        batch = self.processor(text=list(texts), images=images or None, **options, **special)
        batch = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        rows = zip(batch["input_ids"], batch["attention_mask"], texts, spans, samples, strict=True)
        batch["labels"] = torch.stack([self._labels(*row, special) for row in rows])
        return self._cut(batch, samples)

    def _conversation(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and where its answers are: half-open character spans."""
        messages = list(sample.messages)
        template = _template(self.processor)
        if re.search(r"{%-?\s*generation", template):
            return self._marked(messages, template, sample.name)
        text = written(self.processor, messages, sample.name)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = written(self.processor, messages[: i + 1], sample.name)
            before = self._before(messages[:i], message, after, sample.name)
            if not (text.startswith(after) and after.startswith(before)):
                raise DataError(
                    f"{sample.name}: the chat template writes earlier turns differently once later ones follow, "
                    "so answers can't be located. Use a template that only appends."
                )
            spans.append(self._until_eos(text, len(before), len(after)))
        return text, spans

    def _marked(self, messages: list[dict[str, Any]], template: str, name: str) -> tuple[str, list[tuple[int, int]]]:
        """Text and spans by a template that marks the answers itself."""
        names = self.processor.tokenizer.special_tokens_map
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=template, return_assistant_tokens_mask=True, **names
            )
        except TemplateError as error:
            raise refused(name, error) from error
        (text,), (marked,) = rendered
        return text, [self._until_eos(text, first, last) for first, last in marked]

    def _before(self, earlier: list[dict[str, Any]], answer: dict[str, Any], after: str, name: str) -> str:
        """What comes before an answer.

        Templates can't write a conversation without turns, so before a first turn comes what doesn't depend on it.

        Args:
            after: the text up to the answer's end.
        """
        if earlier:
            return written(self.processor, earlier, name, reply=True)
        said = next((part["text"].lstrip() for part in answer["content"] if part.get("text")), "")
        other = {**answer, "content": [{"type": "text", "text": "1" if said.startswith("0") else "0"}]}
        pairs = zip(after, written(self.processor, [other], name), strict=False)
        return after[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]

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
        special: dict[str, bool],
    ) -> Int[Tensor, " length"]:
        """Labels of one row: the processor repeats image tokens, all other tokens correspond one to one."""
        plain = self.processor.tokenizer(text, return_offsets_mapping=True, **special)
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


def _template(processor: Any) -> Any:
    """The chat template that transformers takes where several are named; None without."""
    template = getattr(processor, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template

"""From samples to answers, a batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenflex.chat import special_tokens, written
from tokenflex.contracts import ComponentConfig, Decision
from tokenflex.model import FlexModel
from tokenflex_lmms_eval.endings import Ending, StopBefore, ending
from tokenflex_lmms_eval.options import Options
from tokenflex_lmms_eval.samples import Sample


@dataclass(frozen=True)
class Answer:
    """What was said, and what it cost.

    Attributes:
        ending: the text and how it ended.
        levels: one per image (per tile where the host's tiles are routed one by one), 0 = fewest tokens.
        visual_tokens: seen by the language model, all images together, separators included.
        finest_tokens: what they would have been at the finest level.
        input_tokens: of the whole prompt as the language model saw it.
    """

    ending: Ending
    levels: tuple[int, ...]
    visual_tokens: int
    finest_tokens: int
    input_tokens: int


@dataclass(frozen=True)
class Answerer:
    """A model with its processor, and who decides.

    Attributes:
        level: forces a level.
        budget: replaces the model's own policy.
    """

    flex: FlexModel
    processor: Any
    level: int | None = None
    budget: ComponentConfig | None = None

    def __call__(self, samples: Sequence[Sample], options: Options) -> list[Answer]:
        """One answer per sample, in their order.

        Samples with and without images don't share a batch: few processors mix them.
        """
        found: dict[int, Answer] = {}
        for pictured in (True, False):
            places = [place for place, sample in enumerate(samples) if bool(sample.images) == pictured]
            if places:
                part = self._answers([samples[place] for place in places], options)
                found |= dict(zip(places, part, strict=True))
        return [found[place] for place in range(len(samples))]

    @torch.no_grad()
    def _answers(self, samples: Sequence[Sample], options: Options) -> list[Answer]:
        inputs, tokenizer = self.inputs(samples), self.processor.tokenizer
        asked = dict(options.arguments)
        if options.until:
            asked["stopping_criteria"] = [StopBefore(tokenizer, options.until)]
        output = self.flex.generate(
            **inputs,
            level=self.level,
            budget=self.budget,
            return_dict_in_generate=True,
            **asked,
        )
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        prompt = output.compact_sequences.shape[1] - new.shape[1]
        seen = output.compact_attention_mask[:, :prompt].sum(-1).tolist()
        config = self.flex.generation_config
        eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        pad = eos[0] if config.pad_token_id is None else config.pad_token_id
        rest, found = list(output.decisions), list[Answer]()
        for row, count, length in zip(new.tolist(), self._units(samples, len(rest)), seen, strict=True):
            decisions, rest = rest[:count], rest[count:]
            found.append(_answer(ending(tokenizer, row, options.until, eos, pad), decisions, length))
        return found

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch padded on the left, as the processor writes it."""
        texts = [written(self.processor, sample.messages, sample.name, reply=True) for sample in samples]
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        options |= special_tokens(self.processor, texts)
        images = [list(sample.images) for sample in samples]
        batch = self.processor(text=texts, images=images if any(images) else None, **options)
        return {key: self._placed(value) for key, value in batch.items()}

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.flex.device, self.flex.host.dtype if value.is_floating_point() else None)

    def _units(self, samples: Sequence[Sample], decisions: int) -> list[int]:
        """Decisions per sample: one per image, or as many as its tiles where those are routed."""
        counts = [len(sample.images) for sample in samples]
        if sum(counts) == decisions:
            return counts
        return [len(self.flex.adapter.read(self.inputs([sample])).grids) for sample in samples]


def _answer(found: Ending, decisions: Sequence[Decision], length: int) -> Answer:
    return Answer(
        ending=found,
        levels=tuple(decision.level for decision in decisions),
        visual_tokens=sum(decision.tokens for decision in decisions),
        finest_tokens=sum(decision.of for decision in decisions),
        input_tokens=int(length),
    )

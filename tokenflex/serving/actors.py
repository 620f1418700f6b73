"""Actors for Ray Data's ``map_batches``: what they need is loaded once, then they take and give Arrow tables.

They know nothing of Ray, so anything else that maps tables in batches can use them too. A row that can't be answered
gets an ``error`` in place of an answer, and no other row suffers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from tokenflex.contracts import Decision
from tokenflex.errors import ConfigError, DataError, InputError
from tokenflex.evaluation.answering import Batch
from tokenflex.evaluation.questions import read_question
from tokenflex.evaluation.settings import Setting
from tokenflex.model import request, sources
from tokenflex.model.request import Budgets, Level
from tokenflex.serving.converting import vllm_prompt
from tokenflex.serving.front import Front
from tokenflex.training.data import Sample

HEAVY = ("image", "images", "messages", "conversations")
"""Columns that hold images, or may; they aren't passed on."""
DECIDED = {
    "levels": pa.list_(pa.int32()),
    "visual_tokens": pa.int32(),
    "visual_tokens_full": pa.int32(),
    "error": pa.string(),
}
ANSWERED = {"answer": pa.string(), **DECIDED}
REQUESTED = {
    "prompt_token_ids": pa.list_(pa.int32()),
    "image_embeds": pa.large_binary(),
    "image_keys": pa.list_(pa.string()),
    **DECIDED,
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """How rows become questions.

    Attributes:
        image_folder: where image paths start; they must stay below it. None takes any path.
        suffix: written under each question.
    """

    image_folder: str | None = None
    suffix: str = ""

    def read(self, rows: Sequence[Row]) -> tuple[dict[int, Sample], dict[int, str]]:
        """(questions by place, errors by place)."""
        found, errors = dict[int, Sample](), dict[int, str]()
        folder = Path(self.image_folder) if self.image_folder is not None else None
        for place, row in enumerate(rows):
            number = row.get("row")
            try:
                found[place] = read_question(row, number if isinstance(number, int) else place, folder, self.suffix)
            except DataError as error:
                errors[place] = str(error)
        return found, errors


class Answers:
    """Answers questions with a `FlexModel`, greedily.

    Args:
        model: folder or hub id of a model that `FlexModel.save_pretrained` wrote, with its processor; or of a host,
            with ``parts``.
        parts: folder or hub id of parts for a host.
        level, budget: as for `FlexModel.generate`.
        max_new_tokens: of an answer.
        dtype: of the host, as for `tokenflex.evaluation.load`.
        image_folder, suffix: see `Reading`.

    Raises:
        ConfigError: the model can't be loaded.
        InputError: level or budget isn't one.
    """

    def __init__(
        self,
        model: str,
        *,
        parts: str | None = None,
        level: Level = None,
        budget: Budgets = None,
        max_new_tokens: int = 64,
        dtype: str = "auto",
        image_folder: str | None = None,
        suffix: str = "",
    ) -> None:
        source: dict[str, Any] = {"model": model} if parts is None else {"host": model, "parts": parts}
        flex, self.processor = sources.load(**source, dtype=dtype, device=_device())
        self.reading, self.max_new_tokens = Reading(image_folder, suffix), max_new_tokens
        request.read(level, budget, flex.compressor.num_levels)
        config = None if budget is None else request.read_budget(budget)
        self.setting = Setting("answers", "router", flex, level, config)  # pyright: ignore[reportArgumentType]

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows with their answers; see `ANSWERED`."""
        samples, errors = self.reading.read(table.to_pylist())
        found: dict[int, Row] = {place: {"error": error} for place, error in errors.items()}
        return _with(table, found | _each(samples, self._answers), ANSWERED)

    def _answers(self, samples: Mapping[int, Sample]) -> dict[int, Row]:
        answers = Batch(self.processor, samples, ()).answers(self.setting, tuple(samples), self.max_new_tokens)
        return {one.place: {"answer": one.text, **_decided(one.decisions)} for one in answers}


class Requests:
    """Makes requests for an engine, without the language model; see `tokenflex.serving.Front`.

    Args:
        model: folder or hub id of a model that `FlexModel.save_pretrained` wrote, with its processor; or of a host,
            with ``parts``.
        parts, level, budget, image_folder, suffix: as for `Answers`.
        dtype, positions: as for `Front.from_pretrained`.

    Raises:
        ConfigError: the front can't be loaded, or its processor isn't there.
    """

    def __init__(
        self,
        model: str,
        *,
        parts: str | None = None,
        level: Level = None,
        budget: Budgets = None,
        dtype: str = "auto",
        positions: str | None = None,
        image_folder: str | None = None,
        suffix: str = "",
    ) -> None:
        self.front = Front.from_pretrained(model, parts, dtype=dtype, device=_device(), positions=positions)
        if self.front.processor is None:
            raise ConfigError(f"{model} has no processor; save one beside the model: processor.save_pretrained(...).")
        request.read(level, budget, self.front.flex.compressor.num_levels)
        self.reading, self.level, self.budget = Reading(image_folder, suffix), level, budget

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows with their requests; see `REQUESTED`. `prompt` reads them."""
        samples, errors = self.reading.read(table.to_pylist())
        found: dict[int, Row] = {place: {"error": error} for place, error in errors.items()}
        return _with(table, found | _each(samples, self._requests), REQUESTED)

    def _requests(self, samples: Mapping[int, Sample]) -> dict[int, Row]:
        found, batch = dict[int, Row](), Batch(self.front.processor, samples, ())
        for pictured in (True, False):
            places = tuple(place for place, sample in samples.items() if bool(sample.images) == pictured)
            if not places:
                continue
            inputs = batch.inputs(self.front.flex, places)
            exported = self.front.export(**inputs, level=self.level, budget=self.budget)
            for place, one in zip(places, exported, strict=True):
                found[place] = {**packed(vllm_prompt(one)), **_decided([image.decision for image in one.images])}
        return found


class Engine:
    """Answers `Requests` with vLLM, greedily.

    Rows with an error pass it by. For ``ray.data.llm`` instead, filter those out and give its vLLM stage what `prompt`
    says, as ``tokenized_prompt``, ``multimodal_data`` and ``multimodal_uuids``.

    Args:
        model: folder or hub id that vLLM serves; of the same weights as the model that made the requests. LLaVA-NeXT
            needs the plugin ``tokenflex-vllm``.
        max_new_tokens: of an answer.
        settings: of ``vllm.LLM``.

    Raises:
        ConfigError: vLLM isn't installed.
    """

    def __init__(self, model: str, *, max_new_tokens: int = 64, **settings: Any) -> None:
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(f"this needs vLLM ({error}): pip install vllm, on the machines of the engine.") from error
        self.llm = vllm.LLM(model, enable_mm_embeds=True, **settings)
        self.sampling = vllm.SamplingParams(temperature=0, max_tokens=max_new_tokens)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The rows with their answers instead of their requests; those with an error as they are."""
        rows = table.to_pylist()
        asked = [place for place, row in enumerate(rows) if row["error"] is None]
        outputs = self.llm.generate([prompt(rows[place]) for place in asked], self.sampling) if asked else []
        texts = {place: output.outputs[0].text.strip() for place, output in zip(asked, outputs, strict=True)}
        kept = table.drop_columns([name for name in REQUESTED if name not in DECIDED])
        return kept.append_column("answer", pa.array([texts.get(place) for place in range(len(rows))], pa.string()))


def prompt(row: Row) -> dict[str, Any]:
    """What vLLM takes, from a row that `Requests` made; see `tokenflex.serving.vllm_prompt`."""
    made: dict[str, Any] = {"prompt_token_ids": [int(one) for one in row["prompt_token_ids"]]}
    if row["image_embeds"] is None:
        return made
    tensors = load(bytes(row["image_embeds"]))
    listed = "0" in tensors
    data: Any = [tensors[str(i)] for i in range(len(tensors))] if listed else tensors
    return made | {
        "multi_modal_data": {"image": data},
        "multi_modal_uuids": {"image": [str(key) for key in row["image_keys"]]},
    }


def packed(made: Mapping[str, Any]) -> Row:
    """A vLLM prompt as columns, tensors as a safetensors file; `prompt` reads them."""
    row: Row = {"prompt_token_ids": made["prompt_token_ids"]}
    if "multi_modal_data" not in made:
        return row
    data = made["multi_modal_data"]["image"]
    tensors: dict[str, Tensor] = dict(data) if isinstance(data, Mapping) else {str(i): e for i, e in enumerate(data)}
    return row | {
        "image_embeds": save({name: one.contiguous().clone() for name, one in tensors.items()}),
        "image_keys": made["multi_modal_uuids"]["image"],
    }


def _each(samples: Mapping[int, Sample], work: Any) -> dict[int, Row]:
    """What ``work`` makes of samples together; where it refuses, of each by itself, so that one doesn't stop others."""
    if not samples:
        return {}
    try:
        return work(samples)
    except (DataError, InputError) as error:
        if len(samples) == 1:
            return {next(iter(samples)): {"error": str(error)}}
        return {place: row for one in samples.items() for place, row in _each(dict([one]), work).items()}


def _decided(decisions: Sequence[Decision]) -> Row:
    return {
        "levels": [decision.level for decision in decisions],
        "visual_tokens": sum(decision.tokens for decision in decisions),
        "visual_tokens_full": sum(decision.of for decision in decisions),
    }


def _with(table: pa.Table, found: Mapping[int, Row], columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The table without images, and with new columns; null where a row has no value."""
    kept = table.drop_columns([name for name in table.column_names if name in (*HEAVY, *columns)])
    for name, kind in columns.items():
        values = [found[place].get(name) for place in range(table.num_rows)]
        kept = kept.append_column(name, pa.array(values, kind))
    return kept


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

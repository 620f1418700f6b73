"""A training run as a YAML file: any stage, any host, checked key by key (see `tokenflex.training.run`)."""

import argparse
import dataclasses
import functools
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from tokenflex import reading
from tokenflex.contracts.settings import LARGEST
from tokenflex.errors import ConfigError, TokenFlexError, nearest
from tokenflex.training.objectives import MultiGranularityObjective, RGLFObjective
from tokenflex.training.stages import STAGES, Stage
from tokenflex.training.trainer import (
    FlexTrainingArguments,
    default_objective,
)


@dataclass
class Recipe:
    """What to train on what; everything else is an option of ``Trainer``."""

    stage: int = field(metadata={"help": "Training stage, 1 to 4.", "choices": [1, 2, 3, 4]})
    host: str = field(metadata={"help": "Folder or hub id of the host, or of a saved FlexModel."})
    data: str = field(metadata={"help": ".json, .jsonl or .parquet file, or a saved datasets folder."})
    image_folder: str | None = field(default=None, metadata={"help": "Where image paths start, and must stay below."})
    parts: str | None = field(
        default=None,
        metadata={"help": "Folder of trained parts; default: those saved with the host, else fresh ones."},
    )
    fresh: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Parts to start anew although there are saved ones.",
            "choices": ["scaler", "router", "voter"],
        },
    )
    scaler: str | None = field(
        default=None, metadata={"help": "Name of the scaler; default: the saved or average-pool."}
    )
    router: str | None = field(default=None, metadata={"help": "Name of the router; default: the saved one, or avg."})
    voter: str | None = field(
        default=None, metadata={"help": "Name of the voter; default: the saved one, or position-weighted."}
    )
    scaler_config: dict | str | None = field(default=None, metadata={"help": "Settings of the scaler (mapping)."})
    router_config: dict | str | None = field(default=None, metadata={"help": "Settings of the router (mapping)."})
    voter_config: dict | str | None = field(default=None, metadata={"help": "Settings of the voter (mapping)."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Type the host is loaded in.",
            "choices": ["float32", "bfloat16", "float16", "auto"],
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of the host: sdpa, flash_attention_2, flex_attention, varlen (PyTorch's own, for packed "
            "rows), ...; default: the host's."
        },
    )
    max_length: int | None = field(default=4096, metadata={"help": "Longest row, in tokens with full placeholders."})
    on_bad_sample: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "What to do with a row that can't be used."}
    )
    vision_tower_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of the vision tower; 0 freezes it; default: the stage's."},
    )
    projector_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of the projector; 0 freezes it; default: the stage's."},
    )
    language_model_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the LLM; 0 freezes it; default: the stage's."}
    )
    scaler_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of the scaler; 0 freezes it; default: the stage's."},
    )
    router_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of router and voter; default: the stage's."}
    )
    memory: str = field(
        default="auto",
        metadata={
            "help": "Stage 3: how the levels share memory, with the same gradients.",
            "choices": ["auto", "joint", "low", "packed"],
        },
    )
    levels: str = field(
        default="all",
        metadata={
            "help": "Stage 3: levels of each step: all, or finest, coarsest and a random one.",
            "choices": ["all", "sandwich"],
        },
    )
    feedback: str | None = field(
        default=None,
        metadata={
            "help": "Stage 4: folder of stored feedback; 'tokenflex feedback' writes it, 'tokenflex train' reads it."
        },
    )
    levels_cache: bool = field(
        default=False,
        metadata={"help": "Store what a router sees with the feedback, so that routers are trained without the host."},
    )
    levels_cache_dtype: str = field(
        default="auto",
        metadata={
            "help": "Type of what is stored for routers; auto: as the host computes it.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    levels_cache_at: str = field(
        default="auto",
        metadata={
            "help": "Keep visual tokens after the vision tower, and run the projector when they are used, or after the "
            "projector; auto: after the tower where that is smaller and gives the same to the last bit.",
            "choices": ["auto", "tower", "projector"],
        },
    )
    part_size: int = field(default=512, metadata={"help": "Samples per file of stored feedback."})
    vocabulary_chunk: int | None = field(
        default=None, metadata={"help": "Score so many words of the vocabulary at a time, to save memory."}
    )
    margin: float = field(default=1.0, metadata={"help": "Stage 4: scale of the ranking margins, per nat."})
    rank_weight: float = field(default=1.0, metadata={"help": "Stage 4: weight of the ranking loss."})
    ce_weight: float = field(default=0.1, metadata={"help": "Stage 4: weight of the cross-entropy loss."})
    tolerance: float = field(
        default=0.0, metadata={"help": "Stage 4: loss, in nats per token, that a coarser level may cost for free."}
    )
    guard: bool = field(
        default=True,
        metadata={
            "help": "Stage 4: leave out samples without answers, and give those whose losses are all equal no label; "
            "false as published."
        },
    )

    def objective(self, stage: Stage) -> Any:
        """What a stage minimises, with this recipe's settings."""
        if stage.loss == "rglf":
            return RGLFObjective(self.margin, self.rank_weight, self.ce_weight, self.tolerance, self.guard)
        if stage.loss == "multi-granularity":
            return MultiGranularityObjective(self.memory, self.levels)
        return default_objective(stage)

    def preset(self) -> Stage:
        """The stage with this recipe's rates."""
        groups = ("vision_tower", "projector", "language_model", "scaler", "router")
        return STAGES[self.stage].with_rates(**{group: getattr(self, f"{group}_rate") for group in groups})


PLAIN = {bool: "true or false", dict: "a mapping", float: "a finite number", int: "an integer", list: "a list",
         str: "a text"}  # fmt: skip
"""Types of values, in words."""
OF_STAGE = {
    3: ("memory", "levels"),
    4: (
        "margin",
        "rank_weight",
        "ce_weight",
        "tolerance",
        "guard",
        "levels_cache",
        "levels_cache_dtype",
        "levels_cache_at",
    ),
}
"""Keys that say something in one stage only."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. 'tokenflex train --help' lists all keys with what they take.")


def parser() -> HfArgumentParser:
    """All fields, with their help; the file's keys and the command line's options are the same names."""
    made = _Parser((Recipe, FlexTrainingArguments), prog="tokenflex train", allow_abbrev=False)  # pyright: ignore[reportArgumentType]
    made.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    return made


def read(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, FlexTrainingArguments]:
    """A recipe from a YAML file, with options of the command line on top.

    Raises:
        ConfigError: the file isn't a YAML mapping, a key is unknown, missing or of another stage, or a setting can't be
            honoured.
    """
    data = _entries(path)
    overridden = [item.split("=", 1)[0][2:].replace("-", "_") for item in overrides if item.startswith("--")]
    _check_names([*map(str, data), *overridden], str(path))
    _check_types(data, str(path))
    from_file = [word for key, value in data.items() for word in _as_arguments(str(key), value)]
    missing = [f.name for f in dataclasses.fields(Recipe) if _required(f) and f.name not in [*data, *overridden]]
    if missing:
        raise ConfigError(f"recipe {str(path)!r} lacks {', '.join(missing)}. Add e.g. '{missing[0]}: ...'.")
    try:
        recipe, arguments = parser().parse_args_into_dataclasses(args=[*from_file, *overrides])
    except TokenFlexError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"recipe {str(path)!r}: {error}") from error
    _check_ranges(recipe, str(path))
    _check_stage(recipe, {*map(str, data), *overridden}, str(path))
    _check_evaluation(arguments, str(path))
    text = str(arguments.resume_from_checkpoint).lower()
    arguments.resume_from_checkpoint = {"true": True, "false": None}.get(text, arguments.resume_from_checkpoint)
    return recipe, arguments


def _entries(path: str | Path) -> dict[str, Any]:
    """What a file says, by key."""
    source = Path(path)
    if not source.is_file():
        raise ConfigError(
            f"recipe {str(path)!r} doesn't exist; give a YAML file. 'tokenflex train --help' lists its keys."
        )
    text = reading.text(source, largest=reading.LARGEST_SETTINGS)
    data = reading.yaml_text(text, f"recipe {str(path)!r}")
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {str(path)!r} holds a {type(data).__name__}; expected 'key: value' lines.")
    return {str(key): value for key, value in data.items()}


@functools.cache
def _kinds() -> dict[str, frozenset[Any]]:
    """Key -> the types that its value may have."""
    found: dict[str, frozenset[Any]] = {}
    for owner in (Recipe, FlexTrainingArguments):
        for name, hint in get_type_hints(owner).items():
            members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
            origins = [str if get_origin(one) is Literal else get_origin(one) or one for one in members]
            known = {one if one in PLAIN else str for one in origins if one is not type(None)}
            found[name] = frozenset(known)
    return {**found, "resume_from_checkpoint": frozenset({str, bool})}


def _check_types(data: Mapping[str, Any], where: str) -> None:
    """A value of another type than the key's would be read as text, or as its first letter."""
    for key, value in data.items():
        kinds = _kinds()[key]
        if value is not None and not _fits(value, kinds):
            expected = " or ".join(sorted(PLAIN[kind] for kind in kinds))
            raise ConfigError(
                f"recipe {where!r}: {key}: {value!r:.200} ({type(value).__name__}) isn't what the key takes: "
                f"{expected}."
            )


def _fits(value: Any, kinds: frozenset[Any]) -> bool:
    if isinstance(value, list):
        return list in kinds and all(isinstance(one, str | int | float) for one in value)
    if isinstance(value, bool | dict):
        return type(value) in kinds
    if isinstance(value, int):
        return abs(value) < LARGEST and (float in kinds or int in kinds)
    if isinstance(value, float):
        return math.isfinite(value) and float in kinds
    if not isinstance(value, str):  # a date
        return False
    if kinds <= {int, float}:  # 1e-4 without a point is a text in YAML
        return re.fullmatch(r"[-+]?(\d+|\d+\.\d*|\.\d+)([eE][-+]?\d+)?", value) is not None and math.isfinite(
            float(value)
        )
    return True


def _check_ranges(recipe: Recipe, where: str) -> None:
    for name in ("max_length", "part_size", "vocabulary_chunk"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise ConfigError(f"recipe {where!r}: {name}: {value} must be 1 or more.")
    rates = [f"{group}_rate" for group in ("vision_tower", "projector", "language_model", "scaler", "router")]
    for name in (*rates, "margin", "rank_weight", "ce_weight", "tolerance"):
        value = getattr(recipe, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"recipe {where!r}: {name}: {value} must be a number, 0 or more.")


def _required(one: "dataclasses.Field[Any]") -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _check_names(names: Sequence[str], where: str) -> None:
    known = [f.name for kind in (Recipe, FlexTrainingArguments) for f in dataclasses.fields(kind) if f.init]
    for name in names:
        if name == "learning_rate":
            raise ConfigError(
                f"recipe {where!r}: learning_rate would rule all groups; set vision_tower_rate, projector_rate, "
                "language_model_rate, scaler_rate or router_rate instead."
            )
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"recipe {where!r}: unknown key {name!r}.{hint} 'tokenflex train --help' lists all keys.")


def _check_stage(recipe: Recipe, names: set[str], where: str) -> None:
    for stage, keys in OF_STAGE.items():
        named = sorted(names.intersection(keys))
        if named and recipe.stage != stage:
            raise ConfigError(
                f"recipe {where!r}: {', '.join(named)}: only for stage {stage}, and this is stage {recipe.stage}. "
                "Leave it out."
            )


def _check_evaluation(arguments: FlexTrainingArguments, where: str) -> None:
    strategy = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy))
    asked = {name: getattr(arguments, name) for name in ("eval_on_start", "load_best_model_at_end", "do_predict")}
    named = [
        name
        for name, value in {**asked, "eval_strategy": strategy != "no", "do_eval": arguments.do_eval}.items()
        if value
    ]
    if named:
        raise ConfigError(
            f"recipe {where!r}: {', '.join(named)} asks for evaluation, and a recipe has no data for that. Leave it "
            "out and measure the result with 'tokenflex evaluate', or pass an eval_dataset in Python."
        )


def _as_arguments(key: str, value: Any) -> list[str]:
    """A YAML entry as command-line words."""
    if value is None or value == []:
        return []
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]

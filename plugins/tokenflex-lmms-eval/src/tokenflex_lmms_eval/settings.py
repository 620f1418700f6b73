"""Settings of one run: what lmms-eval passes on of ``--model_args``, ``--batch_size`` and ``--device``."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokenflex.errors import ConfigError
from tokenflex.model import Budget

DTYPES = ("auto", "bfloat16", "float16", "float32")
UNTRAINED = ("scaler", "router", "voter")
INTEGERS = ("level", "batch_size", "max_new_tokens")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which model runs, within which budget, and how.

    Attributes:
        model: a saved model with its parts, folder or name on the hub.
        host: a plain host instead, to be given parts.
        parts: trained parts for ``host``, as `FlexModel.save_parts` writes them.
        scaler, router, voter: names of untrained parts for ``host``.
        processor: where the processor is; None: with the model or host.
        budget: see `parse_budget`.
        level: the same level for all images; the router doesn't run.
        batch_size: questions answered at a time.
        max_new_tokens: for tasks that don't say.
        dtype: of the host's weights; ``auto``: as they were saved.
        device: None: the one accelerate gives this process; ``auto``: spread over all there are.
        attn_implementation: see transformers.
        log: a JSON Lines file to be written, with a record for every answer.
    """

    model: str | None = None
    host: str | None = None
    parts: str | None = None
    scaler: str | None = None
    router: str | None = None
    voter: str | None = None
    processor: str | None = None
    budget: Budget | None = None
    level: int | None = None
    batch_size: int = 1
    max_new_tokens: int = 1024
    dtype: str = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    log: Path | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Settings":
        """From arguments as lmms-eval reads them: text that looks like a number has become one.

        Raises:
            ConfigError: an argument is unknown, can't be read, or contradicts another.
        """
        known = [field.name for field in fields(cls)]
        told = {name: value for name, value in given.items() if value is not None}
        for name in told:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"model argument {name!r} isn't known.{hint} There are: {', '.join(known)}.")
        read: dict[str, Any] = {name: str(value) for name, value in told.items()}
        read |= {name: _integer(name, told[name]) for name in INTEGERS if name in told}
        if "budget" in told:
            read["budget"] = parse_budget(read["budget"])
        if "log" in told:
            read["log"] = Path(read["log"])
        settings = cls(**read)
        settings._check()
        return settings

    @property
    def source(self) -> str:
        """Where model or host are loaded from."""
        return self.model or self.host or ""

    @property
    def untrained(self) -> dict[str, Any]:
        """Names of untrained parts, by kind."""
        return {kind: name for kind in UNTRAINED if (name := getattr(self, kind)) is not None}

    def _check(self) -> None:
        if (self.model is None) == (self.host is None):
            raise ConfigError(
                "give either model= (a saved model with its parts) or host= (a plain host, which gets parts); "
                f"got model={self.model} and host={self.host}."
            )
        if self.model is not None and (self.parts is not None or self.untrained):
            raise ConfigError("model= brings its own parts; parts=, scaler=, router= and voter= go with host=.")
        if self.parts is not None and self.untrained:
            raise ConfigError(f"parts={self.parts} names all parts, so {', '.join(self.untrained)}= has no place.")
        if self.host is not None and self.parts is None and self.router is None and self.level is None:
            raise ConfigError(
                f"host={self.host} has no parts that decide: give parts= (trained ones), router= (e.g. reconstruction, "
                "which needs no training) or level= (-1 is the host as it is)."
            )
        if self.level is not None and self.budget is not None:
            raise ConfigError(f"level={self.level} forces the level, so budget= has no say; give one of the two.")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 1 or more.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} isn't known; use one of {', '.join(DTYPES)}.")


def parse_budget(text: str) -> Budget:
    """A budget from ``ratio:0.3``, ``tokens:144`` or ``weight:0.2``; several settings are joined by ``+``.

    Raises:
        ConfigError: it can't be read, or a value isn't allowed.
    """
    read: dict[str, Any] = {}
    for part in text.split("+"):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        if not (name and colon and value) or name in read:
            raise ConfigError(
                f"budget={text!r} can't be read; write ratio:0.3, tokens:144 or weight:0.2, and join several settings "
                "by '+', e.g. tokens:144+per:request."
            )
        read[name] = _budget_value(name, value, text)
    try:
        budget = Budget.from_dict(read)
    except ConfigError as error:
        raise ConfigError(f"budget={text!r}: {error}") from error
    assert isinstance(budget, Budget)
    if not budget.limits:
        raise ConfigError(f"budget={text!r} limits nothing; write e.g. ratio:0.3, or leave it out.")
    return budget


def joined(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``--model_args`` and lmms-eval's own options as one; its default batch size gives way.

    Args:
        options: ``batch_size``, ``device`` and the like; None: not given.

    Raises:
        ConfigError: both say something, and not the same.
    """
    together = dict(arguments)
    for name, value in options.items():
        if value is None or (name in arguments and name == "batch_size" and str(value) == "1"):
            continue
        if name in arguments and str(arguments[name]) != str(value):
            raise ConfigError(f"{name} is {arguments[name]} in --model_args and {value} in --{name}; say it once.")
        together[name] = value
    return together


def _budget_value(name: str, value: str, text: str) -> Any:
    if name == "per":
        return value
    try:
        return float(value) if name in ("ratio", "weight") else int(value)
    except ValueError as error:
        raise ConfigError(f"budget={text!r}: {name} must be a number, not {value!r}.") from error


def _integer(name: str, value: Any) -> int:
    if not re.fullmatch(r"-?\d+(\.0)?", str(value)):
        raise ConfigError(f"{name}={value!r} must be a whole number.")
    return int(float(value))

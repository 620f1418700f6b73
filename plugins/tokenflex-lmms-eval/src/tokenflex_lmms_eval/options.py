"""How answers are generated: a task's ``generation_kwargs``, read once and without silent losses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenflex.errors import ConfigError

SEARCH = (
    "early_stopping",
    "length_penalty",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
)
SAMPLING = ("min_p", "temperature", "top_k", "top_p", "typical_p")
STOPS = ("until", "stop_sequences")
LENGTHS = ("max_new_tokens", "max_gen_toks")
OTHER_MODELS = ("image_aspect_ratio",)
"""Asked of other models only; here the processor decides how images are cut."""


@dataclass(frozen=True)
class Options:
    """What is asked of ``generate``.

    Attributes:
        until: texts an answer ends before.
        arguments: keyword arguments of ``generate``.
    """

    until: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Requests with equal keys may share a batch."""
        return repr((self.until, sorted(self.arguments.items())))


def parse(given: Mapping[str, Any], max_new_tokens: int) -> Options:
    """A task's ``generation_kwargs``, with ``--gen_kwargs`` already in them.

    Greedy unless sampling is asked for: by ``do_sample``, or where that isn't said by a temperature above 0. A
    temperature of 0 is greedy always.

    Args:
        max_new_tokens: where the task doesn't say.

    Raises:
        ConfigError: something is asked that can't be honoured.
    """
    told = {name: value for name, value in given.items() if value is not None and name not in OTHER_MODELS}
    known = (*SEARCH, *SAMPLING, *STOPS, *LENGTHS, "do_sample")
    unknown = sorted(set(told) - set(known))
    if unknown:
        raise ConfigError(
            f"generation setting(s) {', '.join(unknown)} can't be honoured; known are {', '.join(sorted(known))}. "
            "Correct the task's generation_kwargs or --gen_kwargs."
        )
    limit = next((told[name] for name in LENGTHS if name in told), max_new_tokens)
    sampled = bool(told.get("do_sample", told.get("temperature", 0) > 0)) and told.get("temperature", 1) > 0
    arguments: dict[str, Any] = {"max_new_tokens": int(limit), "do_sample": sampled, "num_beams": 1}
    arguments |= {name: told[name] for name in (*SEARCH, *(SAMPLING if sampled else ())) if name in told}
    if arguments["max_new_tokens"] < 1:
        raise ConfigError(f"max_new_tokens={limit} must be 1 or more.")
    return Options(_texts(told), arguments)


def _texts(told: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for name in STOPS:
        value = told.get(name, ())
        found += [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) and text for text in found):
        raise ConfigError(f"until={found!r} must be texts, none of them empty.")
    return tuple(dict.fromkeys(found))

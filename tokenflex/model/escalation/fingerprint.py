"""What a calibrated threshold depends on: weights, settings, and the options that answers follow from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tokenflex.contracts import Component
from tokenflex.errors import InputError
from tokenflex.hosts.grouped import Options
from tokenflex.model import request
from tokenflex.model.escalation.settings import Escalate
from tokenflex.ops.digest import of_tensors

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any

ANSWERS = (
    "bad_words_ids", "begin_suppress_tokens", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "eos_token_id", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "max_length",
    "max_new_tokens", "max_time", "min_length", "min_new_tokens", "no_repeat_ngram_size", "remove_invalid_values",
    "repetition_penalty", "sequence_bias", "stop_strings", "suppress_tokens",
)  # fmt: skip
"""Options of ``generate`` that greedy answers follow from."""
CALLBACKS = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria")
"""Options that are functions, which are told apart by their type's name only."""
SEEN = "_digests"


def of_model(flex: FlexModel, escalate: Escalate) -> str:
    """Digest of what answers and confidences depend on; kept until a weight changes in place.

    All weights are read, which takes a second for every gigabyte or so.
    """
    parts = flex.compressor
    used: list[Component] = [parts.scaler]
    if escalate.start == "router":
        used += [parts.router, parts.voter, parts.policy]
    described = [_part(part) for part in (*used, escalate.config.build())]
    settings = [flex.adapter.model_type, dict(flex.adapter.options), described, escalate.ladder(parts.num_levels)]
    text = json.dumps([*settings, escalate.start], sort_keys=True, default=str)
    modules = [flex.host, *used]
    key = (text, _stamp(modules))
    seen: dict[Any, str] = flex.__dict__.setdefault(SEEN, {})
    if key not in seen:
        seen.clear()
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for module in modules:
            digest.update(of_tensors(module.state_dict()).encode())
        seen[key] = digest.hexdigest()
    return seen[key]


def of_options(settings: Options, budget: Any) -> dict[str, Any]:
    """JSON-ready: what is in force of the options that answers follow from, and the budget of the start."""
    found = {name: settings(name) for name in ANSWERS}
    for name, newer in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if found[newer] is not None or not found[name]:
            found[name] = None
    for name in CALLBACKS:
        option = settings(name)
        found[name] = None if option is None else [type(one).__qualname__ for one in _listed(option)]
    if budget is not None:
        config = request.read_budget(budget)
        found["budget"] = {"policy": config.owner.__qualname__, **asdict(config)}
    return json.loads(json.dumps({name: value for name, value in found.items() if value is not None}, default=_plain))


def require_same(flex: FlexModel, escalate: Escalate, settings: Options, budget: Any) -> None:
    """Refuse a threshold that was calibrated for something else.

    Raises:
        InputError: names what differs.
    """
    known = escalate.calibrated
    if known is None:
        return
    now = of_options(settings, budget)
    wrong = [
        f"{name}={known.options.get(name)!r} then, {now.get(name)!r} now"
        for name in sorted({*known.options, *now})
        if known.options.get(name) != now.get(name)
    ]
    if of_model(flex, escalate) != known.model:
        wrong.append("other weights or settings of host, scaler, levels, start or measure")
    if wrong:
        raise InputError(
            f"the threshold was calibrated for other answers: {'; '.join(wrong)}. Calibrate again "
            "(tokenflex.calibrate), ask as it was calibrated, or set a threshold by hand, which promises nothing."
        )


def _part(part: Component) -> list[Any]:
    return [type(part).__module__, type(part).__qualname__, part.config.to_dict()]


def _stamp(modules: list[Any]) -> tuple[Any, ...]:
    """Changes whenever a weight is replaced or written into."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return tuple((id(one), str(one.dtype), 0 if one.is_inference() else one._version) for one in tensors)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return dict(value) if isinstance(value, Mapping) else str(value)

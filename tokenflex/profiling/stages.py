"""One setting on one batch as calls that can be timed: whole answers, and the stages before the first token."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tokenflex.contracts import Decision, HostInputs
from tokenflex.hosts import grouped, stock
from tokenflex.model import FlexModel, encoding
from tokenflex.model.flex import Encoded
from tokenflex.model.tower import tower_of
from tokenflex.profiling.plan import MeasuredSetting
from tokenflex.profiling.timing import Call

STAGES = ("vision_tower", "decision", "scaler", "splice", "prefill")
"""In the order in which they run; the vanilla host has the first inside the last."""


def answering(flex: FlexModel, inputs: HostInputs, setting: MeasuredSetting, new_tokens: int) -> Callable[[], Any]:
    """A call of ``generate`` that writes exactly ``new_tokens``, greedily, in every setting alike.

    The end-of-sequence token is kept back until then, so that every row of every setting writes as many.
    """
    model = flex.host if setting.kind == "vanilla" else flex
    config = copy.deepcopy(flex.generation_config)
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.do_sample, config.num_beams, config.num_return_sequences = False, 1, 1
    config.use_cache = config.return_dict_in_generate = True
    arguments = {**inputs, **setting.arguments}
    return lambda: model.generate(**arguments, generation_config=config)


def stages(
    flex: FlexModel, inputs: HostInputs, setting: MeasuredSetting, encoded: Encoded, decisions: Sequence[Decision]
) -> dict[str, Call]:
    """The stages, each on what the one before gave.

    ``vision_tower`` encodes what the setting needs (smaller images, where these are its levels); ``decision`` runs
    router, voter and policy, and the scaler for all levels, which the router looks at; ``scaler`` makes the chosen
    levels; ``splice`` shortens the batch; ``prefill`` is the host's forward on it, in groups of rows as the model's
    ``batching`` says, with a cache and the logits of the last position. The vanilla host's ``prefill`` has its vision
    tower inside. Escalation has no stages: it goes through them once per pass.

    Args:
        encoded: of ``inputs``.
        decisions: of this setting.
    """
    if setting.kind == "vanilla":
        return {"prefill": prefill(flex.host, inputs)}
    if setting.kind == "escalate":
        return {}
    parts, adapter, levels = flex.compressor, flex.adapter, [decision.level for decision in decisions]

    def decide() -> None:
        policy = setting.budget.build(num_levels=parts.num_levels) if setting.budget else None
        encoding.decide(flex, replace(encoded, made={}), None, policy)

    def see() -> None:
        """Whole images; or the coarsest ones, to be looked at, and the chosen ones where they are finer."""
        if not parts.scaler.shares:
            tower_of(adapter, parts).look(adapter.read(inputs), True)
            return
        encoding.chosen(flex, inputs, flex.encode(inputs, look=setting.decides), levels)

    with torch.no_grad():
        made = encoding.chosen(flex, inputs, encoded, levels)
        rows = encoding.in_rows(flex, inputs, encoded, levels, "left")
    way = flex.batching
    return {
        "vision_tower": _without_gradients(see),
        **({"decision": _without_gradients(decide)} if setting.decides else {}),
        "scaler": _without_gradients(lambda: parts.scale(made.images, levels)),
        "splice": _without_gradients(lambda: made.splice(adapter, "left")),
        "prefill": _without_gradients(lambda: grouped.forward(rows, last_logits(flex.host, rows.whole.inputs), way)),
    }


def prefill(host: Any, inputs: HostInputs) -> Call:
    """The host's forward on a batch, with a new cache."""
    arguments = last_logits(host, inputs)
    return _without_gradients(lambda: host(**arguments))


def last_logits(host: Any, inputs: HostInputs) -> dict[str, Any]:
    """Inputs of ``forward`` for a cache and the logits of the last position, where a host can leave out the others."""
    last_only = "logits_to_keep" in inspect.signature(stock.base_of(host).forward).parameters
    return {**inputs, "use_cache": True, **({"logits_to_keep": 1} if last_only else {})}


def _without_gradients(call: Call) -> Call:
    return torch.no_grad()(call)

"""The dial as users turn it: ``Budget``, and the weight that meets a target on average."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenflex.errors import ConfigError, InputError
from tokenflex.model.escalation import calibrating
from tokenflex.model.escalation.settings import Escalate
from tokenflex.model.flex import FlexModel
from tokenflex.model.request import Budgets, read_budget
from tokenflex.policies.budget import Budget, BudgetPolicy, overtaking, shared_weight


@dataclass(frozen=True)
class Scored:
    """A sample's scores and costs.

    Attributes:
        scores: of the voter, on the CPU.
        tokens: what each level costs.
    """

    scores: Float[Tensor, "images levels"]
    tokens: Int[Tensor, "images levels"]


@overload
def calibrate(
    flex: FlexModel,
    target: Escalate,
    data: Iterable[Mapping[str, Any] | tuple[Mapping[str, Any], Any]],
    loss: calibrating.Loss | None = None,
    **options: Any,
) -> Escalate: ...
@overload
def calibrate(flex: FlexModel, target: Budgets, data: Iterable[dict[str, Any]]) -> Budget: ...
def calibrate(
    flex: FlexModel,
    target: Budgets | Escalate,
    data: Iterable[Any],
    loss: calibrating.Loss | None = None,
    **options: Any,
) -> Budget | Escalate:
    """The same target with the number that meets it, found on a sample of what will be asked.

    Of a ``Budget`` the weight: the smallest at which ``data`` costs no more on average than it allows. A cap spends
    the same on every image; a weight spends more where the scores gain more, and meets the target on average. Floor
    and ceiling are kept. Where the scores alone meet the target, nothing limits them: ``ratio`` is 1.

    Of an `Escalate` the threshold: the smallest at which, with probability ``confidence`` over the draw of ``data``,
    the mean loss of what is asked later is at most ``risk``; `tokenflex.ops.risk` has the method and why it holds.
    Every question is answered at every level of its ladder. An infinite threshold (nothing may settle early) is a
    result too.

    Args:
        target: a budget with ``tokens`` (mean per image) or ``ratio`` (of the finest level's tokens, over all images);
            a float is a ratio. Or an `Escalate`.
        data: batches as the host's processor made them, on the model's device; for an `Escalate` also pairs of a batch
            and whatever ``loss`` wants to know of it.
        loss: from the answers to a batch (one tensor of new ids per row, up to the token that ends it) and its second
            half to one number from 0 to 1 per row. None: 1 where the answer isn't the finest level's.
        options: of ``generate``, as they will be asked with: an `Escalate`'s answers depend on them.

    Raises:
        ConfigError: the budget names no target.
        InputError: the target is neither; the data has no images, or one that the router can't judge; even the coarsest
            allowed levels cost more than the budget; rows are too few for the promise, or the finest level breaks it.
    """
    if isinstance(data, Mapping):
        raise InputError("data is one batch; give batches: calibrate(flex, target, [batch, ...]).")
    if isinstance(target, Escalate):
        return calibrating.calibrated(flex, target, data, loss, options)
    if loss is not None or options:
        listed = ", ".join(["loss"] * (loss is not None) + sorted(options))
        raise InputError(f"a budget is calibrated without answers, so {listed} says nothing. Leave it out.")
    return _weighted(flex, target, data)


@torch.no_grad()
def _weighted(flex: FlexModel, budget: Budgets, data: Iterable[dict[str, Any]]) -> Budget:
    budget = read_budget(budget)
    if not isinstance(budget, Budget) or (budget.tokens is None and budget.ratio is None):
        raise ConfigError(f"calibrate needs one target, tokens or ratio, got {budget}. Give one of them.")
    found = scored(flex, data)
    policy = BudgetPolicy(Budget(floor=budget.floor, ceiling=budget.ceiling, weight=budget.weight))
    permitted = policy.between(found.scores.shape[-1]).expand(found.tokens.shape)
    finest = found.tokens[:, -1].sum()
    allowed = (
        finest * budget.ratio if budget.ratio is not None else torch.tensor(budget.tokens or 0) * len(found.tokens)
    )
    cheapest = found.tokens.masked_fill(~permitted, int(found.tokens.max()) + 1).amin(-1).sum()
    if cheapest > allowed:
        raise InputError(
            f"the coarsest levels cost {float(cheapest) / len(found.tokens):.1f} tokens per image, the target allows "
            f"{float(allowed) / len(found.tokens):.1f}. Allow more, or lower the floor."
        )
    start = torch.full(found.scores.shape[:1], float(budget.weight), dtype=torch.float64)
    prices = overtaking(found.scores, found.tokens)
    weight = shared_weight(prices, found.tokens, permitted, start, allowed.double())
    dial = replace(budget, tokens=None, ratio=None, weight=float(weight[0]), per="image")
    return dial if dial.limits else replace(dial, ratio=1.0)


@torch.no_grad()
def scored(flex: FlexModel, data: Iterable[dict[str, Any]]) -> Scored:
    """Scores and costs of every image of every batch.

    Raises:
        InputError: there are no images, or one that the router can't judge.
    """
    scores, tokens = [], []
    for batch in data:
        encoded = flex.encode(batch)
        if encoded.images:
            scores.append(flex.scores(encoded).cpu())
            flex.compressor.require_judged(scores[-1], encoded.images)
            tokens.append(encoded.counts.cpu())
    if not scores:
        raise InputError("the data has no images, so there is nothing to calibrate on.")
    return Scored(torch.cat(scores), torch.cat(tokens))

"""The threshold of an `Escalate`, found on a sample of what will be asked; see `tokenflex.ops.risk` for the promise."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tokenflex.errors import InputError
from tokenflex.hosts import continuing
from tokenflex.hosts.grouped import Options
from tokenflex.model import door, generation
from tokenflex.model.escalation import climbing, fingerprint
from tokenflex.model.escalation.passes import Attempt, Passes
from tokenflex.model.escalation.settings import Calibration, Escalate
from tokenflex.ops import risk

if TYPE_CHECKING:
    from tokenflex.model.flex import FlexModel
else:
    FlexModel = Any

Loss = Callable[[Sequence[Tensor], Any], Sequence[float] | Tensor]
"""From the new ids of every row of a batch, up to the token that ends each, and what the batch came with, to one loss
per row, from 0 to 1."""


@dataclass(frozen=True)
class Path:
    """What one question goes through.

    Attributes:
        confidences: of every pass but the last.
        losses: of every pass.
    """

    confidences: tuple[float, ...]
    losses: tuple[float, ...]


@torch.no_grad()
def calibrated(
    flex: FlexModel,
    escalate: Escalate,
    data: Iterable[Mapping[str, Any] | tuple[Mapping[str, Any], Any]],
    loss: Loss | None,
    options: Mapping[str, Any],
) -> Escalate:
    """The same with its threshold; see `tokenflex.calibrate`."""
    settings, budget = _settings(flex, options)
    found: list[Path] = []
    for one in data:
        inputs, targets = one if isinstance(one, tuple) else (one, None)
        found += paths(flex, escalate, inputs, targets, loss, options)
    if not found:
        raise InputError("the data has no images, so there is nothing to calibrate on.")
    needed = risk.rows_needed(escalate.risk, escalate.confidence)
    if len(found) < needed:
        raise InputError(
            f"{len(found)} rows with images can't promise a risk of {escalate.risk:g} with probability "
            f"{escalate.confidence:g}, whatever their answers: at least {needed} are needed."
        )
    confidences, losses, last = _table(found)
    promised = (escalate.risk, escalate.confidence)
    chosen = risk.smallest_threshold(confidences, losses, last, *promised, binary=loss is None)
    if chosen is None:
        finest = float(losses[np.arange(len(last)), last].mean())
        raise InputError(
            f"even at the finest level the loss is {finest:.4g} on average over {len(found)} rows, which doesn't show "
            f"that it is below {escalate.risk:g} with probability {escalate.confidence:g}. Allow more risk, calibrate "
            "on more rows, or leave out loss=, to count what differs from the finest level's answers."
        )
    threshold, mean = chosen
    settled = [any(climbing.is_sure(c, threshold) for c in path.confidences) for path in found]
    told_of = Calibration(
        threshold=threshold,
        risk=escalate.risk,
        confidence=escalate.confidence,
        rows=len(found),
        loss=mean,
        settled=0.0 if threshold == math.inf else sum(settled) / len(settled),
        of="difference" if loss is None else "own",
        model=fingerprint.of_model(flex, escalate),
        options=fingerprint.of_options(settings, budget),
    )
    return replace(escalate, threshold=threshold, calibrated=told_of)


def paths(
    flex: FlexModel,
    escalate: Escalate,
    inputs: Mapping[str, Any],
    targets: Any,
    loss: Loss | None,
    options: Mapping[str, Any],
) -> list[Path]:
    """Of every row with images, each answered at each of its passes.

    Args:
        targets: what the batch came with.
    """
    own = getattr(flex.host, "generation_config", None)
    _, budget = _settings(flex, options)
    arguments = {**inputs, **{name: value for name, value in options.items() if name != "budget"}}
    if own is not None and flex.generation_config != own:
        arguments.setdefault("generation_config", flex.generation_config)
    batch, settings = generation.split(arguments, flex.adapter.encoder_inputs)
    door.check(batch, flex.adapter, continuing.held_by(batch))
    batch = dict(generation.with_mask(batch, flex.host, settings))
    climbing.require_ids(escalate, batch)
    climbing.require_served(batch, Options(flex.host, settings), replace(escalate, threshold=None, calibrated=None))
    ladder = climbing.begin(flex, batch, escalate, budget)
    answers = _answers(flex, ladder, Passes(flex, batch, ladder.encoded, settings, own), escalate)
    rungs = ladder.climb.rungs
    if loss is None:
        losses = {row: [float(not torch.equal(one.new, answers[row][-1].new)) for one in answers[row]] for row in rungs}
    else:
        rest = [row for row in range(batch["input_ids"].shape[0]) if row not in rungs]
        made = Passes(flex, batch, ladder.encoded, settings, own)
        finest = made.attempt(ladder.levels, rest, None) if rest else {}
        losses = _own_losses(answers | {row: [one] for row, one in finest.items()}, targets, loss)
    return [
        Path(tuple(math.nan if a.confidence is None else a.confidence for a in answers[row][:-1]), tuple(losses[row]))
        for row in rungs
    ]


def _answers(flex: FlexModel, ladder: climbing.Ladder, passes: Passes, escalate: Escalate) -> dict[int, list[Attempt]]:
    """What every row with images answers on each of its passes, coarsest first: row -> attempts."""
    climb, measure = ladder.climb, escalate.config.build().to(flex.device)
    found: dict[int, list[Attempt]] = {row: [] for row in climb.rungs}
    pending = list(climb.rungs)
    while pending:
        on = climb.below_the_last(pending)
        for rows, asks in ((on, measure), ([row for row in pending if row not in on], None)):
            for row, answer in passes.attempt(ladder.levels, rows, asks).items() if rows else ():
                found[row].append(answer)
        passes.keep_only(set(), set(pending))
        pending = climb.below_the_last(pending)
        for row in pending:
            climb.at[row] += 1
    return found


def _own_losses(answers: Mapping[int, Sequence[Attempt]], targets: Any, loss: Loss) -> dict[int, list[float]]:
    """By the caller's function, which is given all rows of the batch at once; of those with fewer passes the last.

    Raises:
        InputError: it gives something else than one number from 0 to 1 per row.
    """
    rows, most = sorted(answers), max(len(one) for one in answers.values())
    found: dict[int, list[float]] = {row: [] for row in rows}
    for step in range(most):
        judged = loss([answers[row][min(step, len(answers[row]) - 1)].new for row in rows], targets)
        values = [float(value) for value in judged]
        if len(values) != len(rows) or not all(0 <= value <= 1 for value in values):
            raise InputError(
                f"loss= gave {values!r:.200} for {len(rows)} rows; expected one number from 0 (nothing is lost) to 1 "
                "per row."
            )
        for row, value in zip(rows, values, strict=True):
            if step < len(answers[row]):
                found[row].append(value)
    return found


def _table(found: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(confidences, losses, number of the last pass), a row each, padded on the right."""
    last = np.array([len(path.losses) - 1 for path in found])
    shape = (len(found), int(last.max()) + 1)
    confidences, losses = np.full(shape, np.nan), np.zeros(shape)
    for i, path in enumerate(found):
        confidences[i, : len(path.confidences)] = path.confidences
        losses[i, : len(path.losses)] = path.losses
    return confidences, losses, last


def _settings(flex: FlexModel, options: Mapping[str, Any]) -> tuple[Options, Any]:
    """(options of ``generate`` in force, budget of the start)."""
    arguments = {name: value for name, value in options.items() if name != "budget"}
    return Options(flex.host, arguments), options.get("budget")

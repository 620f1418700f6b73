"""The training steps that are compared, and the check that they do the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import published
from tokenflex.hosts import varlen
from tokenflex.model import FlexModel
from tokenflex.training.objectives import MultiGranularityObjective, RGLFObjective
from tokenflex.training.stages import STAGES, select

Batch = dict[str, Tensor]
Forward = Callable[[FlexModel, Batch], Any]


def packed(flex: FlexModel, batch: Batch) -> Any:
    """All levels in one row, with attention of variable length."""
    flex.host.set_attn_implementation(varlen.register())
    try:
        return flex(**batch, objective=MultiGranularityObjective(memory="packed"))
    finally:
        flex.host.set_attn_implementation("sdpa")


FORWARDS: dict[str, Forward] = {
    "stage3/published": published.stage3,
    "stage3/low": lambda flex, batch: flex(**batch, objective=MultiGranularityObjective(memory="low")),
    "stage3/packed": packed,
    "stage3/joint": lambda flex, batch: flex(**batch, objective=MultiGranularityObjective(memory="joint")),
    "stage4/published": published.stage4,
    "stage4/ours": lambda flex, batch: flex(**batch, objective=RGLFObjective()),
}
"""``stage/form`` -> forward pass of a step."""
TOWER = "patch_embedding"
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
WATCHED = {
    3: ("embed_tokens", "layers.0.self_attn.q_proj.weight", "lm_head.weight", "image_newline", TOWER,
        "multi_modal_projector.linear_1.weight"),
    4: ("merger.self_attn.in_proj_weight", "merger.linear1.weight", "mlp.0.weight", "mlp.2.bias", "voter.weight"),
}  # fmt: skip
"""Per stage parts of the names of parameters whose gradients are compared; the tower's only where it is trained."""


class DisagreementError(AssertionError):
    """Ours and the baseline don't compute the same, so that comparing their cost says nothing."""


def prepare(flex: FlexModel, stage: int, *, frozen_tower: bool = False) -> None:
    """Freeze what the stage doesn't train.

    Args:
        frozen_tower: freeze the vision tower as well.
    """
    rates = {"vision_tower": 0.0} if frozen_tower else {}
    flex.train()
    select(flex, STAGES[stage].with_rates(**rates))


def run(flex: FlexModel, batch: Batch, name: str) -> Any:
    """One step: forward and backward.

    Args:
        name: see `FORWARDS`.
    """
    with _precision(flex):
        output = FORWARDS[name](flex, batch)
    output.loss.backward()
    return output


def stage_of(name: str) -> int:
    """The stage that a step belongs to."""
    return int(name.split("/")[0][-1])


def checked(flex: FlexModel, batch: Batch, names: tuple[str, ...], wrap: Callable[[Callable[[], Any]], Any]) -> None:
    """Run every step once and compare losses and gradients with those of the first.

    Args:
        names: the baseline first.
        wrap: runs each step; whatever else it does with it is its own business.

    Raises:
        DisagreementError: they don't agree.
    """
    seen: dict[str, dict[str, Tensor]] = {}
    with without_dropout(flex):
        for name in names:
            flex.zero_grad(set_to_none=True)
            output = wrap(lambda name=name: run(flex, batch, name))
            seen[name] = {"loss": output.loss.detach().clone(), **_gradients(flex, stage_of(name))}
            if "feedback" in output:
                seen[name]["feedback"] = output.feedback.detach().clone()
            del output
    flex.zero_grad(set_to_none=True)
    for name in names[1:]:
        _compare(names[0], seen[names[0]], name, seen[name], exact=flex.host.dtype == torch.float32)


def _compare(base: str, expected: dict[str, Tensor], name: str, actual: dict[str, Tensor], *, exact: bool) -> None:
    """Float32 has to agree in all; half precision rounds gradients and near ties as it likes."""
    if not exact:
        keys = ("feedback",) if "feedback" in expected else ("loss",)
        expected, limit = {key: expected[key] for key in keys}, 2e-2
    for key, value in expected.items():
        if exact:
            limit = LOSS_TOLERANCE if key in ("loss", "feedback") else GRADIENT_TOLERANCE
        norm = float(value.float().norm())
        off = float((actual[key].float() - value.float()).norm())
        if not off <= limit * norm:
            raise DisagreementError(
                f"{name} and {base} differ in {key} by {off / max(norm, 1e-30):.2g} of its norm, and {limit:g} is "
                "allowed; no figures."
            )


def _gradients(flex: FlexModel, stage: int) -> dict[str, Tensor]:
    training = [name for name, parameter in flex.named_parameters() if parameter.requires_grad]
    watched = [part for part in WATCHED[stage] if part != TOWER or any(part in name for name in training)]
    found = {
        f"the gradient of {name}": parameter.grad.clone()
        for name, parameter in flex.named_parameters()
        if parameter.grad is not None and any(part in name for part in watched)
    }
    if len(found) < len(watched):
        raise DisagreementError(f"gradients of {', '.join(watched)} were expected; there are {', '.join(found)}.")
    return found


@contextmanager
def without_dropout(flex: FlexModel) -> Any:
    """The model with every dropout at 0."""
    kept: list[tuple[nn.Module, str, float]] = []
    for module in flex.compressor.modules():
        if isinstance(module, nn.Dropout):
            kept.append((module, "p", module.p))
        elif isinstance(module, nn.MultiheadAttention):
            kept.append((module, "dropout", module.dropout))
    for module, name, _ in kept:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _precision(flex: FlexModel) -> AbstractContextManager[Any]:
    """As ``Trainer`` runs a half-precision model: under autocast."""
    return torch.autocast(flex.device.type, torch.bfloat16, enabled=flex.host.dtype == torch.bfloat16)

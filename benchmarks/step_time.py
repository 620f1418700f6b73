"""Time and FLOPs of training steps, ours and the published procedure in turn."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from benchmarks import measure, sizes, steps
from benchmarks.measure import Flops, Row
from benchmarks.sizes import Size
from tokenflex.model import FlexModel

OURS = {3: ("stage3/low", "stage3/packed", "stage3/joint"), 4: ("stage4/ours",)}
"""Per stage, what is required first, then what only fills the table."""


def rows(size: Size, flex: FlexModel, batch: dict[str, Tensor], seed: int, stage: int) -> list[Row]:
    """FLOPs and seconds of a step, forward and backward.

    Raises:
        DisagreementError: the forms don't compute the same losses and gradients.
    """
    base, forms = f"stage{stage}/published", OURS[stage]
    if size.checkpointing:
        _check_exactly(size, seed, stage)
    steps.prepare(flex, stage)
    flops = Flops()
    steps.checked(flex, batch, (base, *forms), flops)
    counts = dict(zip((base, *forms), flops.counts, strict=True))
    rounds = {base: size.pairs, forms[0]: size.pairs, **dict.fromkeys(forms[1:], size.extra_pairs)}
    seconds = _alternated(size, flex, batch, rounds)
    found = [
        row
        for form in forms
        for row in _pair(_title(form), counts, seconds, base, form, f"stage{stage}" if form == forms[0] else None)
    ]
    return found + (_frozen_tower(size, flex, batch) if stage == 3 else [])


def _frozen_tower(size: Size, flex: FlexModel, batch: dict[str, Tensor]) -> list[Row]:
    """Stage 3 as the published code runs it, without gradients for the vision tower."""
    base, form = "stage3/published", "stage3/low"
    steps.prepare(flex, 3, frozen_tower=True)
    flops = Flops()
    for name in (base, form):
        flex.zero_grad(set_to_none=True)
        flops(partial(steps.run, flex, batch, name))
    seconds = _alternated(size, flex, batch, {base: size.extra_pairs, form: size.extra_pairs})
    counts = dict(zip((base, form), flops.counts, strict=True))
    return _pair("stage 3 (low), vision tower frozen", counts, seconds, base, form, None)


def _alternated(
    size: Size, flex: FlexModel, batch: dict[str, Tensor], rounds: Mapping[str, int]
) -> dict[str, list[float]]:
    runs = {name: partial(steps.run, flex, batch, name) for name in rounds}
    return measure.alternated(runs, rounds, size.device, before=lambda: flex.zero_grad(set_to_none=True))


def _pair(
    title: str,
    counts: Mapping[str, int],
    seconds: Mapping[str, list[float]],
    base: str,
    form: str,
    key: str | None,
) -> list[Row]:
    """The two rows of one form against the baseline."""
    times = seconds[form]
    return [
        Row(f"{title}, time", "seconds", times, seconds[base][: len(times)], key and f"{key}_time_ratio"),
        Row(f"{title}, FLOPs", "FLOPs", [counts[form]], [counts[base]], key and f"{key}_flop_ratio"),
    ]


def _title(form: str) -> str:
    stage, name = form.split("/")
    return f"stage {stage[-1]}" + ("" if name == "ours" else f" ({name})")


def _check_exactly(size: Size, seed: int, stage: int) -> None:
    """Compare the forms in float32 on a smaller model, as half precision can't be compared so closely."""
    small = sizes.on(sizes.SMALL, size.device)
    flex, batch = sizes.flex_model(small, seed), sizes.batch(small, seed)
    steps.prepare(flex, stage)
    steps.checked(flex, batch, (f"stage{stage}/published", *OURS[stage]), lambda run: run())

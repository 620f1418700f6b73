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

    In stage 3 the vision tower has no gradients on either side, as the published code runs it; rows at the end compare
    what the paper describes, where each of the baseline's five passes trains it.

    Raises:
        DisagreementError: the forms don't compute the same losses and gradients.
    """
    if size.checkpointing:
        _check_exactly(size, seed, stage)
    found = _compared(size, flex, batch, stage, OURS[stage], f"stage{stage}", size.pairs)
    if stage == 3:
        found += _compared(size, flex, batch, stage, OURS[stage][:1], TOWER_TRAINED, size.extra_pairs, trained=True)
    return found


TOWER_TRAINED = "stage3_tower_trained"
"""Begins the names of figures whose baseline trains the vision tower in all its passes."""


def _compared(
    size: Size,
    flex: FlexModel,
    batch: dict[str, Tensor],
    stage: int,
    forms: tuple[str, ...],
    key: str,
    pairs: int,
    trained: bool = False,
) -> list[Row]:
    """Rows of some forms against the baseline.

    Args:
        key: begins the first form's names in the JSON line.
        trained: whether the vision tower has gradients.
    """
    base = f"stage{stage}/published"
    steps.prepare(flex, stage, frozen_tower=not trained)
    flops = Flops()
    steps.checked(flex, batch, (base, *forms), flops)
    counts = dict(zip((base, *forms), flops.counts, strict=True))
    rounds = {base: pairs, forms[0]: pairs, **dict.fromkeys(forms[1:], size.extra_pairs)}
    seconds = _alternated(size, flex, batch, rounds)
    also = ", vision tower trained" if trained else ""
    return [
        row
        for form in forms
        for row in _pair(_title(form) + also, counts, seconds, base, form, key if form == forms[0] else None)
    ]


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
    steps.prepare(flex, stage, frozen_tower=True)
    steps.checked(flex, batch, (f"stage{stage}/published", *OURS[stage]), lambda run: run())

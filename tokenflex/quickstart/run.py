"""``tokenflex quickstart``: build, train through all stages, evaluate, report."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import ProcessorMixin
from transformers.utils import logging as transformers_logging

from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError
from tokenflex.files import locked
from tokenflex.model import Escalate, FlexModel, calibrate, wrap
from tokenflex.ops.pooling import PYRAMID
from tokenflex.profiling.surroundings import provenance
from tokenflex.quickstart import evaluate, page, report
from tokenflex.quickstart.evaluate import GradedAnswers, Results
from tokenflex.quickstart.hosts import build_small_host, require_known
from tokenflex.quickstart.images import exam, scenes
from tokenflex.quickstart.progress import shown
from tokenflex.quickstart.recipe import BESIDES, RESOLUTION, QuickstartPlan, levels_of_sizes, trained
from tokenflex.quickstart.unfinished import Unfinished
from tokenflex.training.objectives import MultiGranularityObjective

SMALLEST = 1 / 64
"""Of an image's pixels: no host makes more than its smallest image of them."""


def run(
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    host: str = "auto",
    levels: str = "all",
    router_rows: str = "all",
    plan: QuickstartPlan | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Do everything; returns what ``report.json`` holds. An interrupted run of the same settings is taken up.

    Args:
        out: folder for ``report.json``, ``report.html`` and ``model/``.
        seed: of data, weights and training.
        device: ``auto``, ``cpu`` or ``cuda``.
        host: ``llava-next``; ``composed`` for a timm encoder and a language model put together; ``qwen2.5-vl``;
            ``auto``: the first, or the last where ``levels`` needs it.
        levels: of each step of stage 3, as of `MultiGranularityObjective`; or ``resolution``: levels are sizes of
            the image, chosen before it is encoded.
        router_rows: which tokens vote; see `AVGRouter.Config`.
        command: as it was typed, for the report; empty where this is called from Python.

    Raises:
        ConfigError: the device isn't there, host or levels aren't known, a library isn't installed, or another process
            does the same in ``out``.
    """
    plan, console, where = plan or QuickstartPlan(), Console(), _device(device)
    host = require_known(_host(host, levels))
    MultiGranularityObjective(levels="all" if levels == RESOLUTION else levels)  # refuses what it doesn't know
    folder = Path(out)
    with locked(folder, "quickstart", waiting=lambda: _refuse(folder)):
        return _run(folder, plan, console, where, command, seed=seed, host=host, levels=levels, router_rows=router_rows)


def _refuse(folder: Path) -> None:
    raise ConfigError(
        f"another process on this machine runs the quickstart into {folder}. Wait for its end, or give another --out."
    )


def _run(
    folder: Path,
    plan: QuickstartPlan,
    console: Console,
    where: torch.device,
    command: str,
    *,
    seed: int,
    host: str,
    levels: str,
    router_rows: str,
) -> dict[str, Any]:
    sized = levels == RESOLUTION
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"plan": plan, "seed": seed, "host": host, "levels": levels, "rows": router_rows, "device": where.type}
    unfinished = Unfinished(folder, asked)
    with quiet_screen(), shown(console, plan.seconds) as progress:
        with progress.phase("images", BESIDES["images"], 1):
            stock = list(scenes(seed, "train", plan.stock))
            questions, held_out = exam(seed, "test", plan.questions), exam(seed, "test", plan.calibration)
        small = build_small_host(host, seed, where)
        processor = small.processor
        outcome = trained(
            small, stock, plan, progress, seed=seed, levels=levels, router_rows=router_rows, unfinished=unfinished
        )
        flex, ablations = outcome.flex, outcome.ablations
        with progress.phase("calibration", BESIDES["calibration"], 1):
            allowed = calibrated(flex, processor, held_out, plan)
        ticks = -(-plan.questions // evaluate.BATCH) * (
            flex.compressor.num_levels + (1 if sized else 3) + len(allowed) + len(ablations)
        )
        with progress.phase("evaluation", BESIDES["evaluation"], ticks) as tick:
            found = answered(flex, ablations, processor, questions, allowed, tick)
        flex.escalate = allowed["escalate"]
        _save(flex, processor, folder / "model")
    result = {
        **{"host": host, "seed": seed, "levels_per_step": levels, "router_rows": router_rows, "device": str(where)},
        "made": provenance(where, command),
        "questions": len(questions),
        "fine_share": round(sum(q.fine for _, q in questions) / len(questions), 4),
        "seconds": {name: round(value, 1) for name, value in progress.seconds.items()},
        **evaluate.compare(found, questions, seed),
    }
    draw = page.resized(_grids(flex, processor, questions)) if sized else page.pooled(PYRAMID)
    report.write(folder, result, questions, found.levels[-1], found.routers["router"], draw)
    unfinished.remove()
    report.show(console, result, folder)
    return result


def _save(flex: FlexModel, processor: ProcessorMixin, folder: Path) -> None:
    with locked(folder):
        for save in (flex.save_pretrained, flex.save_parts, processor.save_pretrained):
            save(folder)


def _host(name: str, levels: str) -> str:
    """The host that is meant.

    Raises:
        ConfigError: its images have one size, and levels are to be sizes.
    """
    if name == "auto":
        return "qwen2.5-vl" if levels == RESOLUTION else "llava-next"
    if levels == RESOLUTION and name != "qwen2.5-vl":
        raise ConfigError(f"levels='resolution' needs images of any size; host {name!r} has one. Use qwen2.5-vl.")
    return name


def calibrated(
    flex: FlexModel, processor: ProcessorMixin, questions: evaluate.Exam, plan: QuickstartPlan
) -> dict[str, Escalate]:
    """What answers are allowed to: from the coarsest level, and from the router's, to the finest.

    Args:
        questions: others than those of the exam, drawn like them.
    """
    ends = (0, flex.compressor.num_levels - 1)
    promise = Escalate(risk=plan.risk, confidence=plan.confidence, levels=ends)
    starts = {"escalate": promise, "router_escalate": replace(promise, start="router")}
    return {
        name: calibrate(flex, start, evaluate.batches(flex, processor, questions), max_new_tokens=evaluate.ANSWER)
        for name, start in starts.items()
    }


def _grids(flex: FlexModel, processor: ProcessorMixin, questions: evaluate.Exam) -> list[Grid]:
    """What the host makes of an image at every size."""
    read = flex.adapter.read(next(evaluate.batches(flex, processor, questions[:1])))
    return [flex.adapter.resized(read, [share]).grids[0] for share in flex.compressor.scaler.shares]


def answered(
    flex: FlexModel,
    ablations: Mapping[str, FlexModel],
    processor: ProcessorMixin,
    questions: evaluate.Exam,
    allowed: Mapping[str, Escalate],
    tick: Callable[[], None],
) -> Results:
    """At every level; by the router; by routers that see less; escalated.

    Where levels are made after the tower, by a router without training too, and with the smallest image that the host
    takes.
    """

    def answers_at(model: FlexModel, level: int | None = None, escalate: Escalate | None = None) -> GradedAnswers:
        return evaluate.answer(model, processor, questions, level, tick, escalate)

    levels = [answers_at(flex, level) for level in range(flex.compressor.num_levels)]
    routers, smaller = {"router": answers_at(flex)}, None
    if not flex.compressor.scaler.shares:
        plain = wrap(flex.host, router="reconstruction", voter="mean", adapter=flex.adapter).eval()
        routers["reconstruction_router"] = answers_at(plain)
        if flex.adapter.resize_refusal is None:
            ends = levels_of_sizes((SMALLEST, 1.0))
            sized = wrap(flex.host, scaler=ends, router="constant", voter="mean", adapter=flex.adapter).eval()
            smaller = answers_at(sized, 0)
    escalated = {name: (answers_at(flex, escalate=one), one) for name, one in allowed.items()}
    blind = {name: answers_at(model.eval()) for name, model in ablations.items()}
    return Results(levels, routers, escalated, smaller, blind)


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {name!r} isn't known; use auto, cpu or cuda (choose one with CUDA_VISIBLE_DEVICES).")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def quiet_screen() -> Iterator[None]:
    """Leave the screen to this command's own progress bar."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()

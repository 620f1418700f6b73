"""``tokenflex quickstart``: build, train through all stages, evaluate, report."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PrinterCallback, ProcessorMixin, TrainerCallback
from transformers.utils import logging as transformers_logging

from tokenflex.checkpoint import adapter_for
from tokenflex.contracts import Component
from tokenflex.errors import ConfigError
from tokenflex.files import locked
from tokenflex.model import FlexModel, wrap
from tokenflex.ops.pooling import PYRAMID
from tokenflex.quickstart import evaluate, report
from tokenflex.quickstart.hosts import build, check
from tokenflex.quickstart.pictures import Row, exam, pictures, practice, row
from tokenflex.quickstart.pretrain import pretrain
from tokenflex.registry import routers
from tokenflex.training import STAGES, ChatDataset, FlexCollator, FlexTrainer, FlexTrainingArguments, Stage
from tokenflex.training.objectives import MultiGranularityObjective, RGLFObjective


@dataclass(frozen=True)
class Phase:
    """One training phase of the recipe.

    Attributes:
        stage: the library's preset with this recipe's rates.
        rows: conversations per optimizer step.
        steps: optimizer steps.
        seconds: what it took on two CPU cores, for the estimate of what is left.
    """

    stage: Stage
    rows: int
    steps: int
    seconds: float

    @property
    def name(self) -> str:
        """As the screen shows it."""
        return f"stage {self.stage.number}: {self.stage.summary}"


@dataclass(frozen=True)
class Plan:
    """Sizes and rates of the embedded default. The LLM has no pre-training either, so stage 1 trains it too."""

    stock: int = 3000
    questions: int = 1536
    router_text_tokens: int = 4
    tolerance: float = 0.1
    pretrain_steps: int = 200
    pretrain_rate: float = 3e-3
    phases: tuple[Phase, ...] = (
        Phase(STAGES[1].with_rates(projector=2e-3, language_model=2e-3), 16, 900, 80.0),
        Phase(STAGES[2].with_rates(vision_tower=0.0, projector=2e-3, language_model=2e-3), 16, 300, 25.0),
        Phase(
            STAGES[3].with_rates(vision_tower=2.5e-4, projector=2e-3, language_model=2e-3, scaler=0.0), 16, 450, 105.0
        ),
        Phase(STAGES[4].with_rates(router=2e-3), 32, 300, 50.0),
    )


def run(
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    host: str = "llava-next",
    levels: str = "all",
    router_rows: str = "all",
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Do everything; returns what ``report.json`` holds.

    Args:
        out: folder for ``report.json``, ``report.html`` and ``model/``.
        seed: of data, weights and training.
        device: ``auto``, ``cpu`` or ``cuda``.
        host: ``llava-next``, or ``composed`` for a timm encoder and a language model put together.
        levels: of each step of stage 3; see `MultiGranularityObjective`.
        router_rows: which tokens vote; see `AVGRouter.Config`.

    Raises:
        ConfigError: the device isn't there, host or levels aren't known, or a library isn't installed.
    """
    plan, console, where = plan or Plan(), Console(), _device(device)
    check(host)
    MultiGranularityObjective(levels=levels)  # refuses what it doesn't know
    folder, seconds = Path(out), dict[str, float]()
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet(), _progress(console, plan) as progress, tempfile.TemporaryDirectory() as scratch:
        with progress.phase("pictures", 5.0, 1, seconds) as tick:
            stock = list(pictures(seed, "train", plan.stock))
            questions = exam(seed, "test", plan.questions)
            tick()
        small = build(host, seed, where)
        processor = small.processor
        with progress.phase("stage 0: vision tower", 15.0, plan.pretrain_steps, seconds) as tick:
            pretrain(small, stock, steps=plan.pretrain_steps, rate=plan.pretrain_rate, seed=seed, tick=tick)
        reads = adapter_for(small.model, {"scope": "prompt"})  # the template has no words that open a turn
        flex = wrap(small.model, router=_router(plan, router_rows), adapter=reads)
        for phase in plan.phases:
            with progress.phase(phase.name, phase.seconds, phase.steps, seconds) as tick:
                given = _rows(phase, stock, seed), _objective(phase.stage, plan, levels)
                train(flex, processor, phase, *given, scratch, seed, tick)
        flex.eval()
        settings = flex.compressor.num_levels + 2
        with progress.phase("evaluation", 35.0, -(-len(questions) // evaluate.BATCH) * settings, seconds) as tick:
            *fixed, routed, untrained = _answers(flex, processor, questions, tick)
        with locked(folder / "model"):
            for save in (flex.save_pretrained, flex.save_parts, processor.save_pretrained):
                save(folder / "model")
    result = {
        **{"host": host, "seed": seed, "levels_per_step": levels, "router_rows": router_rows, "device": str(where)},
        "questions": len(questions),
        "fine_share": round(sum(q.fine for _, q in questions) / len(questions), 4),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        **evaluate.compare(fixed, routed, untrained, questions, seed),
    }
    report.write(folder, result, questions, fixed[-1], routed, PYRAMID)
    report.show(console, result, folder)
    return result


def _answers(
    flex: FlexModel, processor: ProcessorMixin, questions: evaluate.Exam, tick: Callable[[], None]
) -> list[evaluate.Answers]:
    """At every level, routed, and by a router without training."""
    plain = wrap(flex.host, router="reconstruction", voter="mean", adapter=flex.adapter).eval()
    levels = [(flex, level) for level in range(flex.compressor.num_levels)]
    return [
        evaluate.answer(model, processor, questions, level, tick)
        for model, level in (*levels, (flex, None), (plain, None))
    ]


def train(
    flex: FlexModel,
    processor: ProcessorMixin,
    phase: Phase,
    rows: list[Row],
    objective: Any,
    scratch: str,
    seed: int,
    tick: Callable[[], None],
) -> None:
    """One stage with the library's own trainer."""
    arguments = FlexTrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=phase.rows,
        max_steps=phase.steps,
        adam_beta2=0.98,
        warmup_steps=0.05,
        seed=seed,
        use_cpu=flex.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = FlexTrainer(
        flex,
        arguments,
        stage=phase.stage,
        objective=objective,
        train_dataset=ChatDataset(rows),
        data_collator=FlexCollator(processor),
        callbacks=[_Tick(tick)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _objective(stage: Stage, plan: Plan, levels: str) -> Any:
    """What a stage minimises; None for what it names itself."""
    if stage.loss == "rglf":
        return RGLFObjective(tolerance=plan.tolerance)
    return MultiGranularityObjective(levels=levels) if stage.loss == "multi-granularity" else None


def _rows(phase: Phase, stock: Any, seed: int) -> list[Row]:
    """Stage 1 narrates digits and inks, stages 2 and 3 ask everything, stage 4 asks single questions."""
    count, number = phase.rows * phase.steps, phase.stage.number
    if number == 4:
        return [row(picture, [question]) for picture, question in exam(seed, "train", count)]
    return practice(seed + number, stock, count, 16 if number == 1 else 12, coarse=number > 1)


def _router(plan: Plan, rows: str) -> Any:
    """The published router; few words are enough for these short questions, and so short a run needs no dropout."""
    served: type[Component] = routers.get("avg")
    return served.Config.from_dict({"text_tokens": plan.router_text_tokens, "dropout": 0.0, "rows": rows})


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {name!r} isn't known; use auto, cpu or cuda (choose one with CUDA_VISIBLE_DEVICES).")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class _Tick(TrainerCallback):
    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.tick()


class _Overall:
    """One bar over all phases, in expected seconds; plain lines where there is no terminal."""

    def __init__(self, console: Console, bar: Progress, total: float) -> None:
        self.console, self.bar = console, bar
        self.task = bar.add_task("", total=total)

    @contextmanager
    def phase(self, name: str, expected: float, ticks: int, seconds: dict[str, float]) -> Iterator[Callable[[], None]]:
        """Announce a phase; yields what to call after each of its ``ticks`` steps."""
        started = time.perf_counter()
        self.bar.update(self.task, description=name)
        yield lambda: self.bar.advance(self.task, expected / ticks)
        seconds[name] = time.perf_counter() - started
        task = self.bar.tasks[0]
        left = (task.elapsed or 0.0) * ((task.total or 0.0) / max(task.completed, 1e-9) - 1)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {seconds[name]:.0f} s, about {max(left, 0.0):.0f} s left")


@contextmanager
def _progress(console: Console, plan: Plan) -> Iterator[_Overall]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    total = 5.0 + 15.0 + sum(phase.seconds for phase in plan.phases) + 35.0
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=120.0) as bar:
        yield _Overall(console, bar, total)


@contextmanager
def _quiet() -> Iterator[None]:
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

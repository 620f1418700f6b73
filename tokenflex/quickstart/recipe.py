"""The recipe: what the embedded default trains, in which order, and how long."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PrinterCallback, ProcessorMixin, TrainerCallback

from tokenflex.checkpoint import adapter_for
from tokenflex.contracts import Component
from tokenflex.model import FlexModel
from tokenflex.model.loading import fresh
from tokenflex.quickstart.hosts import SmallHost
from tokenflex.quickstart.images import Row, Scene, exam, practice, row
from tokenflex.quickstart.pretrain import pretrain
from tokenflex.quickstart.progress import Overall
from tokenflex.quickstart.qwen_host import SHARES
from tokenflex.quickstart.unfinished import Unfinished
from tokenflex.registry import routers, scalers
from tokenflex.training import STAGES, ChatDataset, FlexCollator, FlexTrainer, FlexTrainingArguments, Stage
from tokenflex.training.objectives import MultiGranularityObjective, RGLFObjective

RESOLUTION = "resolution"
TOWER = "stage 0: vision tower"
BESIDES = {"images": 5.0, TOWER: 15.0, "calibration": 20.0, "evaluation": 45.0}
"""Expected seconds on two CPU cores of what isn't a `Phase`, by name."""


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
        """The phase's name, as the screen shows it."""
        return f"stage {self.stage.number}: {self.stage.summary}"


@dataclass(frozen=True)
class QuickstartPlan:
    """Sizes and rates of the embedded default. The LLM has no pre-training either, so stage 1 trains it too.

    Attributes:
        stock: training images.
        questions: of the exam.
        calibration: questions that the promise of escalation is calibrated on.
        risk, confidence: of that promise; see `tokenflex.Escalate`.
        shares: of the image's pixels, per level, where levels are sizes.
    """

    stock: int = 3000
    questions: int = 1536
    calibration: int = 768
    risk: float = 0.02
    confidence: float = 0.95
    shares: tuple[float, ...] = SHARES
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

    @property
    def seconds(self) -> float:
        """How long all phases are expected to take, in seconds."""
        return sum(self.expected.values())

    @property
    def expected(self) -> dict[str, float]:
        """Expected seconds on two CPU cores, by name of what is done."""
        return {**BESIDES, **{phase.name: phase.seconds for phase in self.phases}}


def trained(
    small: SmallHost,
    stock: Sequence[Scene],
    plan: QuickstartPlan,
    progress: Overall,
    *,
    seed: int,
    levels: str,
    router_rows: str,
    unfinished: Unfinished,
) -> FlexModel:
    """The host with its parts, through all stages.

    Args:
        stock: training images.
        levels, router_rows: as of `tokenflex.quickstart.run.run`.
        unfinished: what an earlier run of the same settings did, and where this one keeps what it did.
    """
    sized, before = levels == RESOLUTION, unfinished.seconds()
    progress.skip(before, plan.expected)
    steps = plan.pretrain_steps * (1 if len(small.shares) == 1 else 2)
    if not before:
        with progress.phase(TOWER, BESIDES[TOWER], steps) as tick:
            pretrain(small, stock, steps=steps, rate=plan.pretrain_rate, seed=seed, tick=tick)
    reads = adapter_for(small.model, {"scope": "prompt"})  # the template has no words that open a turn
    scaler = levels_of_sizes(plan.shares) if sized else "average-pool"
    flex = fresh(small.model, scaler=scaler, router=_router(plan, router_rows), adapter=reads)
    done = dict(before)

    def keep(name: str) -> None:
        done[name] = progress.seconds[name]
        unfinished.keep(flex, done)

    if before:
        unfinished.load(flex)
    else:
        keep(TOWER)
    for phase in plan.phases:
        if phase.name in before:
            continue
        with progress.phase(phase.name, phase.seconds, phase.steps) as tick, tempfile.TemporaryDirectory() as scratch:
            prepared = _rows(phase, stock, seed), _objective(phase.stage, plan, "all" if sized else levels)
            train(flex, small.processor, phase, *prepared, scratch, seed, tick)
        keep(phase.name)
    return flex.eval()


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


def _objective(stage: Stage, plan: QuickstartPlan, levels: str) -> Any:
    """What a stage minimises; None for what it names itself."""
    if stage.loss == "rglf":
        return RGLFObjective(tolerance=plan.tolerance)
    return MultiGranularityObjective(levels=levels) if stage.loss == "multi-granularity" else None


def _rows(phase: Phase, stock: Any, seed: int) -> list[Row]:
    """Stage 1 narrates digits and inks, stages 2 and 3 ask everything, stage 4 asks single questions."""
    count, number = phase.rows * phase.steps, phase.stage.number
    if number == 4:
        return [row(image, [question]) for image, question in exam(seed, "train", count)]
    return practice(seed + number, stock, count, 16 if number == 1 else 12, coarse=number > 1)


def _router(plan: QuickstartPlan, rows: str) -> Any:
    """The published router; few words are enough for these short questions, and so short a run needs no dropout."""
    served: type[Component] = routers.get("avg")
    return served.Config.from_dict({"text_tokens": plan.router_text_tokens, "dropout": 0.0, "rows": rows})


def levels_of_sizes(shares: Sequence[float]) -> Any:
    """Levels that are sizes of the image; settings of the scaler."""
    served: type[Component] = scalers.get("resolution")
    return served.Config.from_dict({"shares": tuple(shares)})


class _Tick(TrainerCallback):
    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.tick()

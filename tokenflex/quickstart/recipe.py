"""The recipe: what the embedded default trains, in which order, and how long."""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
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
from tokenflex.training import (
    STAGES,
    ChatDataset,
    FeedbackStore,
    FlexCollator,
    FlexTrainer,
    FlexTrainingArguments,
    RGLFTrainer,
    RouterModel,
    Stage,
    score,
)
from tokenflex.training.objectives import MultiGranularityObjective, RGLFObjective
from tokenflex.training.router_only import stored_host_of

RESOLUTION = "resolution"
TOWER, FEEDBACK, ABLATIONS = "stage 0: vision tower", "feedback for stage 4", "routers that see less"
BESIDES = {"images": 5.0, TOWER: 15.0, FEEDBACK: 35.0, ABLATIONS: 100.0, "calibration": 20.0, "evaluation": 50.0}
"""Expected seconds on two CPU cores of what isn't a `Phase`, by name."""
SEEING_LESS = {"router_without_image": "question", "router_without_question": "image"}
"""What routers of the ablation see, by their names in the report."""


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
        scored: questions that the routers learn from.
        tolerance: see `RGLFObjective`.
    """

    stock: int = 3000
    scored: int = 9600
    questions: int = 1536
    calibration: int = 768
    risk: float = 0.02
    confidence: float = 0.95
    shares: tuple[float, ...] = SHARES
    router_text_tokens: int = 4
    tolerance: float = 0.05
    pretrain_steps: int = 200
    pretrain_rate: float = 3e-3
    phases: tuple[Phase, ...] = (
        Phase(STAGES[1].with_rates(projector=2e-3, language_model=2e-3), 16, 900, 80.0),
        Phase(STAGES[2].with_rates(vision_tower=0.0, projector=2e-3, language_model=2e-3), 16, 300, 25.0),
        Phase(
            STAGES[3].with_rates(vision_tower=2.5e-4, projector=2e-3, language_model=2e-3, scaler=0.0), 16, 450, 105.0
        ),
        Phase(STAGES[4].with_rates(router=3e-3), 32, 1200, 50.0),
    )

    @property
    def seconds(self) -> float:
        """How long all phases are expected to take, in seconds."""
        return sum(self.expected.values())

    @property
    def expected(self) -> dict[str, float]:
        """Expected seconds on two CPU cores, by name of what is done."""
        return {**BESIDES, **{phase.name: phase.seconds for phase in self.phases}}


@dataclass(frozen=True)
class Trained:
    """What the recipe makes.

    Attributes:
        flex: the host with its parts.
        ablations: the same host and scaler with a router that sees less, trained as the other, by name.
    """

    flex: FlexModel
    ablations: Mapping[str, FlexModel]

    def state(self) -> nn.Module:
        """All that is trained, as one module."""
        return nn.ModuleDict({"flex": self.flex, **{name: each.compressor for name, each in self.ablations.items()}})


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
) -> Trained:
    """The host with its parts, through all stages.

    Args:
        stock: training images.
        levels, router_rows: as of `tokenflex.quickstart.run.run`.
        unfinished: what an earlier run of the same settings did, and where this one keeps what it did.
    """
    before = unfinished.seconds()
    progress.skip(before, plan.expected)
    steps = plan.pretrain_steps * (1 if len(small.shares) == 1 else 2)
    if not before:
        with progress.phase(TOWER, BESIDES[TOWER], steps) as tick:
            pretrain(small, stock, steps=steps, rate=plan.pretrain_rate, seed=seed, tick=tick)
    made, done = _fresh(small, plan, levels, router_rows), dict(before)

    def keep(*names: str) -> None:
        done.update({name: progress.seconds[name] for name in names})
        unfinished.keep(made.state(), done)

    if before:
        unfinished.load(made.state())
    else:
        keep(TOWER)
    *stages, last = plan.phases
    for phase in stages:
        if phase.name not in before:
            with progress.phase(phase.name, phase.seconds, phase.steps) as tick:
                per_step = "all" if levels == RESOLUTION else levels
                train(made.flex, small.processor, phase, _rows(phase, stock, seed), per_step, seed, tick)
            keep(phase.name)
    if not {last.name, ABLATIONS} <= before.keys():
        _train_routers(made, small.processor, last, plan, progress, seed, before.keys(), keep)
    made.flex.eval()
    return made


def _fresh(small: SmallHost, plan: QuickstartPlan, levels: str, router_rows: str) -> Trained:
    reads = adapter_for(small.model, {"scope": "prompt"})  # the template has no words that open a turn
    scaler = levels_of_sizes(plan.shares) if levels == RESOLUTION else "average-pool"

    def seeing(what: str) -> FlexModel:
        return fresh(small.model, scaler=scaler, router=_router(plan, router_rows, what), adapter=reads)

    return Trained(seeing("both"), {name: seeing(what) for name, what in SEEING_LESS.items()})


def _train_routers(
    made: Trained,
    processor: ProcessorMixin,
    phase: Phase,
    plan: QuickstartPlan,
    progress: Overall,
    seed: int,
    before: Collection[str],
    keep: Callable[..., None],
) -> None:
    """Score the questions of stage 4 once, and train every router that isn't trained yet on what was stored."""
    asked = [row(image, [question]) for image, question in exam(seed, "train", plan.scored)]
    data, collator = ChatDataset(asked), FlexCollator(processor)
    inputs: dict[str, Any] = {"router_inputs": "auto", "router_inputs_at": "projector"}
    with tempfile.TemporaryDirectory() as scratch:
        with progress.phase(FEEDBACK, BESIDES[FEEDBACK], 1):
            store = score(made.flex, data, collator, scratch, batch_size=phase.rows, progress=False, **inputs)

        def router(flex: FlexModel, tick: Callable[[], None]) -> None:
            train_router(flex, store, phase, plan.tolerance, seed, tick)

        if phase.name not in before:
            with progress.phase(phase.name, phase.seconds, phase.steps) as tick:
                router(made.flex, tick)
            keep(FEEDBACK, phase.name)
        with progress.phase(ABLATIONS, BESIDES[ABLATIONS], phase.steps * len(made.ablations)) as tick:
            for flex in made.ablations.values():
                router(flex, tick)
        keep(ABLATIONS)


def train(
    flex: FlexModel,
    processor: ProcessorMixin,
    phase: Phase,
    rows: list[Row],
    levels: str,
    seed: int,
    tick: Callable[[], None],
    **more: Any,
) -> None:
    """One stage before the router's, with the library's own trainer.

    Args:
        levels: of each step of stage 3.
        more: further arguments of `FlexTrainingArguments`.
    """
    objective = MultiGranularityObjective(levels=levels) if phase.stage.loss == "multi-granularity" else None
    with quiet_arguments(phase.rows, phase.steps, seed, flex.device, **more) as arguments:
        data: dict[str, Any] = {"train_dataset": ChatDataset(rows), "data_collator": FlexCollator(processor)}
        run_quietly(
            FlexTrainer(flex, arguments, stage=phase.stage, objective=objective, callbacks=[Tick(tick)], **data)
        )


def train_router(
    flex: FlexModel, store: FeedbackStore, phase: Phase, tolerance: float, seed: int, tick: Callable[[], None]
) -> None:
    """Stage 4 from a store, without the host."""
    objective, router = RGLFObjective(tolerance=tolerance), RouterModel(flex.compressor, stored_host_of(store))
    with quiet_arguments(phase.rows, phase.steps, seed, flex.device) as arguments:
        more: dict[str, Any] = {"objective": objective, "callbacks": [Tick(tick)]}
        run_quietly(RGLFTrainer(router, arguments, stage=phase.stage, feedback=store, **more))
    router.to(flex.device)


@contextmanager
def quiet_arguments(
    rows: int, steps: int, seed: int, device: torch.device, **more: Any
) -> Iterator[FlexTrainingArguments]:
    """Arguments of a short run that saves and logs nothing.

    Args:
        rows: per optimizer step.
        more: further arguments.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield FlexTrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=rows,
            max_steps=steps,
            adam_beta2=0.98,
            warmup_steps=0.05,
            seed=seed,
            use_cpu=device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **more,
        )


def run_quietly(trainer: FlexTrainer) -> None:
    """Train without a word on the screen."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _rows(phase: Phase, stock: Sequence[Scene], seed: int) -> list[Row]:
    """Stage 1 narrates digits and inks, stages 2 and 3 ask everything."""
    count, number = phase.rows * phase.steps, phase.stage.number
    return practice(seed + number, stock, count, 16 if number == 1 else 12, coarse=number > 1)


def _router(plan: QuickstartPlan, rows: str, sees: str) -> Any:
    """The published router; few words are enough for these short questions, and so short a run needs no dropout."""
    served: type[Component] = routers.get("avg")
    settings = {"text_tokens": plan.router_text_tokens, "dropout": 0.0, "rows": rows, "sees": sees}
    return served.Config.from_dict(settings)


def levels_of_sizes(shares: Sequence[float]) -> Any:
    """Levels that are sizes of the image; settings of the scaler."""
    served: type[Component] = scalers.get("resolution")
    return served.Config.from_dict({"shares": tuple(shares)})


class Tick(TrainerCallback):
    """Calls a function after every optimizer step."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Call it."""
        self.tick()

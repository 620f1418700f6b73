"""What the study trains, in which order and how long; the library's own trainers, stored feedback, a router alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from tokenflex.contracts import Component
from tokenflex.model import FlexModel
from tokenflex.model.loading import fresh
from tokenflex.quickstart import recipe
from tokenflex.quickstart.recipe import ABLATIONS, FEEDBACK, TOWER, Phase
from tokenflex.registry import routers
from tokenflex.study import tower
from tokenflex.study.images import Painter, StudyImage, images
from tokenflex.study.rows import Row, practice, single
from tokenflex.study.sources import Sources
from tokenflex.training import STAGES, ChatDataset, FeedbackStore, FlexCollator, score

EXAM = "exam"
ROUTING = Phase(STAGES[4].with_rates(router=1e-3), 32, 300, 300.0)
LOOSE = 0.2
"""Risk of escalation in a smaller plan, whose few rows can promise no less."""


@dataclass(frozen=True)
class StudyPlan:
    """Sizes and rates.

    Attributes:
        tower_steps, tower_rate: of stage 0, 32 images each; the rate of its heads.
        rank: of the adapters on the language model in stages 2 and 3.
        phases: stages 1 to 3; one conversation per image, each seen once.
        scored: images that the router learns from, with two questions each.
        routing: stage 4, on what is scored.
        router_text_tokens: prompt tokens that the router sees.
        tolerance: see `RGLFObjective`.
        exam: held-out images, with two questions each.
        calibration: held-out images that escalation is calibrated on.
        risk, confidence: of escalation; see `tokenflex.Escalate`.
    """

    tower_steps: int = 1500
    tower_rate: float = 2e-3
    rank: int = 16
    phases: tuple[Phase, ...] = (
        Phase(STAGES[1].with_rates(projector=1e-3), 4, 75, 150.0),
        Phase(STAGES[2].with_rates(vision_tower=0.0, projector=5e-4, language_model=5e-4), 4, 600, 900.0),
        Phase(STAGES[3].with_rates(vision_tower=0.0, projector=3e-4, language_model=3e-4, scaler=0.0), 4, 150, 700.0),
    )
    scored: int = 600
    routing: Phase = ROUTING
    router_text_tokens: int = 16
    tolerance: float = 0.2
    exam: int = 200
    calibration: int = 100
    risk: float = 0.02
    confidence: float = 0.95
    tower_seconds: float = 900.0
    feedback_seconds: float = 500.0
    exam_seconds: float = 900.0
    ablation_seconds: float = 400.0

    @property
    def seconds(self) -> Mapping[str, float]:
        """Expected seconds on two CPU cores, by name of what is done."""
        return {
            TOWER: self.tower_seconds,
            **{phase.name: phase.seconds for phase in self.phases},
            FEEDBACK: self.feedback_seconds,
            self.routing.name: self.routing.seconds,
            EXAM: self.exam_seconds,
            ABLATIONS: self.ablation_seconds,
        }

    def smaller(self, share: float) -> "StudyPlan":
        """A plan of a share of all steps and images, to see whether everything runs; its numbers say nothing."""

        def part(count: int, least: int = 8) -> int:
            return max(round(count * share), least)

        return replace(
            self,
            tower_steps=part(self.tower_steps),
            phases=tuple(replace(phase, steps=part(phase.steps, 2)) for phase in self.phases),
            scored=part(self.scored),
            routing=replace(self.routing, steps=part(self.routing.steps)),
            exam=part(self.exam, 20),
            calibration=part(self.calibration, 20),
            risk=max(self.risk, LOOSE),
        )


class Learned:
    """What training changes of a model, as one state: everything but the language model's own weights.

    Args:
        flex: with adapters on its host, which may be merged later; from then on the parts alone are looked at again.
    """

    def __init__(self, flex: FlexModel) -> None:
        self.flex, self.merged = flex, False
        self._state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned so far, by name."""
        own = self.flex.state_dict()
        kept = {name: value for name, value in own.items() if name.startswith("compressor.")}
        if not self.merged:
            kept |= {name: value for name, value in own.items() if ".language_model." not in name or "lora_" in name}
        self._state |= {name: value.detach().clone() for name, value in kept.items()}
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        known = self.flex.state_dict().keys()
        strange = [name for name in state if name not in known]
        if strange:
            raise KeyError(f"{strange[0]} has no place in this model")
        self.flex.load_state_dict(state, strict=False)
        self._state = dict(state)

    def merge(self, processor: Any) -> FlexModel:
        """The same model with its adapters merged into the language model: a plain host again, all in bfloat16."""
        self.state_dict()
        host = self.flex.host.merge_and_unload().to(torch.bfloat16)
        merged = model(host, self.flex.compressor.router.config, processor=processor)
        merged.compressor.load_state_dict(self.flex.compressor.state_dict())
        self.flex, self.merged = merged.eval(), True
        return merged


def model(host: Any, router: Any, **told: Any) -> FlexModel:
    """A host with the published scaler and a router.

    Args:
        told: ``processor`` or ``adapter``, as for `tokenflex.wrap`.
    """
    return fresh(host, scaler="average-pool", router=router, **told)


def router_settings(plan: StudyPlan, sees: str = "both") -> Any:
    """The published router with fewer prompt tokens, which is plenty for these questions, and without the finest
    level's tokens among those that vote, which halves its work.

    Args:
        sees: as of the router; for ablations.
    """
    served: type[Component] = routers.get("avg")
    return served.Config.from_dict({"text_tokens": plan.router_text_tokens, "sees": sees, "rows": "pooled"})


def teach_tower(made: Any, sources: Sources, plan: StudyPlan, seed: int, tick: Callable[[], None]) -> None:
    """Stage 0."""
    painter = Painter(sources, seed)

    def draw(count: int) -> list[StudyImage]:
        return [painter.next() for _ in range(count)]

    tower.teach(made.model, made.processor, draw, steps=plan.tower_steps, rate=plan.tower_rate, seed=seed, tick=tick)


def train(
    flex: FlexModel, processor: ProcessorMixin, phase: Phase, sources: Sources, seed: int, tick: Callable[[], None]
) -> None:
    """One stage before the router's, on images that no other stage sees."""
    rows = practice([*images(sources, (seed, phase.stage.number), phase.rows * phase.steps)], seed)
    recipe.train(flex, processor, phase, rows, "sandwich", seed, tick, bf16=True)
    flex.eval()


def scored_rows(sources: Sources, plan: StudyPlan, seed: int) -> list[Row]:
    """What the router learns from."""
    return single([*images(sources, (seed, 4), plan.scored)], seed)


def feedback(flex: FlexModel, processor: ProcessorMixin, rows: Sequence[Row], folder: Path) -> Any:
    """Score every row at every level, and keep what a router sees."""
    return score(
        flex,
        ChatDataset(rows),
        FlexCollator(processor),
        folder,
        batch_size=8,
        part_size=256,
        router_inputs="auto",
        router_inputs_at="projector",
        progress=False,
    )


def train_router(flex: FlexModel, store: FeedbackStore, plan: StudyPlan, seed: int, tick: Callable[[], None]) -> None:
    """Stage 4 from a store, without the host."""
    recipe.train_router(flex, store, plan.routing, plan.tolerance, seed, tick)
    flex.eval()

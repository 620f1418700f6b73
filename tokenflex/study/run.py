"""``tokenflex study``: make the images, train through all stages, answer the exam, report."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tokenflex.errors import ConfigError
from tokenflex.evaluation import evaluate, parse
from tokenflex.evaluation.answering import Batch
from tokenflex.evaluation.questions import Questions
from tokenflex.evaluation.report import report
from tokenflex.files import locked, write_whole
from tokenflex.model import Escalate, FlexModel, calibrate
from tokenflex.profiling.surroundings import provenance
from tokenflex.quickstart.progress import Overall, shown
from tokenflex.quickstart.run import quiet_screen
from tokenflex.quickstart.unfinished import Unfinished
from tokenflex.study import host as hosts
from tokenflex.study import page, picture, recipe
from tokenflex.study.images import images
from tokenflex.study.recipe import ABLATIONS, EXAM, FEEDBACK, TOWER, Learned, StudyPlan
from tokenflex.study.rows import ANSWER, Row, single
from tokenflex.study.sources import EMOJI, EMOJI_FILE, EMOJI_NAME, EMOJI_VERSION, Sources, Split, load
from tokenflex.training import FeedbackStore

SETTINGS = (
    "levels", "router", "random", "escalate",
    *(f"scaler:{name}:{level}" for name in ("stride", "resize") for level in range(4)),
)  # fmt: skip
SEEING_LESS = {"router_without_image": "question", "router_without_question": "image"}
"""What routers of the ablation see, by the name of their evaluation's folder."""
BATCH = 16
"""Questions at a time."""
PICTURED = 80
"""Questions that the picture is chosen from."""


def run(
    out: str | Path,
    *,
    seed: int = 0,
    emoji: str | Path | None = None,
    plan: StudyPlan | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Do everything; returns what ``study.json`` holds. An interrupted run of the same settings is taken up.

    Args:
        out: folder for ``study.json``, ``evaluation/``, ``model/`` and what an interrupted run goes on from.
        seed: of images, weights and training.
        emoji: archive or folder of the emoji package; None gets it from npm's registry, once.
        command: as it was typed, for the report; empty where this is called from Python.

    Raises:
        ConfigError: a package is missing, the emoji can't be had, or another process does the same in ``out``.
    """
    folder, plan = Path(out), plan or StudyPlan()
    with locked(folder, "study", waiting=lambda: _refuse(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        return _Study(folder, plan, seed, obtained(folder, emoji))(command)


def _refuse(folder: Path) -> None:
    raise ConfigError(
        f"another process on this machine runs the study into {folder}. Wait for its end, or give another --out."
    )


def obtained(folder: Path, emoji: str | Path | None) -> Path:
    """The emoji package: as given, as an earlier run got it, or by ``npm pack``.

    Raises:
        ConfigError: it isn't there, or npm can't get it.
    """
    given, kept = (None if emoji is None else Path(emoji)), folder / EMOJI_NAME
    if given is not None:
        if not given.exists():
            raise ConfigError(f"{given} isn't there; give the archive or the unpacked folder of {EMOJI} 16.0.0.")
        return given
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        told = ["npm", "pack", "--silent", f"{EMOJI}@{EMOJI_VERSION}"]
        try:
            subprocess.run(told, cwd=scratch, check=True, capture_output=True, text=True)
            shutil.move(Path(scratch) / EMOJI_NAME, kept)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip()
            raise ConfigError(
                f"{' '.join(told)!r} didn't get the emoji: {why:.300} Install npm, or download {EMOJI_FILE} and "
                "give it as --emoji."
            ) from error
    return kept


class _Study:
    """One run.

    Args:
        emoji: archive or folder of the package.
    """

    def __init__(self, folder: Path, plan: StudyPlan, seed: int, emoji: Path) -> None:
        self.folder, self.plan, self.seed = folder, plan, seed
        made = hosts.build(seed)
        self.made, self.processor = made, made.processor
        words = hosts.short_words(made.processor.tokenizer)
        self.sources: dict[Split, Sources] = {split: load(split, emoji, words) for split in ("train", "test")}
        settings = recipe.router_settings(plan)
        torch.manual_seed(seed)
        self.learned = Learned(recipe.model(hosts.with_lora(made.model, plan.rank), settings, processor=made.processor))
        self.unfinished = Unfinished(folder, {"plan": plan, "seed": seed})

    def __call__(self, command: str) -> dict[str, Any]:
        """Everything that isn't done yet."""
        console, total = Console(), sum(self.plan.seconds.values())
        with quiet_screen(), shown(console, total) as progress:
            before = self.unfinished.seconds()
            progress.skip(before, self.plan.seconds)
            if before:
                self.unfinished.load(self.learned)
            self._host(progress, before)
            flex = self._router(progress, before)
            with progress.phase(EXAM, self.plan.exam_seconds, 1):
                found = self._exam(flex, command)
            with progress.phase(ABLATIONS, self.plan.ablation_seconds, 2 * self.plan.routing.steps) as tick:
                found["others"] = {name: self._other(name, sees, tick) for name, sees in SEEING_LESS.items()}
            self._save(flex)
        result = {
            "seed": self.seed,
            "made": provenance(flex.device, command),
            "seconds": {name: round(value, 1) for name, value in progress.seconds.items()},
            **found,
        }
        write_whole(self.folder / "study.json", json.dumps(result, indent=2) + "\n")
        write_whole(self.folder / "study.md", page.markdown(result))
        self.unfinished.remove()
        console.print(page.markdown(result), markup=False, highlight=False, soft_wrap=True)
        return result

    def _keep(self, progress: Overall, done: dict[str, float], *names: str) -> None:
        done.update({name: progress.seconds[name] for name in names})
        self.unfinished.keep(self.learned, done)

    def _host(self, progress: Overall, before: Mapping[str, float]) -> None:
        """Stages 0 to 3."""
        plan, train, done = self.plan, self.sources["train"], dict(before)
        if TOWER not in before:
            with progress.phase(TOWER, plan.tower_seconds, plan.tower_steps) as tick:
                recipe.teach_tower(self.made, train, plan, self.seed, tick)
            self._keep(progress, done, TOWER)
        for phase in plan.phases:
            if phase.name not in before:
                with progress.phase(phase.name, phase.seconds, phase.steps) as tick:
                    recipe.train(self.learned.flex, self.processor, phase, train, self.seed, tick)
                self._keep(progress, done, phase.name)

    def _router(self, progress: Overall, before: Mapping[str, float]) -> FlexModel:
        """Stage 4, and the routers that see less; the adapters are merged before."""
        plan, flex = self.plan, self.learned.merge(self.processor)
        rows = recipe.scored_rows(self.sources["train"], plan, self.seed)
        with progress.phase(FEEDBACK, plan.feedback_seconds, 1):
            store = recipe.feedback(flex, self.processor, rows, self.folder / "feedback")
        if plan.routing.name not in before:
            with progress.phase(plan.routing.name, plan.routing.seconds, plan.routing.steps) as tick:
                recipe.train_router(flex, store, plan, self.seed, tick)
            self._keep(progress, {**before, **progress.seconds}, FEEDBACK, plan.routing.name)
        return flex

    def _exam(self, flex: FlexModel, command: str) -> dict[str, Any]:
        self._calibrate(flex)
        rows = self._asked()
        summary = self._answered(flex, Questions(rows), SETTINGS, self.folder / "evaluation", command)
        picture.write(flex, self.processor, Questions(rows[:PICTURED]), self.folder / "study.png")
        return {"evaluation": summary}

    def _asked(self) -> list[Row]:
        """The exam."""
        return single([*images(self.sources["test"], (self.seed, 5), self.plan.exam)], self.seed)

    def _answered(
        self, flex: FlexModel, asked: Questions, settings: Sequence[str], folder: Path, command: str
    ) -> dict[str, Any]:
        evaluate(
            flex, self.processor, asked, "exact-match", parse(flex, settings), folder, batch_size=BATCH,
            max_new_tokens=ANSWER, names=("study", f"held-out images, seed {self.seed}"), command=command,
        )  # fmt: skip
        return report(folder, seed=self.seed)

    def _other(self, name: str, sees: str, tick: Callable[[], None]) -> dict[str, Any]:
        """A router that sees less, trained as the other on the same feedback: its entry of an evaluation of its own."""
        settings, store = recipe.router_settings(self.plan, sees), FeedbackStore(self.folder / "feedback")
        torch.manual_seed(self.seed)
        flex = recipe.model(self.learned.flex.host, settings, processor=self.processor)
        recipe.train_router(flex, store, self.plan, self.seed, tick)
        asked = Questions(self._asked())
        found = self._answered(flex, asked, ["router"], self.folder / f"evaluation_{name}", "")
        return found["settings"]["router"]

    def _calibrate(self, flex: FlexModel) -> None:
        """What answers are allowed to, on held-out images that the exam doesn't have."""
        rows = single([*images(self.sources["test"], (self.seed, 6), self.plan.calibration)], self.seed)
        asked = Questions(rows)

        def batches() -> Iterator[dict[str, Any]]:
            for start in range(0, len(asked), BATCH):
                places = tuple(range(start, min(start + BATCH, len(asked))))
                yield Batch(self.processor, {i: asked.sample(i) for i in places}, ()).inputs(flex, places)

        promise = Escalate(risk=self.plan.risk, confidence=self.plan.confidence)
        flex.escalate = calibrate(flex, promise, batches(), max_new_tokens=ANSWER)

    def _save(self, flex: FlexModel) -> None:
        folder = self.folder / "model"
        with locked(folder):
            for save in (flex.save_pretrained, flex.save_parts, self.processor.save_pretrained):
                save(folder)

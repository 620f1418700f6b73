"""Commands and savers on tiny models: how each is run, and what of its results can be compared."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import tokenflex
from tests.conftest import image
from tests.parity.golden import DATA
from tokenflex.cli.main import main
from tokenflex.errors import TokenFlexError
from tokenflex.quickstart.recipe import QuickstartPlan
from tokenflex.quickstart.run import run as quickstart
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training.store import FeedbackStore

ROWS = 6
LEFT = ("*.tmp", ".*.tmp", ".tmp*")
"""Names of what writers leave until they are done: this library's, and those of safetensors."""
Results = dict[str, str]


@dataclass(frozen=True)
class Command:
    """Something that writes a folder.

    Attributes:
        name: for people.
        run: does it, into the folder of an argument; gives the exit status.
        found: results by name, as digests.
        half: looks at what a killed run left, and says what is wrong with it, if anything.
        begin: makes what is in the folder before.
    """

    name: str
    run: Callable[[Path], int]
    found: Callable[[Path], Results]
    half: Callable[[Path], str | None] = lambda folder: None
    begin: Callable[[Path], None] = lambda folder: None


def digest(content: bytes | str) -> str:
    """Of bytes or text."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def of_files(folder: Path, leave: tuple[str, ...] = ()) -> Results:
    """Of every file below a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in leave)
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}


def left(folder: Path) -> list[str]:
    """What is left in and beside a folder that nobody should find after a run that went to its end."""
    inside = (path for pattern in LEFT for path in folder.rglob(pattern))
    beside = (path for pattern in LEFT for path in folder.parent.glob(pattern))
    return sorted({str(path) for path in (*inside, *beside)})


class Workshop:
    """Small models and data in a folder, and the commands that work on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        host, self.processor = tiny_llava_next(), tiny_llava_next_processor()
        for save in (host.save_pretrained, self.processor.save_pretrained):
            save(folder / "host")
        self.models = [self._model(seed) for seed in (1, 2)]
        for save in (self.models[0].save_pretrained, self.models[0].save_parts, self.processor.save_pretrained):
            save(folder / "model")
        self._data()

    def _model(self, seed: int) -> Any:
        torch.manual_seed(seed)
        flex = tokenflex.wrap(tiny_llava_next()).eval()
        with torch.no_grad():
            for value in flex.parameters():
                value.add_(torch.randn_like(value), alpha=1e-3)
        return flex

    def _data(self) -> None:
        talks, asked = [], []
        for i in range(ROWS):
            image(i).save(self.folder / f"{i}.png")
            said = [{"from": "human", "value": f"<image>\nw{i + 1} w{i + 2}"}, {"from": "gpt", "value": f"w{i + 3}"}]
            talks.append({"id": i, "image": f"{i}.png", "conversations": said})
            asked.append({"id": str(i), "image": f"{i}.png", "question": f"w{i + 1}", "answer": "w2"})
        (self.folder / "rows.json").write_text(json.dumps(talks))
        (self.folder / "asked.json").write_text(json.dumps(asked))

    def recipe(self, out: Path, **entries: Any) -> str:
        """A recipe's path; its name belongs to the folder it writes."""
        base = {
            "host": str(self.folder / "host"), "data": str(self.folder / "rows.json"),
            "image_folder": str(self.folder), "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
            "max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "save_steps": 1,
            "save_strategy": "steps", "logging_strategy": "no", "seed": 0,
        }  # fmt: skip
        path = self.folder / f"{out.parent.name}-{out.name}.yaml"
        path.write_text(yaml.safe_dump({**base, **entries}))
        return str(path)

    def feedback(self, **more: Any) -> Command:
        """Scores the data, with what a router sees, two rows a part."""

        def run(out: Path) -> int:
            given = {"stage": 4, "feedback": str(out), "part_size": 2, "levels_cache": True, **more}
            return main(["feedback", self.recipe(out, output_dir=str(out.parent / "unused"), **given)])

        return Command("feedback", run, stored, half_stored)

    def train(self, stage: int = 4, **more: Any) -> Command:
        """Two steps with a checkpoint each; goes on from the newest whole one."""

        def run(out: Path) -> int:
            given = {"stage": stage, "output_dir": str(out), "resume_from_checkpoint": True, **more}
            return main(["train", self.recipe(out, **given)])

        def found(out: Path) -> Results:
            weights = {path for pattern in ("tokenflex", "model") for path in out.rglob(f"{pattern}.safetensors")}
            state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
            told = {"steps": str(state["global_step"])}
            return told | {f"{path.relative_to(out)}/{n}": v for path in sorted(weights) for n, v in tensors(path)}

        what = "the parts" if stage == 4 else "host and parts"
        return Command(f"train, {what}", run, found)

    def evaluate(self) -> Command:
        """Answers the questions at two levels and routed."""

        def run(out: Path) -> int:
            data = ["--data", str(self.folder / "asked.json"), "--image-folder", str(self.folder)]
            words = ["--metric", "exact-match", "--settings", "level:0", "router", "--batch-size", "2", "--json"]
            limits = ["--max-new-tokens", "2", "--resamples", "20", "--device", "cpu", "--out", str(out)]
            return main(["evaluate", str(self.folder / "model"), *data, *words, *limits])

        return Command("evaluate", run, answered)

    def convert(self) -> Command:
        """A released checkpoint to host and parts."""
        source = DATA / "e2e_g8" / "checkpoint"

        def half(out: Path) -> str | None:
            return "a folder stands there that isn't complete" if out.exists() and not _is_converted(out) else None

        return Command("convert", lambda out: main(["convert", str(source), str(out)]), of_files, half)

    def save(self, how: str) -> Command:
        """One model saved over another, by ``save_parts`` or ``save_pretrained``."""
        first, second = self.models

        def run(out: Path) -> int:
            getattr(second, how)(out)
            return 0

        def half(out: Path) -> str | None:
            try:
                state = self._loaded(out, how)
            except TokenFlexError as error:
                return None if how == "save_pretrained" else f"what was there can't be loaded: {error}"
            names = [same(state, model.state_dict() if how == "save_pretrained" else model.compressor.state_dict())
                     for model in self.models]  # fmt: skip
            return None if any(names) else "what is there is neither the one nor the other"

        return Command(how, run, lambda out: of_files(out), half, lambda out: getattr(first, how)(out))

    def _loaded(self, out: Path, how: str) -> Mapping[str, torch.Tensor]:
        if how == "save_pretrained":
            return type(self.models[0]).from_pretrained(out).state_dict()
        return tokenflex.load_parts(out, host=self.models[0].host).compressor.state_dict()

    def quickstart(self) -> Command:
        """The whole quickstart, of two steps a phase."""
        plan = QuickstartPlan()
        phases = tuple(replace(phase, rows=2, steps=2) for phase in plan.phases)
        small = {"stock": 20, "questions": 24, "calibration": 24, "risk": 0.2, "confidence": 0.9, "pretrain_steps": 2}
        tiny: Any = replace(plan, phases=phases, **small)

        def run(out: Path) -> int:
            quickstart(out, seed=3, device="cpu", plan=tiny)
            return 0

        def found(out: Path) -> Results:
            told = json.loads((out / "report.json").read_text())
            told.pop("seconds")
            return {"report": digest(json.dumps(told))} | dict(tensors(out / "model" / "model.safetensors"))

        return Command("quickstart", run, found)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two models have the same weights, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def tensors(path: Path) -> list[tuple[str, str]]:
    """(name, digest) of a file's tensors."""
    return [(name, digest(value.contiguous().view(torch.uint8).numpy().tobytes())) if value.dim() else
            (name, digest(str(value.item()))) for name, value in sorted(load_file(path).items())]  # fmt: skip


def stored(folder: Path) -> Results:
    """A store's rows, each under its number in all parts, and what a router sees of them."""
    store, found = FeedbackStore(folder), dict[str, str]()
    for path in sorted(folder.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            again = sum(name.startswith(f"row {row['id']}") for name in found)
            found[f"row {row['id']}" + (f" again {again}" if again else "")] = digest(repr(sorted(row.items())))
    for place in store.ids.tolist():
        images, words = store.kept(place)
        seen = [words.embeddings, *(image.features for image in images)]
        found[f"seen {place}"] = digest(b"".join(value.float().numpy().tobytes() for value in seen))
    return found


def half_stored(folder: Path) -> str | None:
    """What is wrong with a store that a killed run left."""
    try:
        FeedbackStore(folder)
    except TokenFlexError as error:
        return None if not list(folder.glob("part-*.parquet")) else f"parts can't be read: {error}"
    return None


def answered(folder: Path) -> Results:
    """An evaluation's answers, each under its question and setting in all parts, and its summary."""
    found: Results = {"summary": digest((folder / "summary.json").read_text())}
    for path in sorted(folder.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            name = f"{row['place']} {row['setting']}"
            found[f"{name} again" if name in found else name] = digest(repr(sorted(row.items())))
    return found


def _is_converted(out: Path) -> bool:
    try:
        host = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
        tokenflex.load_parts(out, host=host)
    except Exception:  # whatever it is, the folder isn't complete
        return False
    return True

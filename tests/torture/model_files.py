"""Damaged parts, models, checkpoints, recipes and calibrations: refused in our words, harmless, or on the list here.

What an accepted change may be is written in each subject's ``allowed``: a place, and why another value there is
legitimate. Two things can't be seen by looking at files, and aren't claimed: another finite value in a tensor of a host
(there is no digest of it), and another setting of a host that transformers takes.

The classes of this library are asked to load (``FlexModel``, ``ComposedForConditionalGeneration``, ``load_parts``,
``convert``, ...). Through ``AutoModel...from_pretrained``, transformers reads ``config.json`` first, and what it raises
for a file that isn't JSON (OSError), has no known ``model_type`` (ValueError, KeyError) or settings of wrong types (its
StrictDataclassError) stays its own.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

import tokenflex
from tests.torture.cage import Subject, fuzz
from tests.torture.outcome import Outcome
from tokenflex import checkpoint, offered, reading
from tokenflex.model import Escalate, FlexModel
from tokenflex.model.escalation.settings import Calibration
from tokenflex.ops.digest import of_tensors
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.training import recipe
from tokenflex.training.parts import choose

AREA = "Damaged files"
SETTING = "a setting that the part takes; whoever removed the digest asked for it"
EDITED = {
    r"parts\.\w+\.(name|version|provider)": "another part whose tensors are the same",
    r"parts\.\w+\.config\..*": SETTING,
    r"parts\.\w+\.config": "settings left out are the defaults, or another part has none",
    r"host\.options\..*": "an option that the adapter takes",
    r"host\.options": "options left out are the defaults",
    r"(?#any)escalate\.calibrated\.options\..*": "compared with those of each call, which is refused if they differ",
    r"escalate(\..*)?": "a threshold set by hand promises nothing; left out, answers don't escalate",
}
CALIBRATION = {
    r"(?#any)calibrated\.options\..*": "compared with those of each call, which is refused if they differ",
    r"(risk|confidence|threshold|levels|start|measure|calibrated)(\..*)?": "a number in its range, or a name there is",
}
HOST = {
    r"config\.(?!parts|adapters|model_type).*": "a setting of the host, which transformers checks",
    r"host": "no digest",
}
RECIPE = {r"[012]\..*": "a setting of its type and range, which is what a recipe is for"}


def calibrated() -> Escalate:
    """As `tokenflex.calibrate` might have made it."""
    found = Calibration(
        threshold=0.5, risk=0.05, confidence=0.95, rows=200, loss=0.01, settled=0.4, of="difference", model="0" * 32,
        options={"max_new_tokens": 8},
    )  # fmt: skip
    return Escalate(threshold=0.5, levels=(0, 2, 4), calibrated=found)


def tensors(module: torch.nn.Module) -> str:
    """Digest of all weights."""
    return of_tensors({name: value.detach() for name, value in module.state_dict().items()})


def seen_parts(flex: FlexModel) -> dict[str, Any]:
    """What a user gets from parts."""
    found = checkpoint.describe(flex.compressor, flex.adapter)
    allowed = flex.escalate
    return {**found, "weights": tensors(flex.compressor), "escalate": allowed and allowed.to_dict()}


def parts_subjects(root: Path) -> list[Subject]:
    """Parts as they are saved, and with a description that was edited by hand."""
    host = tiny_llava_next()
    flex = tokenflex.wrap(host)
    flex.escalate = calibrated()

    def load(folder: Path) -> Any:
        return seen_parts(tokenflex.load_parts(folder, host=host))

    for name in ("parts", "edited"):
        flex.save_parts(root / name)
    page = root / "edited" / checkpoint.JSON_NAME
    spec = json.loads(page.read_text())
    del spec[checkpoint.DIGEST]
    page.write_text(json.dumps(spec))
    both = (checkpoint.JSON_NAME, checkpoint.WEIGHTS_NAME)
    return [
        Subject("parts", root / "parts", both, load),
        Subject("parts with an edited description", root / "edited", both[:1], load, EDITED),
    ]


def calibration_subject(root: Path) -> Subject:
    """The block that says how answers escalate."""
    folder = root / "calibration"
    folder.mkdir()
    (folder / "escalate.json").write_text(json.dumps(calibrated().to_dict()))

    def load(where: Path) -> Any:
        return Escalate.from_dict(reading.json_file(reading.own_file(where, "escalate.json"))).to_dict()

    return Subject("calibration", folder, ("escalate.json",), load, CALIBRATION)


def recipe_subject(root: Path) -> Subject:
    """A recipe of stage 4."""
    folder = root / "recipe"
    folder.mkdir()
    text = (
        "stage: 4\nhost: ./host\ndata: ./data.json\nrouter: avg\nrouter_config: {text_tokens: 8, heads: 2}\n"
        "router_rate: 1.0e-4\nmargin: 0.5\nguard: true\nfresh: [router]\noutput_dir: out\nmax_steps: 10\n"
        "per_device_train_batch_size: 2\nlogging_steps: 1\nreport_to: none\nseed: 7\nuse_cpu: true\n"
    )
    (folder / "recipe.yaml").write_text(text)

    def load(where: Path) -> Any:
        found, arguments = recipe.read(where / "recipe.yaml")
        made = choose(found, {})
        told = {kind: checkpoint.told(kind, config) for kind, config in made.configs.items()}
        return [dataclasses.asdict(found), arguments.to_dict(), told]

    return Subject("recipe", folder, ("recipe.yaml",), load, RECIPE)


def model_subject(root: Path) -> Subject:
    """A saved FlexModel."""
    flex = tokenflex.wrap(tiny_llava_next())
    flex.escalate = calibrated()
    flex.save_pretrained(root / "model")

    def load(folder: Path) -> Any:
        found = FlexModel.from_pretrained(folder)
        config = found.config.to_dict()
        skipped = ("transformers_version", "_name_or_path")
        told = {key: value for key, value in config["host"].items() if key not in skipped}
        return {"config": told, "host": tensors(found.host), **seen_parts(found)}

    return Subject(
        "saved model", root / "model", ("config.json", "model.safetensors", "generation_config.json"), load, HOST
    )


@contextmanager
def known_plugins() -> Iterator[None]:
    """Within, what is installed is looked up once: that takes longer than loading a small file."""
    with (
        mock.patch.object(offered, "entry_points", functools.cache(offered.entry_points)),
        mock.patch.object(offered, "version", functools.cache(offered.version)),
    ):
        yield


def subjects(root: Path) -> list[tuple[Subject, int]]:
    """All of them, and how often each is damaged at scale 1."""
    parts, edited = parts_subjects(root)
    return [
        (parts, 4000), (edited, 2500), (calibration_subject(root), 3000), (recipe_subject(root), 2000),
        (model_subject(root), 600),
    ]  # fmt: skip


def run(scale: float, seed: int) -> list[Outcome]:
    """Damage every kind of file; the same seed gives the same damage."""
    made = []
    with TemporaryDirectory() as folder, known_plugins():
        for subject, times in subjects(Path(folder)):
            made.append(fuzz(subject, max(10, round(times * scale)), seed).row(AREA, subject))
    return made

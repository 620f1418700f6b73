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
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

import tokenflex
from tests.parity.golden import DATA
from tests.torture.cage import Subject, fuzz
from tests.torture.outcome import Outcome
from tokenflex import checkpoint, conversion, reading
from tokenflex.composed import ComposedForConditionalGeneration
from tokenflex.errors import ConfigError
from tokenflex.model import Escalate, FlexModel
from tokenflex.model.escalation.settings import Calibration
from tokenflex.ops.digest import of_tensors
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_tokenizer
from tokenflex.training import recipe
from tokenflex.training.parts import choose
from tokenflex.training.resume import fault

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
    r"(?#any)escalate\.calibrated\.options\..*": "compared with those of each call, which is refused if they differ",
    r"(?#any)config\.(?!parts|adapters|model_type).*": "a setting of the host; transformers checks what it can",
    r"host": "no digest",
}
SKIPPED = ("transformers_version", "_name_or_path")
COMPOSED = {
    r"(?#any)config\.text_config(\..*)?": "a setting of the language model, which transformers checks",
    r"(?#any)config\.(?!text_config|vision|projector|grid|image_size|vision_width|model_type).*": "transformers' own",
    r"(?#any)config\.vision\.config\..*": "a setting of the encoder that changes no tensor, which transformers checks",
    r"config\.vision\.(name|layer)": "for people; another layer that the encoder has",
    r"weights": "no digest",
    r"config\.image_size\.\d": "for people; the processor has its own",
}
RELEASED = {
    r"(?#any)(config|generation_config)\..*": "a setting of the host, or of generation",
    r"host_weights": "no digest in the published format",
    r"weights": "no digest in the published format",
    r"parts\.\w+\.config\..*": "another pyramid that the tensors fit",
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
        told = {kind: checkpoint.described(kind, config) for kind, config in made.configs.items()}
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
        told = {key: value for key, value in config["host"].items() if key not in SKIPPED}
        return {"config": told, "host": tensors(found.host), **seen_parts(found)}

    return Subject(
        "saved model", root / "model", ("config.json", "model.safetensors", "generation_config.json"), load, HOST
    )


def composed_subject(root: Path) -> Subject:
    """A saved composed model, its encoder one of transformers."""
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    words = tiny_tokenizer()
    language = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    made = tokenflex.compose(vision, language, tokenizer=words, pretrained=False)
    made.model.save_pretrained(root / "composed")

    def load(folder: Path) -> Any:
        found = ComposedForConditionalGeneration.from_pretrained(folder)
        told = {key: value for key, value in found.config.to_dict().items() if key not in SKIPPED}
        return {"config": told, "weights": tensors(found), "projector": str(found.multi_modal_projector)}

    return Subject("composed model", root / "composed", ("config.json", "model.safetensors"), load, COMPOSED)


def released_subject(root: Path) -> Subject:
    """A checkpoint in the released layout, converted."""
    source = root / "released"
    shutil.copytree(DATA / "e2e_g8" / "checkpoint", source)
    files = sorted(
        str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".json", ".safetensors")
    )

    def load(folder: Path) -> Any:
        out = folder.with_name("converted")
        shutil.rmtree(out, ignore_errors=True)
        conversion.convert(folder, out)
        spec, weights = checkpoint.load(out)
        host = load_file(out / "model.safetensors")
        pages = {name: json.loads((out / f"{name}.json").read_text()) for name in ("config", "generation_config")}
        return {**spec, **pages, "weights": of_tensors(weights), "host_weights": of_tensors(host)}

    return Subject("released checkpoint", source, files, load, RELEASED)


def resumed_subject(root: Path) -> Subject:
    """A checkpoint of a training run; whether it can be gone on from."""
    folder = root / "resumed"
    tokenflex.wrap(tiny_llava_next()).save_parts(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": [{"loss": 1.5}]}))
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.zeros(3)}, folder / name)

    def load(where: Path) -> Any:
        reason = fault(where)
        if reason is not None:
            raise ConfigError(reason)
        return {"step": json.loads((where / "trainer_state.json").read_text())["global_step"]}

    files = (checkpoint.JSON_NAME, checkpoint.WEIGHTS_NAME, "trainer_state.json", "trainer_state.json")
    return Subject("checkpoint of a run", folder, files, load, {"step": "a number of steps"})


def subjects(root: Path) -> list[tuple[Subject, int]]:
    """All of them, and how often each is damaged at scale 1."""
    parts, edited = parts_subjects(root)
    return [
        (parts, 4000), (edited, 2500), (calibration_subject(root), 3000), (recipe_subject(root), 2000),
        (model_subject(root), 600), (composed_subject(root), 500), (released_subject(root), 250),
        (resumed_subject(root), 500),
    ]  # fmt: skip


def run(scale: float, seed: int) -> list[Outcome]:
    """Damage every kind of file; the same seed gives the same damage."""
    made = []
    with TemporaryDirectory() as folder:
        for subject, times in subjects(Path(folder)):
            made.append(fuzz(subject, max(10, round(times * scale)), seed).row(AREA, subject))
    return made

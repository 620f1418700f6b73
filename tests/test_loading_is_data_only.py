"""Files from anyone are data, and damage to them is refused in this library's own words: one case of every kind."""

import json
import math
import os
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig

import tokenflex
from tests.parity.golden import DATA
from tokenflex import checkpoint, conversion, loadable, reading
from tokenflex.composed import ComposedForConditionalGeneration
from tokenflex.errors import ConfigError, InputError, TokenFlexError
from tokenflex.model import Escalate, FlexModel
from tokenflex.model.escalation.settings import Calibration
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_tokenizer
from tokenflex.training import recipe
from tokenflex.training.parts import of_host
from tokenflex.training.resume import fault

JSON, WEIGHTS, MODEL = checkpoint.JSON_NAME, checkpoint.WEIGHTS_NAME, "model.safetensors"
BIAS = "router.mlp.0.bias"


@pytest.fixture(scope="module")
def host():
    return tiny_llava_next()


@pytest.fixture(scope="module")
def saved(host, tmp_path_factory):
    """Folders: of parts, of a model, of a composed model."""
    root = tmp_path_factory.mktemp("saved")
    flex = tokenflex.wrap(host)
    flex.save_parts(root / "parts")
    flex.save_pretrained(root / "model")
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    words = tiny_tokenizer()
    language = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    tokenflex.compose(vision, language, tokenizer=words, pretrained=False).model.save_pretrained(root / "composed")
    return root


@pytest.fixture
def parts(saved, tmp_path):
    return shutil.copytree(saved / "parts", tmp_path / "parts")


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved / "model", tmp_path / "model")


def header_of(data):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewritten(path, change):
    """A safetensors file with another header; ``change`` gets it, and may return another text for it."""
    header, body = header_of(path.read_bytes())
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edited(path, change, keep=False):
    """A JSON file that was changed; a description without its digest, so that it counts."""
    found = json.loads(path.read_text())
    if not keep:
        found.pop("weights", None)
    change(found)
    path.write_text(json.dumps(found))


def configured(folder, change):
    edited(folder / "config.json", change)


def put(folder, name, change):
    """Weights with some of them changed, and nothing that could tell."""
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name, {"format": "pt"})


def exchanged(header):
    one, two = "router.merger.linear1.weight", "router.merger.linear2.weight"
    assert header[one]["shape"] == header[two]["shape"]
    header[one], header[two] = header[two], header[one]


def twice(header):
    text = json.dumps(header)
    return f'{text[:-1]}, "{BIAS}": {json.dumps(header[BIAS])}}}'


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def linked(path):
    target = shutil.copyfile(path, path.parent.with_name(f"elsewhere-{path.name}"))
    path.unlink()
    path.symlink_to(target)


def piped(path):
    path.unlink()
    os.mkfifo(path)


FILES = {
    "truncated": (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:-7]), "cut short"),
    "longer": (WEIGHTS, lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes of tensors, its header says"),
    "empty": (WEIGHTS, lambda p: p.write_bytes(b""), "isn't safetensors: it has 0 bytes"),
    "a pickle": (WEIGHTS, lambda p: p.write_bytes(pickle.dumps({"a": [1]})), "isn't safetensors"),
    "a header without end": (WEIGHTS, lambda p: p.write_bytes(struct.pack("<Q", 2**60) + b"{}"), "isn't safetensors"),
    "a header that is a list": (WEIGHTS, lambda p: rewritten(p, lambda h: "[]"), "header is list"),
    "a tensor twice": (WEIGHTS, lambda p: rewritten(p, twice), "stands twice"),
    "overlapping tensors": (WEIGHTS, lambda p: rewritten(p, lambda h: h[BIAS].update(data_offsets=[0, 128])), "begins"),
    "a size that isn't one": (WEIGHTS, lambda p: rewritten(p, lambda h: h[BIAS].update(shape=[-1])), "expected sizes"),
    "a huge size": (WEIGHTS, lambda p: rewritten(p, lambda h: h[BIAS].update(shape=[10**9])), "expected 4,000,000,000"),
    "an unknown type": (WEIGHTS, lambda p: rewritten(p, lambda h: h[BIAS].update(dtype="Q4")), "has the type 'Q4'"),
    "integers for weights": (WEIGHTS, lambda p: rewritten(p, lambda h: h[BIAS].update(dtype="I32")), "integer instead"),
    "exchanged tensors": (WEIGHTS, lambda p: rewritten(p, exchanged), "doesn't hold what was saved"),
    "a flipped bit": (WEIGHTS, flipped, "doesn't hold what was saved"),
    "unknown metadata": (WEIGHTS, lambda p: rewritten(p, lambda h: h["__metadata__"].update(x="")), "unknown metadata"),
    "weights linked": (WEIGHTS, linked, "outside its folder"),
    "a list": (JSON, lambda p: p.write_text("[]"), "isn't an object with keys"),
    "brackets without end": (JSON, lambda p: p.write_text("[" * 100_000), "nested too deeply"),
    "no UTF-8": (JSON, lambda p: p.write_bytes(b'{"\xff": 1}'), "isn't UTF-8: byte 0xff at 2"),
    "a key twice": (JSON, lambda p: p.write_text('{"format": 1, ' + p.read_text()[1:]), "'format' stands twice"),
    "half a pair": (JSON, lambda p: edited(p, lambda s: s["parts"].update({"\ud800": 1})), "surrogate"),
    "not finite": (JSON, lambda p: edited(p, lambda s: s["host"].update(dim=math.nan)), "NaN isn't a finite number"),
    "too large": (JSON, lambda p: p.write_text(" " * (reading.LARGEST_SETTINGS + 1)), "are read as text"),
    "linked": (JSON, linked, "outside its folder"),
    "a pipe": (JSON, piped, "has no tokenflex.json"),
    "another description": (JSON, lambda p: edited(p, lambda s: s["host"].update(dim=64), True), "says something else"),
    "a damaged digest": (JSON, lambda p: edited(p, lambda s: s.update(weights="sha256:1")), "and 64 digits"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_parts(parts, host, name):
    file, change, words = FILES[name]
    change(parts / file)
    with pytest.raises(ConfigError) as caught:
        tokenflex.load_parts(parts, host=host)
    assert words in str(caught.value)


SETTINGS = {
    "format as a boolean": (lambda s: s.update(format=True), "format True"),
    "an unknown key": (lambda s: s.update(code="x"), r"unknown key\(s\) \['code'\]"),
    "a number for a name": (lambda s: s["parts"]["router"].update(name=3), "isn't described by a name"),
    "a path for a name": (lambda s: s["parts"]["router"].update(name="../avg"), "isn't installed"),
    "a number for windows": (lambda s: s["parts"]["scaler"]["config"].update(windows=3), "windows"),
    "a number for settings": (lambda s: s["parts"]["router"].update(config=3), "isn't described by a name and its"),
    "a boolean for an integer": (lambda s: s["parts"]["router"]["config"].update(heads=True), "must be an integer"),
    "dropping more than all": (lambda s: s["parts"]["router"]["config"].update(dropout=2.0), "dropout"),
    "more words than weights": (lambda s: s["parts"]["router"]["config"].update(text_tokens=10**9), "wrong shapes"),
    "a dim of a billion": (lambda s: s["host"].update(dim=10**9), "expected an integer from 1 to"),
    "a grid of a billion": (lambda s: s["host"].update(grid=[10**9, 1]), "rows and columns, each 1 to"),
    "a dotted type of host": (lambda s: s["host"].update(model_type="../x"), "isn't the bare name"),
    "an unknown option": (lambda s: s["host"]["options"].update(scop="x"), r"not \['scop'\]. Did you mean 'scope'"),
    "a text for a number": (lambda s: s["host"]["options"].update(vocabulary="x"), "must be an integer or None"),
    "a version that is no text": (lambda s: s["parts"]["router"].update(version=3), "version=3 isn't a text"),
    "no calibration": (lambda s: s.update(escalate=3), "an escalation is described by"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_descriptions_of_parts(parts, host, name):
    change, words = SETTINGS[name]
    edited(parts / JSON, change)
    with pytest.raises(ConfigError, match=words):
        tokenflex.load_parts(parts, host=host)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(parts, host, value):
    put(parts, WEIGHTS, lambda state: state[BIAS].fill_(value))
    edited(parts / JSON, lambda spec: None)
    with pytest.raises(ConfigError, match=r"NaN or infinite values in 'router\.mlp\.0\.bias'"):
        tokenflex.load_parts(parts, host=host)


def test_other_floats_are_floats(parts, host):
    """Weights may be stored in another type of 16 bits or more, and changed by whoever says so."""
    put(parts, WEIGHTS, lambda state: state.update({name: value.bfloat16() for name, value in state.items()}))
    edited(parts / JSON, lambda spec: None)
    loaded = tokenflex.load_parts(parts, host=host).compressor.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    put(parts, WEIGHTS, lambda state: state.update({BIAS: state[BIAS].to(torch.float8_e4m3fn)}))
    with pytest.raises(ConfigError, match="of 8 bits or fewer instead of float"):
        tokenflex.load_parts(parts, host=host)


def test_nothing_is_read_of_weights_that_do_not_fit(parts, host, monkeypatch):
    """Sizes are compared with the file's header before there is memory for a tensor."""
    edited(parts / JSON, lambda spec: spec["parts"]["router"]["config"].update(text_tokens=4000))
    monkeypatch.setattr("safetensors.torch.load", lambda data: pytest.fail("tensors were read"))
    with pytest.raises(ConfigError, match="wrong shapes"):
        tokenflex.load_parts(parts, host=host)


def test_a_level_that_is_not_there(parts, host):
    told = Escalate(threshold=0.5, levels=(0, 7)).to_dict()
    edited(parts / JSON, lambda spec: spec.update(escalate=told))
    with pytest.raises(InputError, match="7"):
        tokenflex.load_parts(parts, host=host)


CALIBRATED = {
    "threshold": 0.5, "risk": 0.05, "confidence": 0.95, "rows": 20, "loss": 0.0, "settled": 0.5, "of": "own",
    "model": "0" * 32, "options": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "x"}, {"threshold": math.nan}, {"risk": 2}, {"confidence": None}, {"rows": -1}, {"rows": True},
        {"rows": 0.5}, {"loss": math.nan}, {"settled": 1.5}, {"of": "other"}, {"model": "x"}, {"model": 3},
        {"options": []}, {"options": {3: 4}}, {"further": 1},
    ],
)  # fmt: skip
def test_calibrations(change):
    Calibration.from_dict(CALIBRATED)
    with pytest.raises(ConfigError):
        Calibration.from_dict(CALIBRATED | change)


MODELS = {
    "a list": (lambda d: (d / "config.json").write_text("[]"), "holds list, expected an object"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), "isn't valid JSON"),
    "no UTF-8": (lambda d: (d / "config.json").write_bytes(b"\xff"), "isn't UTF-8"),
    "another type": (lambda d: configured(d, lambda c: c.update(model_type="llava")), "expected 'tokenflex'"),
    "a number for a host": (lambda d: configured(d, lambda c: c.update(host=3)), "doesn't say its model_type"),
    "a host of no type": (lambda d: configured(d, lambda c: c["host"].pop("model_type")), "its model_type"),
    "a number for parts": (lambda d: configured(d, lambda c: c.update(parts=3)), "expected an object"),
    "a number for a size": (
        lambda d: configured(d, lambda c: c["host"]["text_config"].update(hidden_size="x")), "hidden_size"),
    "a billion layers": (
        lambda d: configured(d, lambda c: c["host"]["text_config"].update(num_hidden_layers=10**9)),
        "num_hidden_layers=1000000000"),
    "dropping more than all": (
        lambda d: configured(d, lambda c: c["host"]["text_config"].update(attention_dropout=2.0)),
        "expected a probability"),
    "truncated": (lambda d: (d / MODEL).write_bytes((d / MODEL).read_bytes()[:-3]), "cut short"),
    "no weights": (lambda d: (d / MODEL).unlink(), "can't be loaded"),
    "a flipped bit of the parts": (
        lambda d: put(d, MODEL, lambda s: s.update({f"compressor.{BIAS}": s[f"compressor.{BIAS}"] + 1})),
        "saved with other weights of the parts"),
    "integers in the host": (
        lambda d: rewritten(d / MODEL, lambda h: h["host.lm_head.weight"].update(dtype="I32")), "is I32, expected"),
    "NaN in the host": (
        lambda d: put(d, MODEL, lambda s: s["host.lm_head.weight"].fill_(torch.nan)), "NaN or infinite values"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_saved_models(model, name):
    change, words = MODELS[name]
    change(model)
    with pytest.raises(ConfigError) as caught:
        FlexModel.from_pretrained(model)
    assert words in str(caught.value)


def test_parts_inside_a_model_are_checked_without_its_host(model):
    assert set(of_host(str(model))) == {"scaler", "router", "voter", "policy"}
    put(model, MODEL, lambda state: state[f"compressor.{BIAS}"].add_(1))
    with pytest.raises(ConfigError, match="saved with other weights of the parts"):
        of_host(str(model))


def test_a_model_in_another_type_is_the_one_that_was_saved(model):
    assert FlexModel.from_pretrained(model, dtype=torch.bfloat16).host.dtype == torch.bfloat16
    config = json.loads((model / "config.json").read_text())
    assert config["parts"]["weights"].startswith("blake2b:")
    assert "weights" not in FlexModel.from_pretrained(model).config.parts


def test_an_index_names_files_of_its_folder(model):
    (model / MODEL).rename(model.parent / MODEL)
    for name, words in (("../model.safetensors", "isn't the bare name"), ("a.safetensors", "lacks a.safetensors")):
        (model / loadable.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ConfigError, match=words):
            FlexModel.from_pretrained(model)


COMPOSED = {
    "a projector of a million layers": (lambda c: c.update(projector="mlp999999x_gelu"), "1 to 16 layers"),
    "a number for a projector": (lambda c: c.update(projector=3), "projector=3"),
    "a side of a billion": (lambda c: c.update(image_size=[10**9, 1]), "each from 1 to"),
    "another grid": (lambda c: c.update(grid=[2, 2]), "the encoder makes"),
    "a word that isn't there": (lambda c: c.update(image_token_id=10**6), "must be less than the"),
    "a number for a language model": (lambda c: c.update(text_config=3), "doesn't say its model_type"),
    "an encoder without end": (
        lambda c: c["vision"]["config"].update(num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_models(saved, tmp_path, name):
    change, words = COMPOSED[name]
    folder = shutil.copytree(saved / "composed", tmp_path / "composed")
    edited(folder / "config.json", change)
    with pytest.raises(ConfigError) as caught:
        ComposedForConditionalGeneration.from_pretrained(folder)
    assert words in str(caught.value)


RELEASED = {
    "a billion layers": ("config.json", lambda c: c.update(num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
    "a text for a size": ("vision_tower/config.json", lambda c: c.update(hidden_size="x"), "settings of a LLaVA-NeXT"),
    "an unknown activation": (
        "vision_tower/config.json",
        lambda c: c.update(hidden_act="x"),
        "settings of a LLaVA-NeXT",
    ),
    "brackets": ("config.json", lambda c: c.update(image_grid_pinpoints="[" * 5000), "image_grid_pinpoints"),
    "a tower elsewhere": ("config.json", lambda c: c.update(mm_vision_tower="../../x"), "leads out of"),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints(tmp_path, name):
    file, change, words = RELEASED[name]
    source = shutil.copytree(DATA / "e2e_g8" / "checkpoint", tmp_path / "source")
    edited(source / file, change)
    with pytest.raises(ConfigError) as caught:
        conversion.convert(source, tmp_path / "out")
    assert words in str(caught.value)


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "NaN or infinite"), (None, "aren't floats")])
def test_weights_of_released_checkpoints(tmp_path, value, words):
    source = shutil.copytree(DATA / "e2e_g8" / "checkpoint", tmp_path / "source")
    name = "lm_head.weight"
    put(source, MODEL, lambda s: s.update({name: s[name].int() if value is None else torch.full_like(s[name], value)}))
    with pytest.raises(ConfigError, match=words):
        conversion.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


RECIPES = {
    "a tag": ("host: !!python/object/apply:os.system ['true']", "isn't valid YAML"),
    "an alias": ("host: &a x\ndata: *a", "aliases"),
    "a key twice": ("host: a\nhost: b", "stands twice"),
    "brackets": ("host: " + "[" * 20_000, "nested too deeply"),
    "no UTF-8": (b"host: \xff", "isn't UTF-8"),
    "a number for a name": ("stage: 4\nhost: 3\ndata: x\noutput_dir: o", "host: 3 (int) isn't what the key takes"),
    "a mapping for a name": ("stage: 4\nhost: {a: b}\ndata: x\noutput_dir: o", "host: {'a': 'b'} (dict) isn't what"),
    "a text for a number": ("stage: 4\nhost: h\ndata: x\noutput_dir: o\nmargin: nan", "margin: 'nan' (str) isn't what"),
    "no number": ("stage: 4\nhost: h\ndata: x\noutput_dir: o\nmargin: .nan", "margin: nan (float) isn't what"),
    "a boolean for a number": ("stage: 4\nhost: h\ndata: x\noutput_dir: o\nseed: true", "seed: True (bool) isn't what"),
    "a number without end": ("stage: 4\nhost: h\ndata: x\noutput_dir: o\nmargin: 1" + "0" * 400, "margin: 1000"),
    "a negative rate": ("stage: 4\nhost: h\ndata: x\noutput_dir: o\nrouter_rate: -1.0", "must be a number, 0 or more"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(tmp_path, name):
    text, words = RECIPES[name]
    page = tmp_path / "recipe.yaml"
    page.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        recipe.read(page)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"global_step": true}'])
def test_states_of_runs(parts, content):
    (parts / "trainer_state.json").write_bytes(content)
    assert "no readable trainer_state.json" in str(fault(parts))


def test_every_refusal_is_ours(parts, host):
    """What was refused above is of one type, so that callers need to catch no other."""
    (parts / JSON).write_text("3")
    with pytest.raises(TokenFlexError):
        tokenflex.load_parts(parts, host=host)


def test_settings_that_build_nothing_and_experts_side_by_side_are_no_layers():
    loadable.require_sane({"text_config": {"max_window_layers": 80, "num_experts": 512}}, 70, "config.json", 512)
    for name in ("num_hidden_layers", "num_experts"):
        with pytest.raises(ConfigError, match=rf"text_config: {name}=513;"):
            loadable.require_sane({"text_config": {name: 513}}, 70, "config.json", 512)

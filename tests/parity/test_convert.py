"""``tokenflex convert``: released checkpoints to host + parts and back; nothing lost, nothing half-written."""

import importlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenflex
from tests.conftest import image
from tests.parity.golden import DATA
from tokenflex import conversion
from tokenflex.cli.main import main
from tokenflex.conversion.finished import NAME as RECORD
from tokenflex.conversion.processor import SYSTEM
from tokenflex.errors import ConfigError

TENSORS = 100

converting = importlib.import_module("tokenflex.conversion.convert")


@pytest.fixture
def source(tmp_path):
    """A copy of a released folder, to be changed."""
    return Path(shutil.copytree(DATA / "e2e_g8" / "checkpoint", tmp_path / "source"))


def weights(folder):
    """Every tensor of a folder's host or released checkpoint."""
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= settings
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def sharded(folder, count=3):
    """Spread a folder's tensors over shards with an index, round robin."""
    state = load_file(folder / "model.safetensors")
    files = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(files.values()):
        save_file({n: t for n, t in state.items() if files[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def without_router(state):
    for name in [name for name in state if name.startswith("model.router.")]:
        del state[name]


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("golden", ["e2e_g8", "e2e_g24"])
def test_the_check_anyone_can_run(golden, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(DATA / golden / "checkpoint"), str(out), "--check", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"max_abs_diff": 0.0, "source_tensors": TENSORS, "used": TENSORS}
    host = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    assert host.dtype == torch.bfloat16
    flex = tokenflex.load_parts(out, host=host)
    assert (flex.adapter.options["unpad"], flex.compressor.router.attend) == ("released", "tiles")
    assert flex.compressor.num_levels == 5


def test_in_words(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "out"), "--check"]) == 0
    said = capsys.readouterr().out
    assert f"{TENSORS} of {TENSORS} tensors written" in said
    assert "largest difference between both layouts: 0" in said


@pytest.mark.parametrize("shards", [1, 3])
def test_round_trip_is_bit_exact(source, tmp_path, shards):
    if shards > 1:
        sharded(source, shards)
    out, back = tmp_path / "out", tmp_path / "back"
    conversion.convert(source, out)
    assert len(list(out.glob("model*.safetensors"))) == shards
    done = conversion.reverse(out, back)
    assert (done.source_tensors, done.used, done.parts) == (TENSORS, TENSORS, True)
    same(weights(source), weights(back))
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    files = (path.relative_to(back) for path in back.rglob("*") if path.is_file())
    assert names == sorted(str(path) for path in files if path.name != RECORD)
    assert (source / "config.json").read_text() == (back / "config.json").read_text()
    if shards > 1:
        index = "model.safetensors.index.json"
        assert (
            json.loads((back / index).read_text())["weight_map"]
            == json.loads((source / index).read_text())["weight_map"]
        )


def test_reverse_of_a_model_trained_further(source, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    conversion.convert(source, out)
    flex = tokenflex.load_parts(out, host=AutoModelForImageTextToText.from_pretrained(out, dtype=torch.bfloat16))
    with torch.no_grad():
        flex.compressor.router.mlp[0].bias += 1
        flex.host.lm_head.weight += 1
    flex.compressor.bfloat16()
    flex.save_parts(out)
    flex.host.save_pretrained(out)
    assert main(["convert", str(out), str(back), "--reverse", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["used"] == TENSORS
    one, other = weights(source), weights(back)
    changed = [name for name in one if not torch.equal(one[name], other[name])]
    assert sorted(changed) == ["lm_head.weight", "model.router.router.0.bias"]


def test_reverse_needs_a_converted_folder(source, tmp_path):
    with pytest.raises(ConfigError, match=r"shards\.json is missing"):
        conversion.reverse(source, tmp_path / "out")


def test_shards_convert_as_one_file_does(source, tmp_path):
    conversion.convert(source, tmp_path / "one")
    sharded(source)
    conversion.convert(source, tmp_path / "three")
    same(weights(tmp_path / "one"), weights(tmp_path / "three"))
    same(*(load_file(tmp_path / name / "tokenflex.safetensors") for name in ("one", "three")))


def left_behind(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def drop(name):
    return lambda state: state.pop(name)


def add(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("model.surprise", torch.zeros(2)), r"don't have: \['model\.surprise'\]"),
        (drop("lm_head.weight"), r"host: tensors that are missing \['language_model\.lm_head\.weight'\]"),
        (drop("model.router.voter"), r"router: tensors that are missing \['voter\.weight'\]"),
        (add("model.norm.weight", torch.zeros(3)), r"shape doesn't fit config\.json: .*norm\.weight \(3,\)"),
        (add("model.router.voter", torch.zeros(3, 1)), r"router's tensors don't fit .*voter\.weight \(3,\)"),
        (
            add("model.vision_tower.vision_tower.vision_model.embeddings.position_ids", torch.tensor([[1, 0, 2]])),
            "isn't 0, 1, 2",
        ),
    ],
)
def test_tensors_that_do_not_add_up_are_refused_and_nothing_is_written(source, tmp_path, change, message):
    rewrite(source, change)
    with pytest.raises(ConfigError, match=message):
        conversion.convert(source, tmp_path / "out")
    assert left_behind(tmp_path) == ["source"]


def test_buffers_of_old_transformers_are_accounted_for(source, tmp_path):
    buffers = {
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(65)[None],
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    rewrite(source, lambda state: state.update(buffers))
    done = conversion.convert(source, tmp_path / "out")
    assert done.source_tensors == done.used == TENSORS + 2
    assert conversion.largest_difference(source, tmp_path / "out") == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llava"}, "model_type='llava'"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear'"),
        ({"vis_token_granularity": None}, "neither vis_token_granularity"),
        ({"vis_token_granularity": [7, 64]}, "granularity 7"),
        ({"mm_vision_tower": "someone/else"}, "someone/else"),
        ({"image_grid_pinpoints": "nonsense"}, "image_grid_pinpoints='nonsense'"),
    ],
)
def test_settings_stock_llava_next_cannot_express_are_refused(source, tmp_path, settings, message):
    configure(source, **settings)
    with pytest.raises(ConfigError, match=message):
        conversion.convert(source, tmp_path / "out")
    assert left_behind(tmp_path) == ["source"]


def test_pickles_are_never_read(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*can run code"):
        conversion.convert(source, tmp_path / "out")


def test_a_damaged_file_is_named(source, tmp_path):
    (source / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"model\.safetensors isn't safetensors: it has 7 bytes"):
        conversion.convert(source, tmp_path / "out")


def test_an_index_its_shards_do_not_bear_out_is_refused(source, tmp_path):
    sharded(source)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost"] = sorted(index["weight_map"].values())[0]
    path.write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model\.ghost"):
        conversion.convert(source, tmp_path / "out")


@pytest.mark.parametrize("step", ["_keep_small_files", "_verify", "generation_config"])
def test_an_interrupted_conversion_leaves_nothing(source, tmp_path, monkeypatch, step):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(converting, step, stop)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(source, tmp_path / "out")
    assert left_behind(tmp_path) == ["source"]


def test_an_existing_folder_is_not_touched(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        conversion.convert(source, out)
    assert left_behind(out) == ["mine.txt"]


def test_a_repository_that_cannot_be_reached(tmp_path):
    with pytest.raises(ConfigError, match="nobody/nothing"):
        conversion.convert("nobody/nothing", tmp_path / "out")


@pytest.fixture
def stage_three(source):
    """A checkpoint before router training."""
    configure(source, router_select=False)
    rewrite(source, without_router)
    return source


def test_a_stage_three_checkpoint_becomes_a_host_without_router(stage_three, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(stage_three), str(out), "--check"]) == 0
    assert "no router in this checkpoint" in capsys.readouterr().out
    assert conversion.largest_difference(stage_three, out) == 0.0
    flex = tokenflex.load_parts(out, host=AutoModelForImageTextToText.from_pretrained(out))
    (decision,) = flex.decide(**converting_example(stage_three))
    assert decision.level == 4
    assert decision.tokens == decision.of
    same(weights(stage_three), weights_back(out, tmp_path / "back"))


def converting_example(folder):
    return conversion.check.example(folder)


def weights_back(out, back):
    conversion.reverse(out, back)
    return weights(back)


def test_router_tensors_without_router_select_are_refused(source, tmp_path):
    configure(source, router_select=False)
    with pytest.raises(ConfigError, match="router"):
        conversion.convert(source, tmp_path / "out")


@pytest.mark.parametrize("scale", [True, [1, 4, 16, 64], "[1, 4, 16, 64]"])
def test_m3_checkpoints_have_square_pyramids(scale, tmp_path):
    golden = "e2e_g24" if scale is True else "e2e_g8"
    source = Path(shutil.copytree(DATA / golden / "checkpoint", tmp_path / "source"))
    configure(source, router_select=None, vis_token_granularity=None, matryoshka_vis_token_scale=scale)
    rewrite(source, without_router)
    out = tmp_path / "out"
    assert not conversion.convert(source, out).parts
    assert conversion.largest_difference(source, out) == 0.0
    flex = tokenflex.load_parts(out, host=AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32))
    expected = (1, 9, 36, 144, 576) if scale is True else (1, 4, 16, 64)
    assert flex.compressor.scaler.granularities(flex.adapter.grid) == expected
    (image,) = flex.encode(converting_example(source)).images
    side = image.grid.rows
    planes = image.features.unflatten(1, (side, side)).movedim(-1, 1)
    for level, size in enumerate(expected):
        (scaled,) = flex.compressor.scale([image], [level])
        pooled = torch.nn.functional.adaptive_avg_pool2d(planes, round(size**0.5)).flatten(2).mT
        torch.testing.assert_close(scaled.features, pooled)
    same(weights(source), weights_back(out, tmp_path / "back"))


WORDS = ["<unk>", "<s>", "</s>", ":", "USER", "ASSISTANT", *(f"w{i}" for i in range(58))]


def word_tokenizer(folder, words=WORDS):
    """A tokenizer of as many words as the golden models know."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(":", "isolated")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "w1 w2"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "w3"}]},
    {"role": "user", "content": "w4"},
]


def test_processor_and_conversation_wording(source, tmp_path):
    word_tokenizer(source)
    out = tmp_path / "out"
    conversion.convert(source, out)
    processor = AutoProcessor.from_pretrained(out)
    text = processor.apply_chat_template(TURNS, add_generation_prompt=True)
    assert text == f"{SYSTEM} USER: <image>\nw1 w2 ASSISTANT: w3</s>USER: w4 ASSISTANT:"
    assert processor.apply_chat_template([{"role": "system", "content": "w9"}, TURNS[2]]) == "w9 USER: w4 "
    inputs = processor(images=image(0), text=text, return_tensors="pt")
    flex = tokenflex.load_parts(out, host=AutoModelForImageTextToText.from_pretrained(out))
    (decision,) = flex.decide(**inputs)
    assert int((inputs["input_ids"] == 64).sum()) == decision.of
    made = flex.generate(**inputs, max_new_tokens=3)
    assert made.shape[1] == inputs["input_ids"].shape[1] + 3
    assert not (made[:, -3:] == 64).any()
    same(weights(source), weights_back(out, tmp_path / "back"))
    assert (tmp_path / "back" / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()


def test_a_tokenizer_of_another_model_is_refused(source, tmp_path):
    word_tokenizer(source, WORDS[:50])
    with pytest.raises(ConfigError, match="50 tokens and the model 64"):
        conversion.convert(source, tmp_path / "out")
    assert left_behind(tmp_path) == ["source"]


def test_a_sentencepiece_tokenizer(source, tmp_path):
    """Released folders hold ``tokenizer.model``."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="comes with the extra [test]")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the image {i} shows what a person sees in it" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(source / "tokenizer"), vocab_size=64, model_type="bpe", byte_fallback=False,
        bos_id=1, eos_id=2, unk_id=0, minloglevel=2,
    )  # fmt: skip
    (source / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    conversion.convert(source, out)
    processor = AutoProcessor.from_pretrained(out)
    ids = processor.tokenizer("<image>\nthe image")["input_ids"]
    expected = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model")).encode("the image")
    assert 64 in ids
    assert ids[-len(expected) + 1 :] == expected[1:]


def kept(out, change):
    """Change what a converted folder says of the released layout's shards."""
    path = out / "released" / "shards.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(change(told)))


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


OUTSIDE = ["../../X.safetensors", "{root}/victim.safetensors", "a/../b.safetensors", "sub/x.safetensors", "config.json",
           "..", "", "x.safetensors/", "C:x.safetensors", "a\x00.safetensors", 3, None]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_way_back_writes_no_file_elsewhere(source, tmp_path, name):
    """A name in a model's own file neither replaces a file nor makes one outside the output."""
    out = tmp_path / "deep" / "out"
    conversion.convert(source, out)
    (tmp_path / "victim.safetensors").write_text("mine")
    name = name.format(root=tmp_path) if isinstance(name, str) else name
    kept(out, lambda told: dict.fromkeys(told, name))
    before = everything(tmp_path)
    with pytest.raises(ConfigError, match=r"shards\.json names the file .* a shard is a \.safetensors file"):
        conversion.reverse(out, tmp_path / "deep" / "back")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["../outside.safetensors", "{root}/outside.safetensors", "sub/../x.safetensors"])
def test_shards_are_read_from_the_checkpoint_s_folder_only(source, tmp_path, name):
    (source / "model.safetensors").rename(tmp_path / "outside.safetensors")
    weight_map = dict.fromkeys(load_file(tmp_path / "outside.safetensors"), name.format(root=tmp_path))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"index\.json names the file .*outside|x\.safetensors'"):
        conversion.convert(source, tmp_path / "out")
    assert left_behind(tmp_path) == ["outside.safetensors", "source"]


@pytest.mark.parametrize("told", [[], {"weight_map": None}, {}, {"weight_map": ["a"]}])
def test_an_index_of_another_form_is_refused(source, tmp_path, told):
    sharded(source)
    (source / "model.safetensors.index.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"index\.json (holds no object|doesn't say which file)"):
        conversion.convert(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["../tower", "{root}/tower", "linked"])
def test_the_vision_tower_is_read_from_the_checkpoint_s_folder_only(source, tmp_path, name):
    (tmp_path / "tower").mkdir()
    own = json.loads((source / "config.json").read_text())["mm_vision_tower"]
    shutil.copytree(source / own, tmp_path / "tower", dirs_exist_ok=True)
    (source / "linked").symlink_to(tmp_path / "tower")
    configure(source, mm_vision_tower=name.format(root=tmp_path))
    with pytest.raises(ConfigError, match=r"leads out of .* Put the file itself into that folder"):
        conversion.convert(source, tmp_path / "out")


def test_links_to_files_elsewhere_are_not_copied(source, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (source / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"'notes\.txt' leads out of"):
        conversion.convert(source, tmp_path / "out")
    (source / "notes.txt").unlink()
    conversion.convert(source, tmp_path / "out")
    (tmp_path / "out" / "released" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"'released/notes\.txt' leads out of"):
        conversion.reverse(tmp_path / "out", tmp_path / "back")
    assert left_behind(tmp_path) == ["out", "secret", "source"]


def test_links_inside_the_folder_and_the_hub_s_cache_are_followed(source, tmp_path):
    """The hub's cache keeps files as links to ``blobs`` beside ``snapshots``."""
    (source / "notes.txt").write_text("notes")
    (source / "again.txt").symlink_to("notes.txt")
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "revision", tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        place = snapshot / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / str(number))
        place.symlink_to(blobs / str(number))
    conversion.convert(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "released" / "again.txt").read_text() == "notes"
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    same(weights(source), weights_back(tmp_path / "out", tmp_path / "back"))


def test_of_two_conversions_into_one_folder_the_second_waits_and_finds_it_done(source, tmp_path, monkeypatch):
    """The second one comes while the first one is in the middle."""
    out, verify, calls, found, second = tmp_path / "out", converting._verify, [], [], []
    waits = threading.Event()

    def slow(folder):
        calls.append(folder)
        other = threading.Thread(target=lambda: found.append(conversion.convert(source, out, waiting=waits.set)))
        second.append(other)
        other.start()
        assert waits.wait(60)
        verify(folder)

    monkeypatch.setattr(converting, "_verify", slow)
    assert conversion.convert(source, out).written
    second[0].join(60)
    assert [done.written for done in found] == [False]
    assert len(calls) == 1
    assert left_behind(tmp_path) == ["out", "source"]
    same(weights(source), weights_back(out, tmp_path / "back"))

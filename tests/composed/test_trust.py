"""A composed model's file is data: it names no code, no path and no repository, whatever it says."""

import json
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel, DPTConfig

import tokenflex
from tests.composed.conftest import OPEN_CLIP, TIMM, VISION, make
from tests.composed.test_compose import compose, features
from tokenflex.composed import ComposedForConditionalGeneration, vision
from tokenflex.errors import ConfigError


class Mark:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def mark(tmp_path):
    """(a pickle, the file that its code would leave)"""
    (tmp_path / "w.bin").write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    return tmp_path / "w.bin", tmp_path / "mark"


@pytest.fixture
def calls(monkeypatch):
    """What timm is asked for, by us and by open_clip; like old versions it unpickles what it is told to."""
    import timm

    made, create = [], timm.create_model

    def recording(name, checkpoint_path="", **options):
        made.append({"name": name, "checkpoint_path": checkpoint_path, **options})
        if checkpoint_path:
            pickle.loads(open(checkpoint_path, "rb").read())  # noqa: SIM115
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", recording)
    return made


def saved(kind, folder, change):
    """A composed model's folder whose ``config.json`` was changed."""
    make(kind).model.save_pretrained(folder)
    return rewritten(folder, change)


def rewritten(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return folder


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


def test_the_pickle_would_leave_its_mark(mark):
    pickle.loads(mark[0].read_bytes()).close()
    assert mark[1].exists()


TIMM_SAYS = {
    "a pickle": lambda v, path: v["options"].update(checkpoint_path=str(path)),
    "a pickle under another name": lambda v, path: v["options"].update(pretrained_cfg={"file": str(path)}),
    "an overlay": lambda v, path: v["options"].update(pretrained_cfg_overlay={"file": str(path)}),
    "weights of its own": lambda v, path: v["options"].update(pretrained=True),
    "a repository": lambda v, path: v.update(name="hf-hub:timm/resnet18.a1_in1k"),
    "a folder": lambda v, path: v.update(name=f"local-dir:{path.parent}"),
    "a folder of no scheme": lambda v, path: v.update(name=f"{path.parent}/vit_tiny_patch16_224"),
    "a path as a word": lambda v, path: v["options"].update(pos_embed=str(path)),
    "a table as a word": lambda v, path: v["options"].update(depth={"a": 1}),
    "an endless number": lambda v, path: v["options"].update(mlp_ratio=float("inf")),
    "one more key": lambda v, path: v.update(kwargs={"checkpoint_path": str(path)}),
    "no options": lambda v, path: v.update(options=None),
    "a layer": lambda v, path: v.update(layer="-1"),
}


@pytest.mark.parametrize("name", TIMM_SAYS)
def test_what_a_file_may_not_say_to_timm(name, tmp_path, mark, calls):
    folder = saved("timm", tmp_path / "model", lambda config: TIMM_SAYS[name](config["vision"], mark[0]))
    calls.clear()
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(folder)
    assert calls == []
    assert not mark[1].exists()


OPEN_CLIP_SAYS = {
    "a repository": lambda v, path: v["vision_cfg"].update(timm_model_name="hf-hub:timm/resnet18.a1_in1k"),
    "a folder": lambda v, path: v["vision_cfg"].update(timm_model_name=f"local-dir:{path.parent}"),
    "weights": lambda v, path: v["vision_cfg"].update(timm_model_name="resnet18", timm_model_pretrained=True),
    "one more setting": lambda v, path: v["vision_cfg"].update(checkpoint_path=str(path)),
    "an argument of a layer": lambda v, path: v["vision_cfg"].update(norm_kwargs={"device": "cuda"}),
    "arguments that are none": lambda v, path: v["vision_cfg"].update(act_kwargs=["a"]),
    "a path as a word": lambda v, path: v["vision_cfg"].update(pool_type=str(path)),
    "no settings": lambda v, path: v.update(vision_cfg="ViT-B-32"),
    "a width": lambda v, path: v.update(embed_dim={"a": 1}),
    "one more key": lambda v, path: v.update(text_cfg={"hf_model_name": "someone/model"}),
}


@pytest.mark.parametrize("name", OPEN_CLIP_SAYS)
def test_what_a_file_may_not_say_to_open_clip(name, tmp_path, mark, calls):
    folder = saved("open_clip", tmp_path / "model", lambda config: OPEN_CLIP_SAYS[name](config["vision"], mark[0]))
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(folder)
    assert calls == []


TRANSFORMERS_SAYS = {
    "timm with arguments": lambda v, path: v.update(
        config={"model_type": "timm_wrapper", "architecture": "resnet18", "image_size": 32, "patch_size": 8,
                "model_args": {"checkpoint_path": str(path)}}),
    "timm as a part": lambda v, path: v.update(
        config={**DPTConfig().to_dict(), "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}}),
    "a type nobody knows": lambda v, path: v["config"].update(model_type="mine"),
    "no type": lambda v, path: v["config"].pop("model_type"),
    "no settings": lambda v, path: v.update(config=[]),
    "a model without patches": lambda v, path: v.update(config={"model_type": "llama"}),
    "one more key": lambda v, path: v.update(trust_remote_code=True),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS_SAYS)
def test_what_a_file_may_not_say_to_transformers(name, tmp_path, mark, calls):
    folder = saved("video", tmp_path / "model", lambda config: TRANSFORMERS_SAYS[name](config["vision"], mark[0]))
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(folder)
    assert calls == []
    assert not mark[1].exists()


NAMES_CODE = {
    "auto_map": {"AutoModel": "someone/else--code.Model", "AutoModelForCausalLM": "someone/else--code.Model"},
    "attn_implementation": "someone/kernels",
    "_attn_implementation": "someone/kernels",
    "_name_or_path": "someone/else",
    "trust_remote_code": True,
}


def test_names_of_code_and_repositories_are_passed_over(tmp_path):
    """Published configurations have some; they are of no use once the parts are together."""

    def change(config):
        config.update({key: NAMES_CODE[key] for key in ("attn_implementation", "_attn_implementation")})
        config["text_config"].update(NAMES_CODE)
        config["vision"]["config"].update(NAMES_CODE)

    model = load(saved("video", tmp_path, change))
    for part in (model, model.vision_tower.trunk, model.language_model):
        assert part.config._attn_implementation in ("sdpa", "eager")
        assert not hasattr(part.config, "auto_map")
    assert torch.equal(features(model), features(make("video").model))
    asked = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    assert asked.config._attn_implementation == "eager"


@pytest.mark.parametrize("text", [{"vocab_size": 8}, {"model_type": 3}])
def test_a_language_model_without_a_type_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="doesn't say its model_type"):
        load(saved("video", tmp_path, lambda config: config.update(text_config=text)))


SOURCES = [
    {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "w.bin"}},
    {"model_type": "timm_wrapper", "architecture": "hf-hub:timm/resnet18"},
    {"model_type": "timm_backbone", "backbone": "local-dir:/tmp"},
    {"model_type": "timm_backbone", "backbone": "resnet18", "backbone_kwargs": {"pretrained_cfg": {"file": "w.bin"}}},
]


@pytest.mark.parametrize("part", SOURCES)
@pytest.mark.parametrize("kind", ["composed", "with parts"])
def test_weights_of_timm_from_elsewhere_are_refused_at_any_depth(tmp_path, part, kind):
    def change(config):
        told = config["text_config"] if kind == "composed" else config["host"]["text_config"]
        told["vision_config"] = part

    if kind == "composed":
        folder = saved("video", tmp_path, change)
    else:
        tokenflex.wrap(make("video").model).save_pretrained(tmp_path)
        folder = rewritten(tmp_path, change)
    with pytest.raises(ConfigError, match="names weights elsewhere than in its folder"):
        load(folder)


def test_a_host_saved_with_its_parts_names_no_kernels(tmp_path):
    tokenflex.wrap(make("video").model).save_pretrained(tmp_path)
    kernels = {"attn_implementation": "someone/kernels", "_attn_implementation": "someone/kernels"}
    model = load(rewritten(tmp_path, lambda config: (config.update(kernels), config["host"].update(kernels))))
    assert model.host.config._attn_implementation in ("sdpa", "eager")
    assert (
        AutoModelForImageTextToText.from_pretrained(
            tmp_path, attn_implementation="eager"
        ).host.config._attn_implementation
        == "eager"
    )


@pytest.mark.parametrize("given", ["timm", 3, None, []])
def test_a_vision_part_of_another_form_is_refused(given):
    with pytest.raises(ConfigError, match="vision source 'None' isn't known"):
        vision.rebuild_tower(given)


TINY = "timm/vit_tiny_patch16_224"
REFUSED = {
    r"features_only=True can't be read back": (TINY, {**TIMM, "features_only": True}),
    r"norm_layer=.* can't be read back": (TINY, {**TIMM, "norm_layer": torch.nn.LayerNorm}),
    r"pos_embed='a/b' can't be read back": (TINY, {**TIMM, "pos_embed": "a/b"}),
    r"\['jit'\] couldn't be loaded again": ("open_clip/tiny", {"jit": True}),
    r"vision_cfg: surprise=1 can't be read back": (
        "open_clip/tiny", {"vision_cfg": {**OPEN_CLIP["vision_cfg"], "surprise": 1}}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_could_not_be_loaded_again_is_refused_when_composing(message):
    name, options = REFUSED[message]
    with pytest.raises(ConfigError, match=message):
        compose(name, vision_options=options, **({"image_size": 32} if name == TINY else {}))


def test_where_weights_come_from_is_not_saved(tmp_path):
    """A user's own code may load any weights; the saved model has them with it."""
    import timm
    from safetensors.torch import save_file

    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, **TIMM).eval()
    save_file(trunk.state_dict(), tmp_path / "w.safetensors")
    told = {"file": str(tmp_path / "w.safetensors"), "num_classes": 10}
    given = {**TIMM, "pretrained_cfg_overlay": told}
    model = compose(TINY, pretrained=True, vision_options=given, image_size=32).model
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    assert model.config.vision["options"] == {**TIMM, "img_size": [32, 32]}
    (tmp_path / "w.safetensors").unlink()
    assert torch.equal(features(model), features(load(tmp_path / "model")))


def test_an_overlay_that_changes_sizes_is_refused():
    given = {**TIMM, "pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
    with pytest.raises(ConfigError, match=r"it couldn't be loaded again\. Say its sizes by themselves"):
        compose(TINY, vision_options=given)


@pytest.mark.parametrize(
    "options", [{"force_quick_gelu": True}, {"force_patch_dropout": 0.5}, {"precision": "fp32", "output_dict": True}]
)
def test_options_of_open_clip_are_saved_or_make_no_difference(options, tmp_path):
    model = compose("open_clip/tiny", vision_options=options).model
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(features(model), features(loaded))
    if "force_patch_dropout" in options:
        assert loaded.vision_tower.trunk.patch_dropout.prob == 0.5


def test_a_type_that_transformers_does_not_know_is_refused_when_composing():
    class MineConfig(CLIPVisionConfig):
        model_type = "mine"

    class Mine(CLIPVisionModel):
        config_class = MineConfig

    with pytest.raises(ConfigError, match="model_type 'mine' is none that transformers knows"):
        compose(Mine(MineConfig(**VISION)))


def test_settings_of_a_published_encoder_that_its_class_does_not_have_are_left_out(tmp_path):
    config = CLIPVisionConfig(**VISION, auto_map={"AutoModel": "code.Model"}, invented=3)
    model = compose(config).model
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["vision"]["config"]
    assert not {"auto_map", "invented", "_name_or_path"} & set(told)
    assert torch.equal(features(model), features(ComposedForConditionalGeneration.from_pretrained(tmp_path)))
    assert AutoConfig.from_pretrained(tmp_path).vision["config"]["hidden_size"] == VISION["hidden_size"]

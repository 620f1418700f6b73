"""``tokenflex profile``: the whole command on a tiny model, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

import tokenflex
from tokenflex.cli.main import main

SMALL = ("--batch", "1", "--answer", "2", "--runs", "1", "--warm-up", "0", "--level", "-1")


@pytest.fixture(scope="module")
def folder(host, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    for save in (flex.save_pretrained, processor.save_pretrained):
        save(folder / "model")
    for save in (host.save_pretrained, processor.save_pretrained):
        save(folder / "host")
    flex.save_parts(folder / "parts")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((50, 40, 3), dtype=np.uint8)).save(folder / "black.png", exif=exif)
    return folder


def ran(capsys, *words):
    code = main(["profile", *map(str, words)])
    return code, capsys.readouterr()


def test_a_saved_model_as_json(capsys, folder):
    asked = ("--budget", "ratio=0.5,floor=1", "--prompt", "w1 w2", "--mix", "AI2D", "0.3")
    code, out = ran(capsys, folder / "model", *SMALL, "--json", *asked)
    assert code == 0
    told = json.loads(out.out)
    assert told["request"] == "scikit-image's cat (451 x 300); 'w1 w2'"
    (batch,) = told["batches"]
    names = [setting["name"] for setting in batch["settings"]]
    assert names == ["vanilla", "level 0", "level 4", "routed", "routed, ratio=0.5,floor=1", "mix AI2D", "mix 0.3"]
    assert batch["settings"][4]["tokens"] <= batch["settings"][0]["tokens"] / 2
    assert told["surroundings"]["parts"]["router"] == "ConstantRouter"
    assert told["warnings"][0].startswith("Only 1 run(s) per setting")


def test_host_and_parts_as_tables_and_files(capsys, folder, tmp_path):
    words = ("--host", folder / "host", "--parts", folder / "parts", "--image", folder / "black.png", "--attn", "eager")
    code, out = ran(capsys, *words, *SMALL, "--dtype", "float32", "--out", tmp_path / "out")
    assert code == 0
    assert "Batch of 1 (1 image)" in out.out
    assert "black.png (50 x 40)" in " ".join(out.out.split())
    assert "the vanilla host" in out.out
    told = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert told["surroundings"]["attention"] == ["eager"]
    assert all(setting["prefill"]["attention"] == [] for setting in told["batches"][0]["settings"])
    assert (tmp_path / "out" / "profile.md").exists()
    page = (tmp_path / "out" / "profile.html").read_text(encoding="utf-8")
    assert "<code>tokenflex profile --host " in page
    assert told["command"].startswith("tokenflex profile --host ")


def test_named_parts_are_said_to_be_untrained(capsys, folder):
    code, out = ran(capsys, "--host", folder / "host", "--router", "avg", "--scaler", "stride", *SMALL, "--json")
    assert code == 0
    told = json.loads(out.out)
    assert told["surroundings"]["parts"]["scaler"] == "StrideScaler"
    assert told["warnings"][-1].startswith("The parts are untrained")


def test_without_any_model_it_is_the_quickstarts(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "model").symlink_to(folder / "model")
    code, out = ran(capsys, *SMALL, "--json")
    assert code == 0
    assert json.loads(out.out)["surroundings"]["parts"]["router"] == "ConstantRouter"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "{}/parts"], "name either MODEL, or --host with --parts or with names of parts"),
        (["{}/model", "--host", "{}/host"], "name either MODEL, or --host"),
        (["{}/model", "--router", "avg"], "brings its own parts; to use others, name its host with --host"),
        (["--host", "{}/host", "--parts", "{}/parts", "--voter", "mean"], "brings all parts; leave out --voter"),
        (["{}/host"], "is a plain LlavaNextForConditionalGeneration without parts. Give it as --host"),
        (["{}/nothing"], "nothing' doesn't exist"),
        (["{}/model", "--image", "{}/nothing.png"], "nothing.png can't be read"),
        (["{}/model", "--image", "{}"], "can't be read"),
        (["{}/model", "--escalate", "measure=min-margin"], "--escalate measure=min-margin: setting"),
        (["{}/model", "--budget", "half"], "--budget half: write KEY=VALUE"),
        (["{}/model", "--budget", "ration=0.5"], "unknown setting(s) ['ration']"),
        (["{}/model", "--budget", "ratio=much"], "--budget ratio=much: a value has the wrong type"),
        (["{}/model", "--mix", "AI2E"], "mix AI2E: name AI2D, ScienceQA, ChartQA, or a share of the visual tokens"),
        (["{}/model", "--batch", "0"], "--batch 0: a batch has 1 row or more"),
        (["{}/model", "--runs", "0"], "runs=0 and warm_up=3: at least 1 run"),
        (["{}/model", "--level", "9"], "level 9: this scaler has levels 0 (fewest tokens) to 4, or -1"),
    ],
)
def test_refusals_say_how_to_mend_it(capsys, folder, words, message):
    code, out = ran(capsys, *(word.format(folder) for word in words))
    assert code == 1
    assert message in out.err
    assert out.out == ""

"""A saved folder explains itself: to transformers without this package, to people, and to whoever loads it wrongly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, pipeline

import tokenflex
from tokenflex import cards
from tokenflex.errors import ConfigError
from tokenflex.model import FlexModel
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor


@pytest.fixture
def flex():
    torch.manual_seed(0)
    return tokenflex.wrap(tiny_llava_next())


@pytest.fixture
def model(flex, tmp_path):
    flex.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_every_auto_class_loads_it(model, auto):
    assert type(auto.from_pretrained(model)) is FlexModel


@pytest.mark.parametrize("task", ["any-to-any", "image-text-to-text"])
def test_pipelines_know_it(model, task, caplog):
    tiny_llava_next_processor().save_pretrained(model)
    pipe = pipeline(task, model=str(model))
    assert type(pipe.model) is FlexModel
    assert "is not supported" not in caplog.text


def test_what_transformers_serve_reads_names_it(model):
    from transformers.models.auto import modeling_auto

    config = json.loads((model / "config.json").read_text())
    for name in ("MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"):
        names = getattr(modeling_auto, name)
        assert names[config["model_type"]] == config["architectures"][0] == "FlexModel"
        assert names["tokenflex_composed"] == "ComposedForConditionalGeneration"


BLIND = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tokenflex":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
from transformers import AutoModelForImageTextToText
AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
"""
UNTOLD = """
import sys
from transformers import AutoModelForImageTextToText
print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)).__module__)
"""


def run(script, folder, home):
    env = {**os.environ, "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, env=env)


def test_without_the_package_transformers_names_it(model, tmp_path):
    done = run(BLIND, model, tmp_path / "home")
    assert done.returncode != 0
    assert "pip install tokenflex" in done.stderr


def test_with_the_package_no_import_is_needed_where_code_is_trusted(model, tmp_path):
    done = run(UNTOLD, model, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tokenflex.model.flex"


def test_a_saved_model_is_saved_again_without_copies_of_our_code(model, tmp_path):
    again = AutoModelForImageTextToText.from_pretrained(model, trust_remote_code=True)
    again.save_pretrained(tmp_path / "again")
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {path.name for path in model.iterdir()}
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {cards.CODE_NAME}
    mine, theirs = (json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "again"))
    assert mine["auto_map"] == theirs["auto_map"]
    assert AutoConfig.from_pretrained(tmp_path / "again").model_type == "tokenflex"


def test_the_card_of_a_model(flex, model):
    card = (model / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained" in card
    assert "| scaler | `average-pool` |" in card
    counts = flex.compressor.scaler.granularities(flex.adapter.grid)
    assert f"Levels: {len(counts)};" in card
    assert ": " + ", ".join(map(str, counts)) in card
    assert "base_model" not in card


def test_parts_know_the_host_they_were_made_for(flex, tmp_path):
    flex.host.config._name_or_path, flex.host.config._commit_hash = "someone/llava", "abc123"
    flex.save_parts(tmp_path)
    host = json.loads((tmp_path / "tokenflex.json").read_text())["host"]
    assert (host["name"], host["revision"]) == ("someone/llava", "abc123")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "base_model: someone/llava\n" in card
    assert "revision `abc123`" in card
    assert "license:" in card
    again = tokenflex.load_parts(tmp_path, host=flex.host)
    assert all(
        torch.equal(a, b) for a, b in zip(flex.compressor.parameters(), again.compressor.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["/home/me/models/llava", "llava", "./a/b", "a/b/c", "", None, 3])
def test_a_folder_of_this_machine_is_not_told(flex, tmp_path, name):
    flex.host.config._name_or_path = name
    flex.save_parts(tmp_path)
    assert "name" not in json.loads((tmp_path / "tokenflex.json").read_text())["host"]
    assert "base_model" not in (tmp_path / "README.md").read_text()


def test_a_folder_that_looks_like_a_repository_is_not_told(flex, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone/llava").mkdir(parents=True)
    flex.host.config._name_or_path = "someone/llava"
    flex.save_parts(tmp_path / "parts")
    assert "name" not in json.loads((tmp_path / "parts/tokenflex.json").read_text())["host"]


def test_parts_beside_a_model_leave_its_card(flex, model):
    card = (model / "README.md").read_text()
    flex.save_parts(model)
    assert (model / "README.md").read_text() == card
    assert card.startswith("---")


def test_a_card_of_ones_own_stays(flex, tmp_path):
    (tmp_path / "README.md").write_text("my words")
    flex.save_parts(tmp_path)
    flex.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my words"


def test_each_kind_of_folder_names_the_way_to_load_it(flex, model, tmp_path):
    flex.save_parts(tmp_path / "parts")
    with pytest.raises(ConfigError, match=r"holds parts only.*tokenflex\.load_parts\("):
        FlexModel.from_pretrained(tmp_path / "parts")
    with pytest.raises(ConfigError, match=r"holds a whole model.*AutoModelForImageTextToText\.from_pretrained\("):
        tokenflex.load_parts(model, host=flex.host)
    flex.host.save_pretrained(tmp_path / "host")
    with pytest.raises(ConfigError, match="holds a model of type 'llava_next' without parts: load that as the host"):
        tokenflex.load_parts(tmp_path / "host", host=flex.host)
    with pytest.raises(ConfigError, match=r"revision='main' goes with a repository"):
        tokenflex.load_parts(tmp_path / "parts", host=flex.host, revision="main")


class Hub:
    """Keeps what would be sent to the hub."""

    def __init__(self, monkeypatch):
        self.files = {}
        monkeypatch.setattr(
            HfApi, "create_repo", lambda api, repo_id, **options: type("Made", (), {"repo_id": repo_id})
        )
        monkeypatch.setattr(HfApi, "upload_folder", self.upload_folder)
        monkeypatch.setattr(HfApi, "create_commit", self.create_commit)

    def upload_folder(self, repo_id, folder_path, **options):
        self.repo, self.options = repo_id, options
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})

    def create_commit(self, repo_id, operations, **options):
        self.repo = repo_id
        for one in operations:
            with one.as_file() as file:
                self.files[one.path_in_repo] = file.read()


def test_parts_are_pushed_whole_and_fetched_at_a_revision(flex, tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    assert flex.push_parts_to_hub("me/router", commit_message="first") == "https://hub/me/router/commit/1"
    assert sorted(hub.files) == ["README.md", "tokenflex.json", "tokenflex.safetensors"]
    assert hub.options == {"commit_message": "first"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    asked = {}

    def fetched(repository, revision, allow_patterns):
        asked.update(repository=repository, revision=revision)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    again = tokenflex.load_parts("me/router", host=flex.host, revision="v1")
    assert asked == {"repository": "me/router", "revision": "v1"}
    mine, theirs = flex.compressor.state_dict(), again.compressor.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_hub_that_refuses_is_our_error(flex, monkeypatch):
    def refuse(api, repo_id, **options):
        raise OSError("401 unauthorised")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ConfigError, match=r"'me/router' can't be written on the hub: 401"):
        flex.push_parts_to_hub("me/router")


def test_a_model_is_pushed_with_our_card(flex, monkeypatch):
    hub = Hub(monkeypatch)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", _empty_card)
    flex.push_to_hub("me/model")
    assert hub.repo == "me/model"
    assert {"README.md", "config.json", cards.CODE_NAME} <= hub.files.keys()
    assert cards.MARK in hub.files["README.md"].decode()
    assert "auto_map" in json.loads(hub.files["config.json"])


def _empty_card(repo_id, tags=None, token=None):
    from huggingface_hub import ModelCard, ModelCardData

    return ModelCard.from_template(ModelCardData(tags=[]), model_description=f"{cards.TEMPLATE}.")

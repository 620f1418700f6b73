"""What people get wrong first: the error names the value and the way out, and offers the nearest match."""

import logging
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import tokenflex
from tokenflex import catalog, registry
from tokenflex.checkpoint import save_parts
from tokenflex.errors import ConfigError, InputError, UnknownComponentError, UnsupportedHostError
from tokenflex.evaluation import load, parse
from tokenflex.model import loading
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.testing.zoo.hosts import ZOO

PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="module")
def flex():
    return tokenflex.wrap(tiny_llava_next())


def test_a_name_is_no_host():
    with pytest.raises(UnsupportedHostError, match=r"AutoModelForImageTextToText\.from_pretrained\('llava-hf/x'\)"):
        tokenflex.wrap("llava-hf/x")  # pyright: ignore[reportArgumentType]


def test_a_flex_model_is_no_host(flex):
    with pytest.raises(UnsupportedHostError, match=r"has parts already .*wrap\(flex\.host, \.\.\.\)"):
        tokenflex.wrap(flex)


def test_parts_for_another_type_of_host_say_so(flex, tmp_path):
    flex.save_parts(tmp_path)
    with pytest.raises(ConfigError, match=r"made for a host with model_type 'llava_next', this host has 'llava'"):
        tokenflex.load_parts(tmp_path, host=ZOO["llava"].build())


def test_a_part_of_a_plugin_that_is_missing_names_it(no_plugins):
    with pytest.raises(UnknownComponentError, match=r"'tome' is part of tokenflex-matching.*pip install tokenflex-"):
        registry.scalers.get("tome")
    with pytest.raises(UnknownComponentError, match=r"Did you mean 'visionzip' \(pip install tokenflex-matching\)"):
        registry.scalers.get("vision-zip")
    with pytest.raises(UnknownComponentError, match=r"Did you mean 'average-pool'\?"):
        registry.scalers.get("avarage-pool")


@pytest.mark.skipif(not PLUGINS.is_dir(), reason="an installed copy has no plugins beside it")
def test_the_list_of_what_plugins_offer_is_theirs():
    found = {}
    for page in PLUGINS.glob("tokenflex-*/pyproject.toml"):
        project = tomllib.loads(page.read_text())["project"]
        for kind in ("scaler", "router", "voter", "policy", "confidence"):
            group = "tokenflex.policies" if kind == "policy" else f"tokenflex.{kind}s"
            for name in project.get("entry-points", {}).get(group, {}):
                found.setdefault(kind, {})[name] = project["name"]
    assert found == catalog.ELSEWHERE


def test_one_batch_is_no_data(flex):
    with pytest.raises(InputError, match=r"data is one batch; give batches: calibrate\(flex, target, \[batch"):
        tokenflex.calibrate(flex, 0.5, {"input_ids": None})
    with pytest.raises(InputError, match="data is one batch"):
        tokenflex.calibrate(flex, tokenflex.Escalate(risk=0.1, confidence=0.9), {"input_ids": None})


def test_misspelt_settings_offer_the_nearest(flex):
    with pytest.raises(ConfigError, match=r"'router@ration=0\.3'.*Did you mean 'ratio'\?"):
        parse(flex, ["router@ration=0.3"])
    with pytest.raises(ConfigError, match=r"'ruoter' isn't known\. Did you mean 'router'\?"):
        parse(flex, ["ruoter"])


def test_evaluating_a_folder_of_parts_asks_for_the_host(flex, tmp_path):
    save_parts(tmp_path, flex.compressor, flex.adapter)
    with pytest.raises(ConfigError, match=r"holds parts only\. Name their host too: --host NAME --parts"):
        load(str(tmp_path))


class TestUntrained:
    @pytest.fixture(autouse=True)
    def again(self):
        loading._say_that_it_is_untrained.cache_clear()

    def said(self, caplog, **parts):
        with caplog.at_level(logging.WARNING, logger=loading.__name__):
            tokenflex.wrap(tiny_llava_next(), **parts)
        return [record.getMessage() for record in caplog.records if "fresh and random" in record.getMessage()]

    def test_a_fresh_router_is_told_of_once(self, caplog):
        (message,) = self.said(caplog)
        assert all(way in message for way in ("level=0", "router='reconstruction'", "load_parts", "docs/training.md"))
        assert len(self.said(caplog)) == 1

    @pytest.mark.parametrize("router", ["reconstruction", "constant", "random"])
    def test_a_router_without_weights_is_not(self, caplog, router):
        assert self.said(caplog, router=router, voter="mean") == []

    def test_trained_parts_are_not(self, caplog, tmp_path, flex):
        flex.save_parts(tmp_path)
        with caplog.at_level(logging.WARNING, logger=loading.__name__):
            tokenflex.load_parts(tmp_path, host=tiny_llava_next())
        assert "fresh and random" not in caplog.text


class TestCalls:
    @pytest.fixture(scope="class")
    def inputs(self):
        return tiny_llava_next_processor()(images=Image.new("RGB", (40, 30)), text="<image> w1", return_tensors="pt")

    def test_a_batch_is_given_by_keywords(self, flex, inputs):
        for call in (flex.generate, flex):
            with pytest.raises(
                InputError, match=r"a BatchFeature with input_ids, .* by keywords: flex\.generate\(\*\*inp"
            ):
                call(inputs)

    @pytest.mark.parametrize("raw", [{"images": [None]}, {"text": "what?"}, {"image": None, "prompt": "a"}])
    def test_raw_images_and_text_go_to_the_processor(self, flex, raw):
        for call in (flex.generate, flex.decide, flex):
            with pytest.raises(InputError, match=rf"{next(iter(raw))}= is for the processor.*inputs = processor\("):
                call(**raw)

    def test_forgotten_images(self, flex, inputs):
        for call in (flex.generate, flex.decide, flex):
            with pytest.raises(
                InputError, match=r"row 0 has \d+ image placeholder tokens, and no image came with them"
            ):
                call(input_ids=inputs["input_ids"])

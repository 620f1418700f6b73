"""What stands around transformers' own tests: where they come from, at what they point, and how outcomes are told."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.hf_suite import sources
from tests.hf_suite.__main__ import HOSTS, chosen, folders
from tests.hf_suite.cases import ModelTester, Supervised, told_of_host
from tests.hf_suite.explained import EXPLAINED, reason_for
from tests.hf_suite.table import KINDS, compare, written
from tokenflex.model import FlexConfig, FlexModel

DOCS = Path(__file__).parents[2] / "docs" / "clients.md"


def packed(*names):
    """A distribution with files of these names, each holding its own name."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(f"transformers-1/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return data.getvalue()


class TestSources:
    def test_tests_alone_are_unpacked(self, tmp_path):
        wanted = ("tests/test_modeling_common.py", "tests/generation/test_utils.py")
        others = ("src/transformers/x.py", "tests/models/a/b.py", "tests/data.bin", "tests/generation/../../../out.py")
        folder = sources.unpacked(packed(*wanted, *others), tmp_path)
        assert folder == tmp_path / "transformers-1" / "tests"
        assert sorted(str(one.relative_to(folder.parent)) for one in folder.rglob("*.py")) == sorted(wanted)

    def test_a_distribution_without_tests_is_refused(self, tmp_path):
        with pytest.raises(sources.SourcesError, match="has no tests/test_modeling_common"):
            sources.unpacked(packed("src/transformers/x.py"), tmp_path)

    @pytest.mark.parametrize("complete", [True, False])
    def test_what_nobody_has_stands_empty(self, tmp_path, complete):
        folder = tmp_path / "tests"
        (folder / "generation").mkdir(parents=True)
        (folder / sources.COMMON).write_text("COMMON = 1\n")
        if complete:
            (folder / "generation" / "test_utils.py").write_text("class GenerationTesterMixin:\n    real = True\n")
        package, lacking = sources.assemble([tmp_path / "nothing", folder], tmp_path / "run")
        text = (package / "generation" / "test_utils.py").read_text()
        assert ("real" in text) == complete
        assert ("generation/test_utils.py" in lacking) != complete
        assert "class ExportTesterMixin" in (package / "exporters" / "test_export.py").read_text()
        assert (package / sources.COMMON).read_text() == "COMMON = 1\n"

    def test_no_tests_at_all_are_refused(self, tmp_path):
        with pytest.raises(sources.SourcesError, match="give a folder 'tests' of transformers"):
            sources.assemble([tmp_path], tmp_path / "run")

    def test_a_checkout_or_its_tests(self, tmp_path):
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / sources.COMMON).write_text("")
        assert folders(tmp_path, tmp_path) == folders(tmp_path / "tests", tmp_path) == [tmp_path / "tests"]


class TestHosts:
    def test_at_least_six_without_names(self):
        assert chosen([]) == HOSTS
        assert len(HOSTS) >= 6

    def test_named_ones_once(self):
        assert chosen(["gemma3", "llava_next", "gemma3"]) == ("gemma3", "llava_next")

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(sources.SourcesError, match="no tiny host is called llama"):
            chosen(["gemma3", "llama"])


class TestInputs:
    @pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
    def test_images_come_with_their_rows(self, name):
        tester = ModelTester(self, name, "flex")  # pyright: ignore[reportArgumentType]
        config, whole = tester.prepare_config_and_inputs_for_common()
        assert isinstance(config, FlexConfig)
        assert config.host.model_type == name
        ids = whole["input_ids"]
        assert len(ids) == tester.batch_size
        some = tester.completed({"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2])})
        flex = FlexModel(config).eval()
        with torch.no_grad():
            assert torch.allclose(flex(**some).logits, flex(**whole).logits[:2], atol=1e-4)
        assert "pixel_values" not in tester.completed({"input_ids": ids[:, :3]})

    def test_no_label_stands_on_a_placeholder(self):
        places = torch.tensor([[False, True, False]])
        batch = Supervised({"labels": torch.ones(1, 3, dtype=torch.long)}, places)
        assert batch["labels"].tolist() == [[1, -100, 1]]
        batch["labels"] = torch.zeros(1, 3, dtype=torch.long)
        assert batch["labels"].tolist() == [[0, -100, 0]]
        assert dict(**batch).keys() == {"labels"}

    def test_the_class_is_told_of_a_host_for_a_while(self):
        from transformers import LlavaNextForConditionalGeneration

        with told_of_host(LlavaNextForConditionalGeneration):
            assert FlexModel._can_compile_fullgraph
            assert "pixel_values" in FlexModel.forward.__signature__.parameters
        assert not FlexModel._can_compile_fullgraph
        assert not hasattr(FlexModel.forward, "__signature__")


OUTCOMES = st.dictionaries(st.sampled_from([f"test_{i}" for i in range(6)]), st.sampled_from(KINDS))


class TestTable:
    @given(OUTCOMES, OUTCOMES)
    def test_lost_is_what_the_host_passes_and_flex_does_not(self, host, flex):
        told = [
            {test: {"outcome": one, "reason": "why"} for test, one in outcomes.items()} for outcomes in (host, flex)
        ]
        found = compare("llava_next", *told)
        assert sum(found.host) == len(host)
        assert sum(found.flex) == len(flex)
        assert set(found.lost) == {t for t, one in host.items() if one == "passed" and flex.get(t) != "passed"}
        assert found.unexplained == list(found.lost)
        page = written([found], ["header"])
        assert f"| llava_next | {found.host[0]} / {found.flex[0]} |" in page
        assert all(f"`{test}`" in page for test in found.lost)

    def test_reasons_are_found_by_name(self):
        assert reason_for("test_inputs_embeds") == EXPLAINED["test_inputs_embeds"]
        assert reason_for("test_generate_from_inputs_embeds_0_greedy") is not None
        assert reason_for("test_inputs_embeds_matches_input_ids") is None
        assert reason_for("test_training") is None

    def test_every_reason_is_on_the_page(self):
        page = DOCS.read_text()
        assert [test for test in EXPLAINED if f"`{test}`" not in page] == []

"""Every architecture served: the host laws on its tiny model, its row in docs/hosts.md, and a whole FlexModel on it."""

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import InputError
from tokenflex.registry import hosts
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.tables import hosts as hosts_table
from tokenflex.testing.host_bench import ROWS, HostBench
from tokenflex.testing.host_checks import CHECKS, same_ids
from tokenflex.testing.zoo.recipe import AN_IMAGE

PAGE = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text()
OF_PAGE = PAGE.partition("\ntransformers ")[2].split(":")[0]
KNOWN = hosts_table.architectures()
SERVED = [name for name in KNOWN if hosts_table.refusal(name) is None]
OFTEN = (
    "aya_vision", "gemma3", "glm4v", "got_ocr2", "granite4_vision", "idefics3", "internvl", "janus", "kimi_k25",
    "lfm2_vl", "llava", "llava_next", "llava_onevision", "minicpmv4_6", "mistral3", "molmo2", "paligemma",
    "qwen2_5_vl", "qwen2_vl", "qwen3_omni_moe_thinker", "qwen3_vl", "video_llava",
)  # fmt: skip
"""Of every kind of layout and positions one or two, tried each time; the laws on all of them are ``just slow``."""
needs_the_pages_version = pytest.mark.skipif(
    Version(transformers.__version__) < Version(OF_PAGE), reason=f"docs/hosts.md is of transformers {OF_PAGE} or newer"
)


@needs_the_pages_version
def test_enough_architectures_are_served():
    assert len(SERVED) >= 60
    assert len(CHECKS) == len({check.name for check in CHECKS}) >= 18


@needs_the_pages_version
def test_what_is_tried_often_is_served():
    assert set(OFTEN) <= set(KNOWN)


def test_nothing_is_left_untried():
    assert [name for name in KNOWN if hosts_table.refusal(name) == "unknown: not tried"] == []


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SERVED])
def test_laws(name):
    row, report = hosts_table.probe(name)
    report.raise_if_bad()
    if Version(transformers.__version__) >= Version(OF_PAGE):
        line = hosts_table.markdown([row]).splitlines()[-1]
        assert line in PAGE, f"docs/hosts.md is stale; run: tokenflex hosts --write docs/hosts.md\n{line}"


@needs_the_pages_version
@pytest.mark.parametrize("name", sorted(set(KNOWN) - set(SERVED)))
def test_refusals_are_in_the_table(name):
    row, report = hosts_table.probe(name)
    assert report is None
    assert hosts_table.markdown([row]).splitlines()[-1] in PAGE


@pytest.mark.parametrize("name", SERVED)
def test_a_whole_model(name, tmp_path):
    """Wrapped with the published parts: routes, generates, learns, is saved and loaded."""
    tiny = served(name)
    torch.manual_seed(0)
    flex = tokenflex.wrap(tiny.build(), router="avg", voter="position-weighted")
    inputs = tiny.batch(flex.host.config, ROWS)
    with torch.no_grad():
        decisions = flex.decide(**inputs)
        output = flex(**inputs)
    assert [d.level for d in output.decisions] == [d.level for d in decisions]
    assert all(0 < d.tokens <= d.of for d in decisions)
    assert output.logits.isfinite().all()
    made = flex.generate(**inputs, level=0, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(made[:, :-3], inputs["input_ids"])
    unmasked = {key: value for key, value in inputs.items() if key != "attention_mask"}
    inferred = flex.generate(**unmasked, level=0, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(inferred, made)
    right = tiny.batch(flex.host.config, ROWS, side="right")
    labels = right["input_ids"].masked_fill(right["input_ids"] < 17, -100)
    flex.train()
    flex(**right, labels=labels, level=1).loss.backward()
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=flex.host)
    flex.eval(), again.eval()
    with torch.no_grad():
        for one, other in zip(flex.decide(**inputs), again.decide(**inputs), strict=True):
            assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "mistral3"])
def test_images_without_a_place_are_refused(name):
    tiny = served(name)
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean")
    inputs = tiny.batch(flex.host.config, ((1, AN_IMAGE, 2),))
    shown = (inputs["input_ids"][0] == flex.host.config.image_token_id).nonzero().flatten()
    inputs["input_ids"][0, shown[0]] = 20
    with pytest.raises(InputError, match=r"placeholder|visual tokens"):
        flex(**inputs)


def test_inputs_that_are_not_served_are_refused():
    tiny = served("internvl")
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean")
    inputs = tiny.batch(flex.host.config, ((1, AN_IMAGE, 2),))
    with pytest.raises(InputError, match=r"pixel_values_videos.*doesn't serve"):
        flex(**inputs, pixel_values_videos=inputs["pixel_values"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["internvl", "qwen3_vl", "mistral3"])
def test_half_precision(name, dtype):
    tiny = served(name)
    flex = tokenflex.wrap(tiny.build().to(dtype), router="avg", voter="position-weighted")
    inputs = tiny.batch(flex.host.config, ROWS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.no_grad():
        assert torch.equal(flex(**inputs, level=4).logits, flex.host(**inputs).logits)
        assert flex(**inputs).logits.dtype == dtype


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("name", ["internvl", "mistral3"])
def test_attention_implementations(name, attention):
    tiny = served(name)
    host = tiny.build()
    host.set_attn_implementation({"text_config": attention})
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    inputs = tiny.batch(host.config, ROWS)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        assert torch.equal(flex(**inputs, level=4).logits, host(**inputs).logits)
        short = flex(**inputs, level=[1, 3, 0])
    host.set_attn_implementation({"text_config": "sdpa"})
    with torch.no_grad():
        expected = flex(**inputs, level=[1, 3, 0])
        real = flex.prepare(inputs, [1, 3, 0])[0].inputs["attention_mask"] != 0
    torch.testing.assert_close(short.logits[real], expected.logits[real], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mistral3"])
@torch.no_grad()
def test_quantised_caches(name):
    pytest.importorskip("optimum.quanto", reason="comes with the extra [test]")
    tiny = served(name)
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 4}
    same_ids(cache_implementation="quantized", cache_config=settings)(HostBench(hosts.get(name)(tiny.build()), tiny))


def test_registered_under_every_model_type():
    assert set(SERVED) <= set(hosts.names())
    assert AveragePoolScaler.Config().build().num_levels == 5

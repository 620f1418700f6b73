"""FlexModel as a transformers model: files, Auto classes, pipelines, types, wrappers."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, pipeline

import tokenflex
from tests.conftest import image
from tokenflex.errors import ConfigError, UnknownComponentError
from tokenflex.model import FlexModel
from tokenflex.policies.constant import ConstantPolicy
from tokenflex.routers.avg import AVGRouter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.host_bench import labels_of
from tokenflex.testing.tiny_hosts import tiny_llava_next


def test_wrap_defaults_are_the_published_assembly(flex):
    parts = flex.compressor
    names = [type(p).__name__ for p in (parts.scaler, parts.router, parts.voter, parts.policy)]
    assert names == ["AveragePoolScaler", "AVGRouter", "PositionWeightedVoter", "ArgmaxPolicy"]
    assert parts.num_levels == 5


def test_decide_reports_levels_scores_and_tokens(flex, left):
    for decision in flex.decide(**left):
        assert decision.scores.shape == (5,)
        assert decision.level == int(decision.scores.argmax())
        assert 0 < decision.tokens <= decision.of


def test_forward_and_generate_carry_decisions(flex, left):
    decided = [d.level for d in flex.decide(**left)]
    with torch.no_grad():
        assert [d.level for d in flex(**left).decisions] == decided
    out = flex.generate(**left, max_new_tokens=2, return_dict_in_generate=True)
    assert [d.level for d in out.decisions] == decided
    assert torch.equal(out.sequences[:, : left["input_ids"].shape[1]], left["input_ids"])


def test_constant_policy_needs_no_level(host, left):
    flex = tokenflex.wrap(host, policy=ConstantPolicy.Config(level=1))
    assert [d.level for d in flex.decide(**left)] == [1, 1, 1]


@pytest.mark.parametrize("scaler", ["average-pool", "stride", "random", "resize"])
@pytest.mark.parametrize("router", ["avg", "constant", "random"])
def test_every_assembly_runs_and_is_saved(host, left, tmp_path, scaler, router):
    flex = tokenflex.wrap(host, scaler=scaler, router=router, voter="mean")
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=host)
    expected = flex.generate(**left, max_new_tokens=3)
    assert torch.equal(expected, again.generate(**left, max_new_tokens=3))


def test_parts_round_trip(host, left, tmp_path):
    config = AVGRouter.Config(text_tokens=3, attend="tokens")
    flex = tokenflex.wrap(host, router=config, scaler=AveragePoolScaler.Config(windows=((2, 2), (1, 1))))
    flex.save_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "tokenflex.json", "tokenflex.safetensors"]
    again = tokenflex.load_parts(tmp_path, host=host)
    assert again.compressor.router.config == config
    assert again.compressor.scaler.windows == ((2, 2), (1, 1))
    with torch.no_grad():
        assert torch.equal(flex(**left).logits, again(**left).logits)


def edited(folder, change):
    """By hand, which the missing digest says."""
    path = folder / "tokenflex.json"
    spec = json.loads(path.read_text())
    del spec["weights"]
    change(spec)
    path.write_text(json.dumps(spec))


CHANGES = {
    "unknown key": (lambda s: s.update(extra=1), r"unknown key\(s\) \['extra'\]"),
    "format": (lambda s: s.update(format=9), "format 9 isn't known"),
    "host type": (lambda s: s["host"].update(model_type="llava"), "made for a host with model_type 'llava'"),
    "width": (lambda s: s["host"].update(dim=64), "weights and description disagree"),
    "setting": (lambda s: s["parts"]["router"]["config"].update(hads=4), "unknown setting"),
    "part": (lambda s: s["parts"]["router"].update(name="mine", provider="my-package"), "pip install my-package"),
    "weights": (lambda s: s["parts"]["router"]["config"].update(text_tokens=3), "weights and description disagree"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_files_that_do_not_fit_are_refused(flex, host, tmp_path, name):
    change, message = CHANGES[name]
    flex.save_parts(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(ConfigError, match=message):
        tokenflex.load_parts(tmp_path, host=host)


def test_missing_and_broken_files_are_refused(flex, host, tmp_path):
    with pytest.raises(ConfigError, match=r"has no tokenflex.json"):
        tokenflex.load_parts(tmp_path, host=host)
    flex.save_parts(tmp_path)
    (tmp_path / "tokenflex.json").write_text("{")
    with pytest.raises(ConfigError, match="isn't valid JSON"):
        tokenflex.load_parts(tmp_path, host=host)


def test_unknown_names_are_refused(host):
    with pytest.raises(UnknownComponentError, match="Did you mean 'average-pool'"):
        tokenflex.wrap(host, scaler="averge-pool")


def test_unregistered_parts_run_but_are_not_saved(host, left, tmp_path):
    class Mine(AveragePoolScaler):
        pass

    flex = tokenflex.wrap(host)
    flex.compressor.scaler = Mine(AveragePoolScaler.Config())
    flex.generate(**left, max_new_tokens=2)
    with pytest.raises(ConfigError, match="Mine isn't registered as a scaler"):
        flex.save_parts(tmp_path)
    with pytest.raises(ConfigError, match="Mine isn't registered as a scaler"):
        flex.save_pretrained(tmp_path)


def test_save_pretrained_loads_through_auto_classes(flex, processor, left, tmp_path):
    flex.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is FlexModel
    mine, theirs = flex.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert torch.equal(flex.generate(**left, max_new_tokens=4), again.generate(**left, max_new_tokens=4))


def test_pipeline(flex, host, processor, tmp_path):
    tokenflex.wrap(host, policy=ConstantPolicy.Config()).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w1 w2"}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pipe = pipeline("image-text-to-text", model=str(tmp_path))
    assert type(pipe.model) is FlexModel
    got = pipe(images=image(0), text=prompt, max_new_tokens=4, return_full_text=False)
    inputs = processor(images=image(0), text=prompt, return_tensors="pt")
    new = host.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    assert got[0]["generated_text"].strip() == processor.decode(new[0], skip_special_tokens=True).strip()


LATE = """
import sys, tokenflex
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import AutoConfig, AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
assert type(model).__name__ == "FlexModel", type(model)
"""
EARLY = """
import sys
from transformers import AutoModelForImageTextToText
import tokenflex
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
assert type(model).__name__ == "FlexModel", type(model)
"""


@pytest.mark.parametrize("script", [LATE, EARLY], ids=["tokenflex first", "transformers first"])
def test_importing_tokenflex_is_light_and_teaches_auto_classes(flex, tmp_path, script):
    flex.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_sorted_and_exist():
    assert tokenflex.__all__ == sorted(tokenflex.__all__)
    assert all(getattr(tokenflex, name) is not None for name in tokenflex.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        tokenflex.nothing_like_it  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hosts(left, dtype, tmp_path):
    host = tiny_llava_next().to(dtype)
    flex = tokenflex.wrap(host)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in left.items()}
    with torch.no_grad():
        assert torch.equal(host(**inputs).logits, flex(**inputs, level=-1).logits)
        assert flex(**inputs, level=1).logits.dtype == dtype
    assert {p.dtype for p in flex.compressor.parameters()} == {torch.float32}
    assert len(flex.decide(**inputs)) == 3
    flex.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in again.compressor.parameters()} == {torch.float32}
    assert {p.dtype for p in again.host.parameters()} == {dtype}


def test_autocast_keeps_scores_in_float32(flex, left):
    plain = torch.stack([d.scores for d in flex.decide(**left)])
    with torch.autocast("cpu", torch.bfloat16):
        cast = torch.stack([d.scores for d in flex.decide(**left)])
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, atol=0.2, rtol=0.1)


def test_device_map(flex, left, tmp_path):
    flex.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(flex.generate(**left, max_new_tokens=3), again.generate(**left, max_new_tokens=3).cpu())


def test_gradient_checkpointing_gives_the_same_gradients(left):
    def gradients(checkpointing):
        flex = tokenflex.wrap(tiny_llava_next()).train()
        if checkpointing:
            flex.gradient_checkpointing_enable({"use_reentrant": False})
        flex(**left, labels=labels_of(left), level=2, use_cache=False).loss.backward()
        return {name: p.grad for name, p in flex.host.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert plain
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name])


def test_peft_wrapped_host(left):
    base = tiny_llava_next()
    peft = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    flex = tokenflex.wrap(peft.eval())
    with torch.no_grad():
        assert torch.equal(peft(**left).logits, flex(**left, level=-1).logits)
    assert torch.equal(peft.generate(**left, max_new_tokens=3), flex.generate(**left, level=-1, max_new_tokens=3))
    flex(**left, labels=labels_of(left), level=1).loss.backward()
    assert any(p.grad is not None for n, p in peft.named_parameters() if "lora" in n)


def test_wrap_keeps_the_hosts_mode():
    assert tokenflex.wrap(tiny_llava_next().train()).compressor.training
    assert not tokenflex.wrap(tiny_llava_next()).compressor.training


def test_scores_of_a_batch_equal_singles(flex, batch):
    texts = ("w1 w2 <image> w3", "<image> w4 w5 w6 w7 :", "w9 <image> w3")
    together = flex.decide(**batch(*texts))
    for row, text in enumerate(texts):
        alone = flex.decide(**batch(text, first=row))[0]
        torch.testing.assert_close(together[row].scores, alone.scores, atol=1e-5, rtol=1e-4)


def test_images_of_one_size_go_through_the_router_together(flex, batch, monkeypatch):
    calls = []
    handle = flex.compressor.router.register_forward_hook(lambda *a: calls.append(1))
    inputs = batch("w1 <image>", "w2 <image> w3", first=2)
    encoded = flex.encode(inputs)
    same = list(encoded.images[:1]) * 6
    flex.compressor.scores(same, [encoded.instructions[0]] * 6)
    handle.remove()
    assert calls == [1]

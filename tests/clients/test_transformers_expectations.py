"""What transformers' own tests and PEFT expect of a model, with the values that the plain host gives."""

import copy
import inspect

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationMixin

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import InputError
from tokenflex.hosts import continuing
from tokenflex.model import FlexModel
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import AN_IMAGE, IMAGE

UNTIED, TIED = "llava_next", "paligemma"
ROWS = ((1, 2, AN_IMAGE, 3), (4, AN_IMAGE, 5, 6, 7))


def at_finest(host, **parts):
    torch.manual_seed(0)
    return tokenflex.wrap(host, policy="constant", **parts).eval()


def inputs_of(name, host):
    return ZOO[name].batch(host.config, ROWS)


def supervised(batch):
    silent = (batch["input_ids"] == IMAGE) | (batch["attention_mask"] == 0)
    return {**batch, "labels": batch["input_ids"].masked_fill(silent, -100)}


class TestVocabulary:
    @pytest.mark.parametrize("name", [UNTIED, TIED])
    def test_resized_as_on_the_host_and_saved(self, name, tmp_path):
        plain, flex = served(name).build(), at_finest(served(name).build())
        size = plain.get_input_embeddings().weight.shape[0]
        for model in (plain, flex):
            torch.manual_seed(1)
            assert model.resize_token_embeddings(size + 5) is model.get_input_embeddings()
        assert flex.config.get_text_config().vocab_size == flex.host.config.get_text_config().vocab_size == size + 5
        assert flex.vocab_size == plain.vocab_size
        batch = inputs_of(name, plain)
        batch["input_ids"][:, -1] = size + 4
        want, got = plain(**batch).logits, flex(**batch).logits
        assert torch.equal(got, want)
        flex.save_pretrained(tmp_path)
        again = FlexModel.from_pretrained(tmp_path).eval()
        assert torch.equal(again(**batch).logits, want)
        tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
        assert tied == (name == TIED)

    @pytest.mark.parametrize("name", [UNTIED, TIED])
    def test_shrunk_and_padded(self, name):
        flex = at_finest(served(name).build())
        before = flex.get_input_embeddings().weight.detach().clone()
        flex.resize_token_embeddings(len(before) - 8)
        assert torch.equal(flex.get_input_embeddings().weight, before[:-8])
        assert flex.get_output_embeddings().weight.shape[0] == len(before) - 8
        flex.resize_token_embeddings(len(before), pad_to_multiple_of=48)
        assert flex.get_output_embeddings().weight.shape[0] % 48 == 0

    def test_inside_a_wrapped_host(self):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["q_proj"], r=2)
        flex = at_finest(peft.get_peft_model(served(UNTIED).build(), config))
        flex.resize_token_embeddings(70)
        assert flex.host.get_base_model().lm_head.weight.shape[0] == 70
        batch = inputs_of(UNTIED, flex.host)
        assert flex(**batch).logits.shape[-1] == 70

    def test_embeddings_can_be_replaced(self):
        flex = at_finest(served(UNTIED).build())
        table = torch.nn.Embedding(64, 32)
        head = torch.nn.Linear(32, 64, bias=False)
        flex.set_input_embeddings(table)
        flex.set_output_embeddings(head)
        assert flex.get_input_embeddings() is table is flex.host.get_input_embeddings()
        assert flex.get_output_embeddings() is head is flex.host.lm_head


class TestWeights:
    def test_tied_keys_are_the_hosts(self):
        host = served(TIED).build()
        want = {f"host.{name}": f"host.{source}" for name, source in host.all_tied_weights_keys.items()}
        assert want
        assert at_finest(host).all_tied_weights_keys == want

    def test_plans_are_the_hosts(self):
        host = served(UNTIED).build()
        assert host.tp_plan
        assert at_finest(host).tp_plan == {f"host.{name}": plan for name, plan in host.tp_plan.items()}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_parts_stay_in_float32(self, dtype, tmp_path):
        flex = at_finest(served(UNTIED).build())
        assert flex._keep_in_fp32_modules_strict == {"compressor"}
        assert flex._keep_in_fp32_modules == {"compressor.router", "compressor.voter"}
        flex.save_pretrained(tmp_path)
        again = FlexModel.from_pretrained(tmp_path, dtype=dtype)
        assert {tensor.dtype for tensor in again.compressor.state_dict().values()} == {torch.float32}
        assert {tensor.dtype for tensor in again.host.state_dict().values()} == {dtype}

    def test_parts_are_built_in_float32(self):
        config = at_finest(served(UNTIED).build()).config
        torch.set_default_dtype(torch.float16)
        try:
            built = FlexModel(copy.deepcopy(config))
        finally:
            torch.set_default_dtype(torch.float32)
        assert {tensor.dtype for tensor in built.compressor.state_dict().values()} == {torch.float32}
        assert {tensor.dtype for tensor in built.host.state_dict().values()} == {torch.float16}

    def test_parts_without_weights_are_not_named(self):
        flex = at_finest(served(UNTIED).build(), router="constant", voter="mean")
        assert not flex._keep_in_fp32_modules_strict
        assert not flex._keep_in_fp32_modules

    def test_what_has_no_values_yet_gets_them(self):
        config = at_finest(served(UNTIED).build()).config
        with torch.device("meta"):
            flex = FlexModel(copy.deepcopy(config)).eval()
        flex.to_empty(device="cpu")
        for tensor in flex.state_dict().values():
            tensor.fill_(float("nan"))
        flex.init_weights()
        assert all(tensor.isfinite().all() for tensor in flex.state_dict().values())
        assert flex(**inputs_of(UNTIED, flex.host), level=0).logits.isfinite().all()

    def test_what_has_values_keeps_them(self, tmp_path):
        trained = at_finest(tiny_llava_next())
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.5)
        trained.save_pretrained(tmp_path)
        for flex in (trained, FlexModel.from_pretrained(tmp_path)):
            before = {name: tensor.clone() for name, tensor in flex.state_dict().items()}
            flex.post_init()
            flex.init_weights()
            assert all(torch.equal(tensor, before[name]) for name, tensor in flex.state_dict().items())

    @pytest.mark.parametrize("name", [UNTIED, "qwen2_5_vl"])
    def test_original_names_are_the_hosts(self, name, tmp_path):
        host = served(name).build()
        flex = at_finest(host)
        host.save_pretrained(tmp_path / "host")
        flex.save_pretrained(tmp_path / "flex", save_original_format=True)
        plain = {f"host.{key}" for key in load_file(tmp_path / "host" / "model.safetensors")}
        saved = set(load_file(tmp_path / "flex" / "model.safetensors"))
        assert saved == plain | {f"compressor.{key}" for key in flex.compressor.state_dict()}
        assert saved != set(flex.state_dict())
        again = FlexModel.from_pretrained(tmp_path / "flex").state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in flex.state_dict().items())


class TestOutputs:
    @pytest.mark.parametrize("name", [UNTIED, "qwen2_5_vl"])
    def test_attentions_and_hidden_states(self, name):
        host = served(name).build()
        host.set_attn_implementation("eager")
        batch = inputs_of(name, host)
        asked = {"output_attentions": True, "output_hidden_states": True}
        flex = at_finest(host)
        with torch.no_grad():
            want, got, coarse = host(**batch, **asked), flex(**batch, **asked), flex(**batch, **asked, level=0)
        for field in ("attentions", "hidden_states"):
            assert len(got[field]) == len(want[field]) == len(coarse[field])
            assert all(torch.equal(a, b) for a, b in zip(got[field], want[field], strict=True))
        length = coarse.logits.shape[1]
        assert length < want.logits.shape[1]
        assert coarse.attentions[0].shape[-2:] == (length, length)
        assert coarse.hidden_states[0].shape[1] == length

    def test_signature_and_bases(self):
        flex = at_finest(served(UNTIED).build())
        rest = inspect.signature(flex.forward).parameters["kwargs"]
        assert rest == inspect.signature(flex.host.forward).parameters["kwargs"]
        assert GenerationMixin in FlexModel.__bases__

    @pytest.mark.parametrize("name", [UNTIED, TIED])
    def test_inputs_are_prepared_by_the_host(self, name):
        flex = at_finest(served(name).build())
        theirs = flex.host.prepare_inputs_for_generation
        assert inspect.signature(flex.prepare_inputs_for_generation) == inspect.signature(theirs)
        assert flex.prepare_inputs_for_generation == theirs
        assert FlexModel.can_generate()

    def test_embeddings_beside_their_ids(self):
        host = served(UNTIED).build()
        ids = inputs_of(UNTIED, host)["input_ids"]
        flex, noise = at_finest(host), torch.rand(*ids.shape, 32)
        asked = {"input_ids": ids, "inputs_embeds": noise, "max_new_tokens": 3, "do_sample": False}
        assert torch.equal(flex.generate(**asked), host.generate(**asked))

    def test_attention_by_its_kind(self):
        flex = at_finest(served(UNTIED).build())
        config = flex.config
        flex.set_attn_implementation("eager")
        flex.set_attn_implementation({"": "sdpa"})
        kinds = (config.host, config.text_config, config.vision_config)
        assert [one._attn_implementation for one in kinds] == ["sdpa", "eager", "eager"]
        assert config._attn_implementation == "sdpa"
        flex.set_attn_implementation({"": "eager", "vision_config": "sdpa"})
        assert [one._attn_implementation for one in kinds] == ["eager", "eager", "sdpa"]
        flex.set_attn_implementation({"host": "sdpa"})
        assert [one._attn_implementation for one in kinds] == ["sdpa"] * 3
        with pytest.raises(ValueError, match="foo"):
            flex.set_attn_implementation("foo")

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing(self, reentrant):
        flex = at_finest(served(UNTIED).build()).train()
        batch = supervised(inputs_of(UNTIED, flex.host))
        flex(**batch).loss.backward()
        weight = flex.get_input_embeddings().weight
        want = weight.grad.clone()
        flex.zero_grad()
        flex.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        flex.enable_input_require_grads()
        flex(**batch).loss.backward()
        assert torch.allclose(weight.grad, want, atol=1e-6)
        assert want.abs().sum() > 0


class TestPrefixTuning:
    """PEFT's learnt keys and values before the prompt, around a FlexModel and inside one."""

    @pytest.fixture(params=[UNTIED, "gemma3"])
    def name(self, request):
        return request.param

    def peft_around(self, model, text):
        peft = pytest.importorskip("peft")
        heads = text.num_key_value_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        torch.manual_seed(0)
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, num_layers=text.num_hidden_layers,
            num_attention_heads=heads, token_dim=heads * width,
        )  # fmt: skip
        return peft.get_peft_model(model, config).eval()

    @pytest.mark.filterwarnings("ignore")
    def test_is_the_hosts(self, name):
        hosts = [served(name).build() for _ in range(3)]
        text, batch = hosts[0].config.get_text_config(), supervised(inputs_of(name, hosts[0]))
        plain = self.peft_around(hosts[0], text)
        around = self.peft_around(at_finest(hosts[1]), text)
        inside = at_finest(self.peft_around(hosts[2], text))
        for model in (plain, around, inside):
            model(**batch).loss.backward()
        learnt = [
            next(p for n, p in model.named_parameters() if "prompt_encoder" in n) for model in (plain, around, inside)
        ]
        assert learnt[0].grad.abs().sum() > 0
        assert all(torch.equal(one.grad, learnt[0].grad) for one in learnt[1:])
        with torch.no_grad():
            whole, some, alike = plain(**batch), around(**batch, level=0), inside(**batch, level=0)
        assert some.logits.shape[1] < whole.logits.shape[1]
        assert torch.equal(some.logits, alike.logits)
        assert some.loss == alike.loss != whole.loss
        assert len(some.decisions) >= len(ROWS)
        assert {decision.level for decision in some.decisions} == {0}

    @pytest.mark.filterwarnings("ignore")
    def test_generation_belongs_inside(self, name):
        host = served(name).build()
        text, batch = host.config.get_text_config(), inputs_of(name, host)
        around = self.peft_around(at_finest(host), text)
        with pytest.raises(InputError, match=r"tokenflex\.wrap\(get_peft_model"):
            around.generate(**batch, max_new_tokens=3)
        inside = at_finest(self.peft_around(served(name).build(), text))
        want = inside.host.generate(**batch, max_new_tokens=3, do_sample=False)
        assert torch.equal(inside.generate(**batch, max_new_tokens=3, do_sample=False), want)

    @pytest.mark.filterwarnings("ignore")
    def test_positions_of_the_caller_have_no_place_for_it(self, name):
        host = served(name).build()
        text, batch = host.config.get_text_config(), inputs_of(name, host)
        around = self.peft_around(at_finest(host), text)
        with pytest.raises(InputError, match="prefix of 3 tokens"):
            around(**batch, align="input")

    def test_a_cache_with_images_is_no_prefix(self, name):
        flex = at_finest(served(name).build())
        batch = inputs_of(name, flex.host)
        filled = continuing.cache_of(flex(**batch, use_cache=True, level=0))
        with pytest.raises(InputError, match="the images among them"):
            flex(**batch, past_key_values=filled)

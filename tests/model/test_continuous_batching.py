"""transformers' continuous batching: text gives what ``generate`` gives, images are refused instead of left out."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import InputError, UnsupportedHostError
from tokenflex.testing.zoo.recipe import AN_IMAGE

PROMPTS = [[20, 21, 22], [23, 24, 25, 26, 27, 28], [29]]
NEW = 5
HOSTS = ["llava_next", "internvl", "gemma3", "qwen2_vl", "qwen2_5_vl", "llava_onevision"]


@pytest.fixture
def small():
    """A cache for a few hundred tokens; by default it takes most of the machine's memory."""
    return ContinuousBatchingConfig(page_size=32, num_blocks=16, max_batch_tokens=32, max_requests_per_batch=4)


def prepared(name):
    tiny = served(name)
    torch.manual_seed(0)
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean").eval()
    flex.generation_config.update(eos_token_id=None, pad_token_id=0)
    return flex, tiny.batch(flex.host.config, ((1, 2, AN_IMAGE, 3),))


@pytest.fixture
def flex():
    return prepared("llava_next")[0]


def one_by_one(flex):
    rows = (torch.tensor([ids]) for ids in PROMPTS)
    return [flex.generate(row, max_new_tokens=NEW, do_sample=False)[0, row.shape[1] :].tolist() for row in rows]


def texts(results):
    assert not [one.error for one in results.values() if one.error is not None]
    return [one.generated_tokens for one in results.values()]


@pytest.mark.parametrize("name", HOSTS)
def test_text_gives_the_ids_of_generate(name, small):
    flex, _ = prepared(name)
    wanted = one_by_one(flex)
    settings = {"max_new_tokens": NEW, "continuous_batching_config": small}
    assert texts(flex.generate_batch(PROMPTS, **settings)) == wanted
    assert texts(flex.host.generate_batch(PROMPTS, **settings)) == wanted
    assert one_by_one(flex) == wanted


def test_managers_of_every_entry_point_answer_text(flex, small):
    wanted = one_by_one(flex)
    with flex.continuous_batching_context_manager(continuous_batching_config=small) as manager:
        names = manager.add_requests(PROMPTS, max_new_tokens=NEW)
        found = {}
        while len(found) < len(names) and manager.is_running():
            result = manager.get_result(timeout=1)
            found |= {} if result is None else {result.request_id: result}
    assert texts({name: found[name] for name in names}) == wanted
    manager = flex.init_continuous_batching(continuous_batching_config=small)
    manager.start()
    name = manager.add_request(PROMPTS[0], max_new_tokens=NEW)
    assert [one.generated_tokens for one in manager.request_id_iter(name)] == wanted[:1]
    manager.stop(block=True)
    manager.destroy()


def test_a_kept_manager_is_used_again_and_given_back(flex, small):
    settings = {"max_new_tokens": NEW, "continuous_batching_config": small, "persistent_manager": True}
    wanted = one_by_one(flex)
    assert texts(flex.generate_batch(PROMPTS, **settings)) == wanted
    kept = flex.init_continuous_batching().manager
    assert texts(flex.generate_batch(PROMPTS, **settings)) == wanted
    assert flex.init_continuous_batching().manager is kept
    flex.destroy_cached_continuous_batching_manager()
    assert flex.init_continuous_batching(continuous_batching_config=small).manager is not kept


def test_settings_are_the_models_own_and_stay_as_they_were(flex, small):
    own = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    flex.generation_config = own
    found = texts(flex.generate_batch(PROMPTS, continuous_batching_config=small))
    assert [len(ids) for ids in found] == [2, 2, 2]
    assert flex.generation_config is own
    assert own.eos_token_id is None


def test_adapters_of_the_host_take_part(small):
    peft = pytest.importorskip("peft")
    plain = prepared("llava_next")[0]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    flex = tokenflex.wrap(peft.get_peft_model(plain.host, config), router="constant", voter="mean").eval()
    with torch.no_grad():
        for weight in (p for name, p in flex.host.named_parameters() if "lora_B" in name):
            weight.mul_(20)
    wanted = one_by_one(flex)
    with flex.host.disable_adapter():
        assert wanted != one_by_one(flex)
    assert texts(flex.generate_batch(PROMPTS, max_new_tokens=NEW, continuous_batching_config=small)) == wanted


@pytest.mark.parametrize("extra", [{"level": 0}, {"budget": 0.5}, {"lvel": 0}])
def test_levels_and_budgets_are_refused(flex, small, extra):
    with pytest.raises(InputError, match=next(iter(extra))):
        flex.generate_batch(PROMPTS, continuous_batching_config=small, **extra)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_images_are_refused(name, small):
    flex, batch = prepared(name)
    pixels = {"pixel_values": batch["pixel_values"]}
    with pytest.raises(InputError, match=r"generate_batch got pixel_values: .*flex\.generate.*tokenflex serve"):
        flex.generate_batch(PROMPTS, continuous_batching_config=small, **pixels)
    prompt = batch["input_ids"][0].tolist()
    with pytest.raises(InputError, match="placeholders of images"):
        flex.generate_batch([PROMPTS[0], prompt], continuous_batching_config=small)
    manager = flex.init_continuous_batching(continuous_batching_config=small)
    with pytest.raises(InputError, match="placeholders of images"):
        manager.add_request(prompt, max_new_tokens=NEW)
    with pytest.raises(InputError, match="placeholders of images"):
        manager.add_requests([PROMPTS[0], prompt], max_new_tokens=NEW)
    assert manager.input_queue.empty()
    with pytest.raises(InputError, match=r"cache_implementation='paged' came with pixel_values.*flex\.generate"):
        flex.generate(**batch, cache_implementation="paged", max_new_tokens=NEW)


def test_generate_with_a_paged_cache_is_the_hosts_own_on_text(flex, small):
    ids = torch.tensor(PROMPTS[:1])
    settings = {"max_new_tokens": NEW, "cache_implementation": "paged", "continuous_batching_config": small}
    found = flex.generate(ids, **settings)
    assert found.tolist() == flex.host.generate(ids, **settings).tolist()
    assert found[0].tolist() == flex.generate(ids, max_new_tokens=NEW, do_sample=False).tolist()


def test_nothing_is_asked_and_nothing_answered(flex):
    assert flex.generate_batch([]) == {}


def test_hosts_that_transformers_cannot_page_are_an_error_and_not_a_line_in_a_log(small):
    flex, _ = prepared("paligemma")
    with pytest.raises(UnsupportedHostError, match=r"answered none of 3 prompts with paligemma: .*flex\.generate"):
        flex.generate_batch(PROMPTS, max_new_tokens=NEW, continuous_batching_config=small)

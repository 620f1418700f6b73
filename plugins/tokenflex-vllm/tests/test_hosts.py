"""Other hosts in vLLM: the ids that ``FlexModel.generate`` gives, at every level, routed, and in mixed batches."""

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed; 'just vllm' makes an environment that has it")

from tokenflex.errors import InputError
from tokenflex.serving import prompt_embeds, vllm_prompt

HOSTS = ["llava", "internvl", "qwen2_vl", "qwen2_5_vl"]
CHOICES = [*({"level": n} for n in range(5)), {}, {"budget": 0.4}, {"level": [0, 4, 2, 1]}]


@pytest.fixture(scope="module", params=HOSTS)
def served(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def engine(served, start):
    return start(served.folder, block_size=32)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_levels_routed_and_mixed(served, engine, ask, choice):
    inputs = served.inputs()
    requests = served.flex.export(**inputs, **choice)
    assert ask(engine, map(vllm_prompt, requests)) == served.answers(inputs, **choice)


def test_several_images_and_none(served, engine, ask):
    at = served.place
    inputs = served.inputs([f"{at} w1 {at} w2", "w3 w4 w5", f"w6 {at}", f"{at} {at} w7", "w8"])
    levels = [0, 3, 4, 1, 2]
    requests = served.flex.export(**inputs, level=levels)
    assert ask(engine, map(vllm_prompt, requests)) == served.answers(inputs, level=levels)


def test_no_hit_between_levels(served, engine, sampling):
    engine.reset_prefix_cache()
    inputs = served.inputs([f"{served.place} w1 w2 w3"])
    for level in (4, 3, 4):
        (request,) = served.flex.export(**inputs, level=level)
        (output,) = engine.generate([vllm_prompt(request)], sampling, use_tqdm=False)
        assert [list(output.outputs[0].token_ids)] == served.answers(inputs, level=level)


def test_places_in_a_grid_do_not_travel_as_plain_embeddings(served):
    (request,) = served.flex.export(**served.inputs([f"{served.place} w1"]), level=0)
    if request.images[0].grid is None:
        assert prompt_embeds(served.flex, request).shape == (len(request.compact_ids), 128)
    else:
        with pytest.raises(InputError, match="by rows and columns"):
            prompt_embeds(served.flex, request)

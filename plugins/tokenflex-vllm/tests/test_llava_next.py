"""LLaVA-NeXT in vLLM: the ids that ``FlexModel.generate`` gives, at every level, in every way a request can come."""

import random

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed; 'just vllm' makes an environment that has it")

from tokenflex.serving import Front, chat_items, prompt_embeds, vllm_prompt


@pytest.fixture(scope="module")
def engine(llava_next, start):
    return start(llava_next.folder, block_size=32)


@pytest.mark.parametrize("choice", [{"level": n} for n in range(5)] + [{}, {"budget": 0.4}], ids=str)
def test_levels_and_routed(llava_next, engine, ask, choice):
    inputs = llava_next.inputs()
    requests = llava_next.flex.export(**inputs, **choice)
    assert ask(engine, map(vllm_prompt, requests)) == llava_next.answers(inputs, **choice)


@pytest.mark.parametrize("seed", range(5))
def test_mixed_levels_in_one_batch(llava_next, engine, ask, seed):
    levels = random.Random(seed).choices(range(5), k=4)
    inputs = llava_next.inputs()
    requests = llava_next.flex.export(**inputs, level=levels)
    assert len({request.visual_tokens for request in requests}) > 1
    assert ask(engine, map(vllm_prompt, requests)) == llava_next.answers(inputs, level=levels)


def test_the_engine_sees_the_compact_prompt(llava_next, engine):
    for request in llava_next.flex.export(**llava_next.inputs(), level=[0, 4, 2, 1]):
        (output,) = engine.generate([vllm_prompt(request)], use_tqdm=False)
        assert tuple(output.prompt_token_ids) == request.compact_ids


def test_several_images_and_none(llava_next, engine, ask):
    inputs = llava_next.inputs(["<image> w1 <image> w2", "w3 w4 w5", "w6 <image>", "<image> <image> <image> w7", "w8"])
    levels = [0, 3, 4, 1, 2, 0]
    requests = llava_next.flex.export(**inputs, level=levels)
    assert [len(request.images) for request in requests] == [2, 0, 1, 3, 0]
    assert ask(engine, map(vllm_prompt, requests)) == llava_next.answers(inputs, level=levels)


def test_the_prefix_cache(llava_next, engine, sampling):
    inputs = llava_next.inputs(["<image> w1 w2 w3"])
    (fine,), (coarse,) = (llava_next.flex.export(**inputs, level=level) for level in (4, 3))

    def asked(request):
        (output,) = engine.generate([vllm_prompt(request)], sampling, use_tqdm=False)
        return list(output.outputs[0].token_ids), output.num_cached_tokens

    engine.reset_prefix_cache()
    first, cached = asked(fine)
    assert (first, cached) == (llava_next.answers(inputs, level=4)[0], 0)
    again, cached = asked(fine)
    assert again == first
    assert cached >= 32
    other, cached = asked(coarse)
    assert (other, cached) == (llava_next.answers(inputs, level=3)[0], 0)


def test_another_question_at_the_same_level_shares_the_image(llava_next, engine, ask, sampling):
    engine.reset_prefix_cache()
    for words, hit in (("<image> w1 w2", False), ("<image> w9 w8 w7", True)):
        inputs = llava_next.inputs([words])
        (request,) = llava_next.flex.export(**inputs, level=4)
        (output,) = engine.generate([vllm_prompt(request)], sampling, use_tqdm=False)
        assert [list(output.outputs[0].token_ids)] == llava_next.answers(inputs, level=4)
        assert (output.num_cached_tokens > 0) == hit


def test_two_hundred_requests_at_once(llava_next, engine, ask):
    engine.reset_prefix_cache()
    drawn = random.Random(0)
    prompts, expected = [], []
    for start in range(0, 200, 8):
        texts = [f"<image> w{drawn.randrange(40)} w{drawn.randrange(40)}" for _ in range(8)]
        levels = drawn.choices(range(5), k=8)
        inputs = llava_next.inputs(texts, first=start)
        prompts += map(vllm_prompt, llava_next.flex.export(**inputs, level=levels))
        expected += llava_next.answers(inputs, level=levels)
    found = ask(engine, prompts)
    assert sum(one == other for one, other in zip(found, expected, strict=True)) == len(expected) == 200


def test_a_front_without_the_language_model(llava_next, engine, ask, tmp_path):
    llava_next.flex.save_pretrained(tmp_path)
    front = Front.from_pretrained(tmp_path)
    inputs = llava_next.inputs()
    assert ask(engine, map(vllm_prompt, front.export(**inputs))) == llava_next.answers(inputs)
    front.require_engine(llava_next.folder)


def test_chat_items_are_what_the_server_reads(llava_next):
    from vllm.multimodal.media import ImageEmbeddingMediaIO

    for request in llava_next.flex.export(**llava_next.inputs(), level=[0, 4, 2, 1]):
        for item, image in zip(chat_items(request), request.images, strict=True):
            assert ImageEmbeddingMediaIO().load_base64("", item["image_embeds"]).equal(image.embeddings)


def test_stock_images_still_work(llava_next, engine, ask):
    inputs = llava_next.inputs(["<image> w1"])
    prompt = {"prompt": "user : <image> w1 assistant :", "multi_modal_data": {"image": llava_next.image(0)}}
    assert ask(engine, [prompt]) == llava_next.answers(inputs, level=-1)


def test_embeddings_of_a_whole_prompt(llava_next, ask, start):
    engine = start(llava_next.folder, enable_prompt_embeds=True)
    inputs = llava_next.inputs()
    for choice in ({"level": [0, 4, 2, 1]}, {"level": 0}, {}):
        requests = llava_next.flex.export(**inputs, **choice)
        prompts = [{"prompt_embeds": prompt_embeds(llava_next.flex, request)} for request in requests]
        assert ask(engine, prompts) == llava_next.answers(inputs, **choice)


def test_chunked_prefill(llava_next, ask, start):
    engine = start(llava_next.folder, enable_chunked_prefill=True, max_num_batched_tokens=64, max_num_seqs=8)
    inputs = llava_next.inputs()
    for level in range(5):
        requests = llava_next.flex.export(**inputs, level=level)
        assert ask(engine, map(vllm_prompt, requests)) == llava_next.answers(inputs, level=level)


def test_an_engine_that_does_not_load_the_tower(llava_next, ask, start):
    engine = start(llava_next.folder, limit_mm_per_prompt={"image": 0})
    inputs = llava_next.inputs()
    for choice in ({"level": [0, 4, 2, 1]}, {"level": 4}, {}):
        requests = llava_next.flex.export(**inputs, **choice)
        assert ask(engine, map(vllm_prompt, requests)) == llava_next.answers(inputs, **choice)

"""A composed model keeps the same laws as stock hosts, whatever it is made of."""

import pytest
import torch

from tests.hosts.test_llava_next import GENERATION
from tokenflex.errors import InputError

TEXTS = ("w1 w2 <image> w3", "<image> w4 <image> w5 w6", "w7 w8", "<image> w9 w1 w2 w3 w4")


@pytest.fixture(params=["left", "right"])
def inputs(request, batch):
    return batch(*TEXTS, side=request.param)


@torch.no_grad()
def test_identity_logits(host, flex, inputs):
    assert torch.equal(host(**inputs).logits, flex(**inputs, level=-1).logits)


def test_identity_loss_and_labels(host, flex, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == host.config.image_token_id, -100)
    assert torch.equal(host(**inputs, labels=labels).loss, flex(**inputs, labels=labels, level=-1).loss)


@pytest.mark.parametrize("name", GENERATION)
def test_identity_generate(host, flex, batch, name):
    inputs = batch(*TEXTS) if name != "prompt lookup" else batch("w1 w2 w1 w2 <image> w1")
    options = {"max_new_tokens": 5, **GENERATION[name]}
    torch.manual_seed(3)
    expected = host.generate(**inputs, **options)
    torch.manual_seed(3)
    assert torch.equal(expected, flex.generate(**inputs, level=-1, **options))


@torch.no_grad()
def test_images_matter(host, batch):
    inputs, other = batch("w1 <image> w2"), batch("w1 <image> w2", first=1)
    assert not torch.allclose(host(**inputs).logits[0, -1], host(**other).logits[0, -1], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_mixed_levels_equals_singles(flex, batch, side):
    levels = [0, -1, 1, 2]
    together = flex(**batch(*TEXTS, side=side), level=levels).logits
    first = 0
    for row, text in enumerate(TEXTS):
        count = text.count("<image>")
        alone = flex(**batch(text, first=first), level=levels[first : first + count] if count else None).logits[0]
        where = slice(-len(alone), None) if side == "left" else slice(0, len(alone))
        torch.testing.assert_close(together[row, where], alone, atol=2e-5, rtol=0)
        first += count


@pytest.mark.parametrize("beams", [1, 3])
def test_batch_generates_as_singles(flex, batch, beams):
    levels, first = [0, -1, 1, 2], 0
    together = flex.generate(**batch(*TEXTS), level=levels, max_new_tokens=4, min_new_tokens=4, num_beams=beams)
    for row, text in enumerate(TEXTS):
        count = text.count("<image>")
        mine = levels[first : first + count] if count else None
        alone = flex.generate(
            **batch(text, first=first), level=mine, max_new_tokens=4, min_new_tokens=4, num_beams=beams
        )
        assert torch.equal(together[row, -4:], alone[0, -4:])
        first += count


def test_counts_are_known_in_advance(host, flex, inputs):
    encoded = flex.encode(inputs)
    assert len(encoded.images) == 4
    for level in range(flex.compressor.num_levels):
        spliced = flex.at_levels(inputs, encoded, [level] * 4)
        assert list(spliced.tokens) == encoded.counts[:, level].tolist()
        assert int((spliced.inputs["input_ids"] == host.config.image_token_id).sum()) == sum(spliced.tokens)
    rows, cols = host.config.grid
    assert encoded.counts[:, -1].tolist() == [rows * cols] * 4


def test_the_same_answer_tokens_carry_loss_at_every_level(flex, inputs):
    answer = inputs["input_ids"][0, inputs["attention_mask"][0].bool()][-1]
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] != answer, -100)
    encoded = flex.encode(inputs)
    for level in range(flex.compressor.num_levels):
        shorter = flex.at_levels({**inputs, "labels": labels}, encoded, [level] * 4).inputs["labels"]
        assert (shorter == answer).sum() == (labels == answer).sum() > 0


def test_host_is_untouched(host, flex, inputs):
    state = {key: value.clone() for key, value in host.state_dict().items()}
    attributes, config = dict(type(host).__dict__), host.config.to_dict()
    expected = host.generate(**inputs, max_new_tokens=3)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules()]
    flex.generate(**inputs, max_new_tokens=3)
    assert all(torch.equal(state[key], value) for key, value in host.state_dict().items())
    assert attributes == dict(type(host).__dict__)
    assert config == host.config.to_dict()
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules()]
    assert torch.equal(expected, host.generate(**inputs, max_new_tokens=3))


@torch.no_grad()
def test_text_only_batch_passes_through(host, flex, batch):
    inputs = batch("w1 w2 w3", "w4")
    assert torch.equal(host(**inputs).logits, flex(**inputs).logits)
    assert torch.equal(host.generate(**inputs, max_new_tokens=3), flex.generate(**inputs, max_new_tokens=3))


@torch.no_grad()
def test_generation_equals_repeated_forward(host, batch):
    inputs = batch("w1 <image> w2")
    new = host.generate(**inputs, max_new_tokens=4, min_new_tokens=4)[0, -4:]
    for token in new:
        following = host(**inputs).logits[0, -1]
        following[2] = float("-inf")
        assert int(following.argmax()) == int(token)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token[None, None]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])


def test_vision_tower_runs_once(flex, batch):
    calls = []
    handle = flex.host.vision_tower.register_forward_hook(lambda *a: calls.append(1))
    flex.generate(**batch(*TEXTS), max_new_tokens=3)
    handle.remove()
    assert calls == [1]


def test_parameter_groups_are_disjoint_and_complete(host, flex):
    groups = flex.adapter.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in host.parameters()}
    assert {id(p) for p in groups["projector"]} == {id(p) for p in host.multi_modal_projector.parameters()}


def test_images_without_their_placeholders_are_refused(host, batch):
    inputs = batch("w1 <image> w2")
    inputs["input_ids"][0, 3] = 9
    with pytest.raises(InputError, match=r"has \d+ image placeholders, its images make \d+ visual tokens"):
        host(**inputs)


def test_images_in_two_ways_are_refused(host, batch):
    inputs = batch("w1 <image> w2")
    features = host.get_image_features(inputs["pixel_values"])
    with pytest.raises(InputError, match="both pixel_values and mm_encoder_outputs"):
        host(**inputs, mm_encoder_outputs={"image": features})


def test_images_without_ids_are_refused(host, batch):
    inputs = batch("w1 <image> w2")
    embeds = host.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(InputError, match="images need input_ids"):
        host(**inputs, inputs_embeds=embeds)

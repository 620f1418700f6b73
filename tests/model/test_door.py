"""Inputs that can't be shortened without guessing are refused by name, in every call; what may stay, stays."""

import pytest
import torch

import tokenflex
from tests.hosts.served import served
from tokenflex.errors import InputError
from tokenflex.testing.host_bench import labels_of
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE

FULL = "full sequence"


@pytest.fixture
def right(batch):
    return batch("w1 w2 <image> w9", "<image> w9 w5", side="right")


def image_places(inputs):
    return (inputs["input_ids"] == 4).nonzero()


def hide(inputs, row, column):
    mask = inputs["attention_mask"].clone()
    mask[row, column] = 0
    return {**inputs, "attention_mask": mask}


def embedded(flex, inputs):
    embeds = flex.get_input_embeddings()(inputs["input_ids"])
    return {key: value for key, value in inputs.items() if key != "input_ids"} | {"inputs_embeds": embeds}


def of_rank_four(inputs):
    length = inputs["input_ids"].shape[1]
    return torch.ones(2, 1, length, length).tril()


REFUSED = {
    "embeddings": (embedded, "pixel_values, image_sizes came without input_ids|came without input_ids"),
    "embeddings beside ids": (
        lambda flex, b: {**b, "inputs_embeds": flex.get_input_embeddings()(b["input_ids"])},
        "together with inputs_embeds",
    ),
    "encoded images": (lambda flex, b: {**b, "mm_encoder_outputs": {"image": 1}}, "encoded already"),
    "a hole in an image": (lambda flex, b: hide(b, *image_places(b)[3].tolist()), "hides 1 of the image placeholders"),
    "a hidden image": (
        lambda flex, b: {**b, "attention_mask": b["attention_mask"] * (b["input_ids"] != 4)},
        "of the image placeholders of row 0",
    ),
    "mask of another length": (
        lambda flex, b: {**b, "attention_mask": b["attention_mask"][:, 1:]},
        r"attention_mask has the shape",
    ),
    "mask of fewer rows": (lambda flex, b: {**b, "attention_mask": b["attention_mask"][:1]}, "attention_mask has the"),
    "mask of rank four": (lambda flex, b: {**b, "attention_mask": of_rank_four(b)}, "attention_mask has 4 axes"),
    "mask by layer type": (lambda flex, b: {**b, "attention_mask": {"full": None}}, "attention_mask is a dict"),
    "labels of another length": (lambda flex, b: {**b, "labels": labels_of(b)[:, 1:]}, r"labels: \("),
    "labels on placeholders": (lambda flex, b: {**b, "labels": b["input_ids"]}, r"supervise \d+ image placeholders"),
    "no ids": (lambda flex, b: {**b, "input_ids": b["input_ids"][:, :0]}, r"input_ids has the shape \(2, 0\)"),
    "no rows": (lambda flex, b: {**b, "input_ids": b["input_ids"][:0]}, r"input_ids has the shape \(0, "),
    "one axis": (lambda flex, b: {**b, "input_ids": b["input_ids"][0]}, r"input_ids is torch.int64 \("),
    "floats": (lambda flex, b: {**b, "input_ids": b["input_ids"].float()}, "input_ids is torch.float32"),
    "packed rows": (lambda flex, b: {**b, "cu_seq_lens_q": torch.tensor([0, 3])}, f"cu_seq_lens_q.*{FULL}"),
    "other entries per token": (
        lambda flex, b: {**b, "special_tokens_mask": torch.zeros_like(b["input_ids"])},
        "special_tokens_mask has one entry per token",
    ),
    "own positions": (
        lambda flex, b: {**b, "position_ids": torch.arange(b["input_ids"].shape[1]).expand(2, -1) * 2},
        "position_ids .* are the caller's own",
    ),
}


@pytest.mark.parametrize("call", ["forward", "generate", "prepare"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(flex, right, name, call):
    make, message = REFUSED[name]
    inputs = make(flex, right)
    if call == "generate" and name in ("labels of another length", "labels on placeholders"):
        pytest.skip("generate has no use for labels")
    calls = {
        "forward": lambda: flex(**inputs, level=1),
        "generate": lambda: flex.generate(**inputs, level=1, max_new_tokens=2),
        "prepare": lambda: flex.prepare(inputs, 1),
    }
    with pytest.raises(InputError, match=message):
        calls[call]()


@torch.no_grad()
def test_embeddings_alone_pass_but_choose_nothing(flex, batch):
    inputs = batch("w1 w2", "w9")
    embeds = flex.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(flex(**given).logits, flex.host(**given).logits)
    for asked in ({"level": 0}, {"budget": tokenflex.Budget(ratio=0.3)}):
        with pytest.raises(InputError, match="the batch has inputs_embeds only"):
            flex(**given, **asked)
        with pytest.raises(InputError, match="the batch has inputs_embeds only"):
            flex.generate(**given, **asked, max_new_tokens=2)


@torch.no_grad()
def test_on_text_alone_masks_of_any_form_are_the_hosts_business(flex, batch):
    inputs = batch("w1 w2 w3", "w9 w8 w7")
    length = inputs["input_ids"].shape[1]
    mask = torch.zeros(2, 1, length, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    given = {"input_ids": inputs["input_ids"], "attention_mask": mask}
    assert torch.equal(flex(**given).logits, flex.host(**given).logits)


@pytest.mark.parametrize("level", [0, 2, "finest"])
@torch.no_grad()
def test_positions_that_only_count_change_nothing(flex, inputs, level):
    expected = flex(**inputs, level=level).logits
    shape = inputs["input_ids"].shape
    plain = torch.arange(shape[1]).expand(shape)
    assert torch.equal(flex(**inputs, position_ids=plain, level=level).logits, expected)


@torch.no_grad()
def test_positions_that_count_the_attended_tokens_count_the_kept_ones(flex, inputs):
    mask = inputs["attention_mask"]
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    spliced, _ = flex.prepare({**inputs, "position_ids": counted}, 1)
    kept = spliced.inputs["attention_mask"]
    expected = (kept.cumsum(-1) - 1).clamp(min=0)
    assert torch.equal(spliced.inputs["position_ids"], expected)
    at_finest, _ = flex.prepare({**inputs, "position_ids": counted}, -1)
    assert at_finest.inputs["position_ids"] is counted


@torch.no_grad()
def test_own_positions_on_axes_are_used_or_refused():
    tiny = served("qwen2_5_vl")
    host = tiny.build()
    inputs = tiny.batch(host.config, ((1, 2, AN_IMAGE, 3),))
    flex = tokenflex.wrap(host, router="constant", voter="mean")
    own = flex.adapter.position_ids(inputs)
    expected = flex(**inputs, level=1).logits
    assert torch.equal(flex(**inputs, position_ids=own, level=1).logits, expected)
    assert not torch.equal(flex(**inputs, position_ids=own * 3, level=1).logits, expected)
    with pytest.raises(InputError, match="the caller's own"):
        flex(**inputs, position_ids=own[0], level=1)
    compact = tokenflex.wrap(
        host, adapter=tokenflex.hosts.get("qwen2_5_vl")(host, positions="compact"), router="constant", voter="mean"
    )
    with pytest.raises(InputError, match="positions='span'"):
        compact(**inputs, position_ids=own, level=1)


@torch.no_grad()
def test_logits_to_keep_names_the_callers_tokens_or_is_refused(flex, batch):
    inputs = batch("w1 <image> w2 w3", "w9 <image> w4 w5")
    whole = flex(**inputs, level=1).logits
    for count in (0, 1, 2):
        kept = flex(**inputs, level=1, logits_to_keep=count).logits
        torch.testing.assert_close(kept, whole[:, -count:] if count else whole)
    with pytest.raises(InputError, match="logits_to_keep=3 names positions"):
        flex(**inputs, level=1, logits_to_keep=3)
    with pytest.raises(InputError, match="logits_to_keep=a tensor names positions"):
        flex(**inputs, level=1, logits_to_keep=torch.tensor([2, 3]))
    places = torch.tensor([2, 3])
    host = flex.host(**inputs, logits_to_keep=places).logits
    assert torch.equal(flex(**inputs, level="finest", logits_to_keep=places).logits, host)


@torch.no_grad()
def test_the_last_logits_of_right_padded_rows_are_refused(flex, right):
    """Rows lose different numbers of tokens, so their last columns are other tokens than the caller's."""
    with pytest.raises(InputError, match="logits_to_keep=2 names positions"):
        flex(**right, level=[0, 3], logits_to_keep=2)


@torch.no_grad()
def test_videos_without_ids_are_refused():
    tiny = served("qwen2_5_vl")
    flex = tokenflex.wrap(tiny.build(), router="constant", voter="mean")
    inputs = tiny.batch(flex.host.config, ((1, A_VIDEO, 2),))
    embeds = flex.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(InputError, match=r"pixel_values_videos.* came without input_ids"):
        flex(**inputs, inputs_embeds=embeds, level=0)


def test_adapters_of_ones_own_need_not_name_their_placeholders(host, right):
    """Without names, labels aren't looked at, and what stands on placeholders is dropped as ever."""

    class Quiet(tokenflex.hosts.get("llava_next")):
        placeholder_ids = ()

    flex = tokenflex.wrap(host, adapter=Quiet(host))
    with torch.no_grad():
        assert flex(**right, labels=right["input_ids"], level=1).loss.isfinite()


@pytest.mark.parametrize("call", ["encode", "prepare"])
class TestABatchAsAMappingOrByKeywords:
    def test_is_the_same(self, flex, right, call):
        one, other = getattr(flex, call)(right), getattr(flex, call)(**right)
        if call == "encode":
            assert torch.equal(one.counts, other.counts)
            assert all(torch.equal(a.features, b.features) for a, b in zip(one.images, other.images, strict=True))
        else:
            assert [decision.level for decision in one[1]] == [decision.level for decision in other[1]]
            assert torch.equal(one[0].inputs["input_ids"], other[0].inputs["input_ids"])

    def test_comes_in_one_way_only(self, flex, right, call):
        with pytest.raises(InputError, match=r"came as a dict, and input_ids by keywords; give all in one way"):
            getattr(flex, call)(right, input_ids=right["input_ids"])

    def test_is_a_batch(self, flex, right, call):
        with pytest.raises(InputError, match=r"the batch is a Tensor; give what the host's processor made"):
            getattr(flex, call)(right["input_ids"])

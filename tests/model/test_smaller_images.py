"""Levels before the vision tower: what the host is given, what the tower is called with, what the caller gets."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tokenflex
from tests.model.smaller import HOSTS, LEVELS, Told, assembled, batch_of, plain_inputs, watched
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.model import FlexModel
from tokenflex.scalers.resolution import ResolutionScaler
from tokenflex.testing.host_bench import close, labels_of
from tokenflex.testing.zoo.hosts import ZOO
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE

NEW = 4
TOKENS = {"max_new_tokens": NEW, "min_new_tokens": NEW}


@pytest.fixture(scope="module")
def flex():
    return assembled()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_the_finest_level_is_the_untouched_host(name, side):
    flex = assembled(name)
    inputs = batch_of(flex, side=side)
    assert torch.equal(flex(**inputs, level=-1).logits, flex.host(**inputs).logits)
    asked = {**inputs, **TOKENS} if side == "left" else {**batch_of(flex), **TOKENS}
    assert torch.equal(flex.generate(**asked, level="finest"), flex.host.generate(**asked))


@pytest.mark.parametrize("levels", [(0, 0, 0), (2, 2, 2), LEVELS])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_level_is_the_host_on_the_smaller_images(name, side, levels):
    flex = assembled(name)
    inputs = batch_of(flex, side=side)
    plain = plain_inputs(flex, inputs, levels)
    ours = flex(**inputs, level=levels)
    close(ours.logits, flex.host(**plain).logits, "smaller images")
    assert [d.tokens for d in ours.decisions] == flex.encode(inputs).counts[range(3), levels].tolist()
    flex.batching = "padded"
    theirs = flex.host.generate(**plain, **TOKENS)
    given = flex.generate(**inputs, level=levels, **TOKENS)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(given[:, :length], inputs["input_ids"])
    if side == "left":
        assert torch.equal(given[:, length:], theirs[:, plain["input_ids"].shape[1] :])


@torch.no_grad()
def test_labels_are_the_callers(flex):
    inputs = batch_of(flex)
    labels = labels_of(inputs)
    plain = plain_inputs(flex, {**inputs, "labels": labels}, LEVELS)
    assert (plain["labels"] != -100).sum() == (labels != -100).sum()
    ours = flex(**inputs, labels=labels, level=LEVELS)
    torch.testing.assert_close(ours.loss, flex.host(**plain).loss)


@pytest.mark.parametrize("rows", [None, (2, 0)])
def test_new_tokens_are_known_by_their_places_in_the_callers_sequence(flex, rows):
    inputs = batch_of(flex)
    spliced = flex.at_levels(inputs, flex.encode(inputs), LEVELS, rows=rows)
    ids = inputs["input_ids"] if rows is None else inputs["input_ids"][list(rows)]
    there = spliced.index >= 0
    assert torch.equal(ids.gather(1, spliced.index.clamp(min=0))[there], spliced.inputs["input_ids"][there])
    words = (inputs["attention_mask"] != 0) & (inputs["input_ids"] != flex.host.config.image_token_id)
    assert int(there.sum()) == int((words if rows is None else words[list(rows)]).sum())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "exaone4_5"])
@torch.no_grad()
def test_a_batch_is_its_rows(name):
    flex = assembled(name)
    rows = ((1, 2, AN_IMAGE, 3), (4, 5, 6, 7, 8), (AN_IMAGE, 9, 10, AN_IMAGE, 11, 12))
    together = flex.decide(**batch_of(flex, rows))
    apart = [
        d for row, first in ((rows[0], 0), (rows[2], 1)) for d in flex.decide(**batch_of(flex, (row,), first=first))
    ]
    for one, other in zip(together, apart, strict=True):
        assert (one.level, one.tokens, one.of) == (other.level, other.tokens, other.of)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-4)
    answers = flex.generate(**batch_of(flex, rows), **TOKENS)[:, -NEW:]
    for n, (row, first) in enumerate(zip(rows, (0, 1, 1), strict=True)):
        assert torch.equal(flex.generate(**batch_of(flex, (row,), first=first), **TOKENS)[0, -NEW:], answers[n])


class TestTower:
    """How often it is called, and with how many patches."""

    def patches(self, flex, inputs, levels):
        shares = [flex.compressor.scaler.shares[level] for level in levels]
        return flex.adapter.resized(flex.adapter.read(inputs), shares).cpu["image_grid_thw"].prod(-1).tolist()

    @pytest.mark.parametrize("levels", [(0, 0, 0), (4, 4, 4), LEVELS])
    def test_a_forced_level_is_one_call_without_a_look(self, flex, levels):
        inputs = batch_of(flex)
        with watched(flex) as calls:
            flex.generate(**inputs, level=levels, **TOKENS)
        assert calls.patches == [sum(self.patches(flex, inputs, levels))]

    def test_images_that_stay_coarse_are_encoded_once(self, flex):
        routed, inputs = assembled(host=flex.host, policy=Told.Config(levels=(0, 0, 0))), batch_of(flex)
        with watched(flex) as calls:
            routed.generate(**inputs, **TOKENS)
        assert calls.patches == [sum(self.patches(flex, inputs, (0, 0, 0)))]

    def test_only_finer_images_are_encoded_again(self, flex):
        inputs = batch_of(flex)
        routed = assembled(host=flex.host, policy=Told.Config(levels=LEVELS))
        with watched(flex) as calls:
            output = routed(**inputs)
        looks, wanted = self.patches(flex, inputs, (0, 0, 0)), self.patches(flex, inputs, LEVELS)
        assert calls.patches == [sum(looks), sum(wanted[1:])]
        close(output.logits, flex(**inputs, level=LEVELS).logits, "chosen and forced")

    def test_a_decision_alone_is_a_look_and_a_forced_one_nothing(self, flex):
        inputs = batch_of(flex)
        with watched(flex) as calls:
            flex.decide(**inputs)
            flex.decide(**inputs, level=1)
        assert calls.patches == [sum(self.patches(flex, inputs, (0, 0, 0)))]

    def test_a_level_that_pools_shares_the_image(self, flex):
        both = ResolutionScaler.Config(shares=(0.25, 0.25, 1.0), pooling=((2, 2), (1, 1), (1, 1)))
        pooling, inputs = assembled(host=flex.host, scaler=both), batch_of(flex)
        encoded = pooling.encode(inputs)
        with watched(flex) as calls:
            spliced = [pooling.at_levels(inputs, encoded, [level] * 3) for level in (0, 1, 2, 2)]
        assert calls.patches == [sum(self.patches(flex, inputs, (4, 4, 4)))]
        assert [sum(each.tokens) for each in spliced] == [sum(col) for col in encoded.counts.T.tolist()] + [
            int(encoded.counts[:, 2].sum())
        ]

    def test_images_of_one_size_are_encoded_once(self, flex):
        """None is smaller at 2 % of its pixels than at 5 %: one token."""
        tiny = ResolutionScaler.Config(shares=(0.02, 0.05, 1.0))
        routed, inputs = assembled(host=flex.host, scaler=tiny, policy=Told.Config(levels=(1, 1, 1))), batch_of(flex)
        with watched(flex) as calls:
            answer = routed.generate(**inputs, **TOKENS)
        assert calls.patches == [4 * 3]
        assert torch.equal(answer, routed.generate(**inputs, **TOKENS, level=1))

    def test_text_alone_never_calls_it(self, flex):
        inputs = batch_of(flex, ((1, 2, 3), (4, 5)))
        with watched(flex) as calls:
            assert torch.equal(flex.generate(**inputs, **TOKENS), flex.host.generate(**inputs, **TOKENS))
            assert flex(**inputs).decisions == ()
        assert calls.patches == []


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_rows_in_groups_give_what_padded_rows_give(name):
    flex, outputs, losses = assembled(name), [], []
    rows = ((1, AN_IMAGE), (2, 3, AN_IMAGE, AN_IMAGE, 4), (5, 6, 7, AN_IMAGE, 8), (9, 10, 11))
    inputs = batch_of(flex, tuple((*row, 13, 15) for row in rows))
    for way in ("padded", "grouped"):
        flex.batching = way
        outputs.append(flex.generate(**inputs, level=(0, 4, 0, 2), **TOKENS))
        losses.append(flex(**inputs, labels=labels_of(inputs), level=(0, 4, 0, 2)).loss)
    assert torch.equal(*outputs)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("level", [0, 2, "finest"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "exaone4_5"])
@torch.no_grad()
def test_a_conversation_goes_on_from_its_cache(name, level):
    flex = assembled(name)
    inputs = batch_of(flex, ((1, 2, AN_IMAGE, 3), (4, AN_IMAGE, 5, 6, AN_IMAGE, 7, 8)))
    told = {**TOKENS, "suppress_tokens": list(flex.adapter.placeholder_ids), "return_dict_in_generate": True}
    told["output_logits"] = True
    first = flex.generate(**inputs, level=level, **told)
    turn = torch.tensor([[20, 21, 22], [23, 24, 25]])
    mask = torch.cat([first.compact_attention_mask, torch.ones_like(turn)], dim=1)
    ids = torch.cat([first.compact_sequences, turn], dim=1)
    key = "cache" if first.get("cache") is not None else "past_key_values"
    warm = flex.generate(input_ids=ids, attention_mask=mask, **{key: first[key]}, **told)
    behind = torch.cat([first.sequences[:, inputs["input_ids"].shape[1] :], turn], dim=1)
    longer = {"input_ids": behind, "attention_mask": torch.ones_like(behind)}
    longer["mm_token_type_ids"] = torch.zeros_like(behind)
    cold = {k: torch.cat([v, longer[k]], dim=1) if k in longer else v for k, v in inputs.items()}
    for one, other in zip(warm.logits, flex.generate(**cold, level=level, **told).logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_callbacks_and_logits_count_in_the_callers_prompt(flex):
    inputs, seen = batch_of(flex, ((1, 2, AN_IMAGE, 3, 4),)), []

    def criterion(ids, scores, **kwargs):
        seen.append(ids.clone())
        return torch.ones(len(ids), dtype=torch.bool)

    flex.generate(**inputs, level=0, max_new_tokens=3, stopping_criteria=[criterion])
    assert torch.equal(seen[0][:, :-1], inputs["input_ids"])
    length = inputs["input_ids"].shape[1] + 2
    assert flex.generate(**inputs, level=0, max_length=length).shape[1] <= length
    kept = flex(**inputs, level=0, logits_to_keep=2).logits
    torch.testing.assert_close(kept, flex(**inputs, level=0).logits[:, -2:])
    with pytest.raises(InputError, match="names positions of the full sequence"):
        flex(**inputs, level=0, logits_to_keep=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    flex = assembled(host=ZOO["qwen2_5_vl"].build().to(dtype))
    inputs = batch_of(flex)
    assert flex(**inputs).logits.dtype == dtype
    assert all(bool(d.scores.isfinite().all()) for d in flex.decide(**inputs))
    assert torch.equal(flex(**inputs, level=-1).logits, flex.host(**inputs).logits)
    close(flex(**inputs, level=1).logits, flex.host(**plain_inputs(flex, inputs, (1, 1, 1))).logits, "half precision")


@torch.no_grad()
def test_hosts_with_adapters(flex):
    inputs = batch_of(flex)
    tuned = get_peft_model(ZOO["qwen2_5_vl"].build(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wrapped = assembled(host=tuned.eval())
    assert torch.equal(wrapped(**inputs, level=-1).logits, tuned(**inputs).logits)
    small = plain_inputs(wrapped, inputs, LEVELS)
    close(wrapped(**inputs, level=LEVELS).logits, tuned(**small).logits, "with adapters")
    assert not torch.allclose(wrapped(**inputs, level=-1).logits, flex(**inputs, level=-1).logits)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_parts_decide_alike():
    flex = assembled()
    inputs = batch_of(flex)
    plain = flex.decide(**inputs)
    flex.compile(backend="eager")
    for one, other in zip(plain, flex.decide(**inputs), strict=True):
        torch.testing.assert_close(one.scores, other.scores)
    assert torch.equal(flex.generate(**inputs, **TOKENS), assembled(host=flex.host).generate(**inputs, **TOKENS))


def test_parts_and_models_are_saved(flex, tmp_path):
    mixed = ResolutionScaler.Config(shares=(0.25, 1.0, 1.0), pooling=((1, 1), (2, 1), (1, 1)), view_windows=((1, 1),))
    own, inputs = assembled(host=flex.host, scaler=mixed), batch_of(flex)
    expected = own.generate(**inputs, **TOKENS)
    own.save_parts(tmp_path / "parts")
    again = tokenflex.load_parts(tmp_path / "parts", host=flex.host)
    assert again.compressor.scaler.config == mixed
    assert torch.equal(again.generate(**inputs, **TOKENS), expected)
    own.save_pretrained(tmp_path / "model")
    assert torch.equal(FlexModel.from_pretrained(tmp_path / "model").generate(**inputs, **TOKENS), expected)


@torch.no_grad()
def test_export_gives_the_tokens_of_the_smaller_images():
    flex = assembled("exaone4_5")
    inputs = batch_of(flex)
    requests, spliced = flex.export(**inputs, level=LEVELS), flex.at_levels(inputs, flex.encode(inputs), LEVELS)
    assert [[len(image.embeddings) for image in one.images] for one in requests] == [
        [spliced.tokens[0]], [], list(spliced.tokens[1:])
    ]  # fmt: skip
    real = spliced.inputs["attention_mask"] != 0
    for row, one in enumerate(requests):
        assert list(one.compact_ids) == spliced.inputs["input_ids"][row][real[row]].tolist()
        assert int(one.visual.sum()) == one.visual_tokens
    fine, coarse = (flex.export(**inputs, level=level)[0].images[0].key for level in (-1, 0))
    assert fine != coarse


@torch.no_grad()
def test_compact_positions_are_exported_with_the_smaller_grid():
    host = ZOO["qwen2_vl"].build()
    flex = assembled(host=host, adapter=tokenflex.hosts.get("qwen2_vl")(host, positions="compact"))
    inputs = batch_of(flex, ((1, AN_IMAGE, 2),))
    (request,) = flex.export(**inputs, level=2)
    time, height, width = request.images[0].grid
    assert time * height * width // 4 == len(request.images[0].embeddings) == request.images[0].decision.tokens


@torch.no_grad()
def test_budgets_hold(flex):
    inputs = batch_of(flex)
    counts = flex.encode(inputs).counts
    for per in ("image", "request", "tile"):
        decided = flex.decide(**inputs, budget=tokenflex.Budget(ratio=0.4, per=per))
        assert sum(d.tokens for d in decided) <= 0.4 * int(counts[:, -1].sum())
        assert [d.tokens for d in decided] == [int(counts[i, d.level]) for i, d in enumerate(decided)]
    tight = flex.decide(**inputs, budget=tokenflex.Budget(tokens=2))
    assert all(d.tokens <= 2 for d in tight)


def test_images_that_cannot_be_judged_are_refused_or_kept_fine(flex):
    inputs = batch_of(flex)
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"][:64] = torch.nan
    with pytest.raises(InputError, match=r"image 0 \(row 0"):
        flex.generate(**inputs, **TOKENS)
    lenient = assembled(host=flex.host)
    lenient.compressor.on_bad_scores = "finest"
    assert lenient.decide(**inputs)[0].level == 4


@pytest.mark.parametrize("scaler", ["resolution", "average-pool"])
def test_what_nobody_was_to_look_at_is_not_judged(flex, scaler):
    other, inputs = assembled(host=flex.host, scaler=scaler), batch_of(flex)
    with pytest.raises(InputError, match="encoded with look=False"):
        other.scores(other.encode(inputs, look=False))


@torch.no_grad()
def test_budgets_are_calibrated_on_what_smaller_images_cost(flex):
    inputs = batch_of(flex)
    counts = flex.encode(inputs).counts
    found = tokenflex.calibrate(flex, tokenflex.Budget(ratio=0.4), [inputs])
    tokens = sum(one.tokens for one in flex.decide(**inputs, budget=found))
    assert tokens <= 0.4 * int(counts[:, -1].sum())


def test_decisions_carry_the_processors_settings(flex):
    inputs = batch_of(flex)
    batch = flex.adapter.read(inputs)
    for i, one in enumerate(flex.decide(**inputs)):
        assert one.processor_kwargs() == flex.adapter.processor_kwargs(batch, i, one.tokens) != {}
    plain = assembled(host=flex.host, scaler="average-pool")
    coarse, fine = (plain.decide(**inputs, level=level)[1].processor_kwargs() for level in (0, 4))
    assert coarse != fine
    assert flex(**inputs).decisions[0].processor == {}
    with pytest.raises(InputError, match="has no settings of a processor"):
        flex(**inputs).decisions[0].processor_kwargs()


def test_hosts_without_smaller_images_are_refused(flex):
    class Fixed(type(flex.adapter)):
        resize_refusal = "its images have one size"

    with pytest.raises(UnsupportedHostError, match=r"ResolutionScaler .* 'qwen2_5_vl' can't take: its images have one"):
        assembled(host=flex.host, adapter=Fixed(flex.host))


@pytest.mark.parametrize(
    ("router", "message"),
    [("reconstruction", "compares an image's levels"), ("attention-mass", "needs the vision tower's attention")],
)
def test_routers_that_see_too_little_are_refused(flex, router, message):
    with pytest.raises(ConfigError, match=message):
        assembled(host=flex.host, router=router, voter="mean")


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
@torch.no_grad()
def test_answers_that_are_tried_again_encode_every_size_once(flex, threshold):
    inputs = batch_of(flex)
    unsure = tokenflex.Escalate(threshold=threshold, start="coarsest")
    with watched(flex) as calls:
        out = flex.generate(**inputs, **TOKENS, escalate=unsure, return_dict_in_generate=True)
    levels = [decision.level for decision in out.decisions]
    assert levels == ([0] * 3 if threshold < 0 else [4] * 3)
    assert torch.equal(out.sequences, flex.generate(**inputs, **TOKENS, level=levels))
    sizes = [TestTower().patches(flex, inputs, [level] * 3) for level in range(levels[0] + 1)]
    finer = [[b for a, b in zip(*pair, strict=True) if a != b] for pair in itertools.pairwise(sizes)]
    assert calls.patches == [sum(sizes[0]), *map(sum, finer)]


@torch.no_grad()
def test_videos(flex):
    inputs = batch_of(flex, ((1, A_VIDEO, 2), (AN_IMAGE, 3)))
    assert torch.equal(flex(**inputs, level=-1).logits, flex.host(**inputs).logits)
    counts = flex.encode(inputs).counts
    spliced = flex.at_levels(inputs, flex.encode(inputs), [0, 0])
    assert list(spliced.tokens) == counts[:, 0].tolist()
    flex.generate(**inputs, level=0, **TOKENS)
    flex.generate(**inputs, **TOKENS)

"""The host laws on tiny random hosts that cut images into tiles: LLaVA-NeXT and its kin."""

import copy

import pytest
import torch

import tokenflex
from tests.hosts.served import served
from tests.hosts.test_llava_next import snapshot
from tokenflex.contracts import Grid
from tokenflex.errors import ConfigError, InputError, UnsupportedHostError
from tokenflex.hosts.granite4_vision import Granite4VisionAdapter
from tokenflex.hosts.llava_onevision import LlavaOnevisionAdapter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.scalers.random import RandomScaler
from tokenflex.testing.host_bench import labels_of
from tokenflex.testing.zoo.anyres import HOSTS
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE, IMAGE, VIDEO

WINDOWS = ((2, 2), (1, 2), (1, 1))
FINEST = len(WINDOWS) - 1
TINY = {tiny.model_type: tiny for tiny in HOSTS}
IMAGES = ([1, AN_IMAGE, 2], [AN_IMAGE, 3, AN_IMAGE, 4, 5, 6, 7], [8, 9], [AN_IMAGE])
VIDEOS = ([1, A_VIDEO, 2, AN_IMAGE], [3, 4], [A_VIDEO, AN_IMAGE, 5, AN_IMAGE, A_VIDEO, 6, 7], [A_VIDEO])
LONELY = ([1, AN_IMAGE, 2], [8, 9], [3, 4, 5, AN_IMAGE])
SEEN = [(name, rows) for name, tiny in TINY.items() for rows in ((IMAGES, VIDEOS) if tiny.videos else (IMAGES,))]
IDS = [f"{name}-{'videos' if rows is VIDEOS else 'images'}" for name, rows in SEEN]

made = {}


def tiles(name):
    """(host, its flex model), built once."""
    if name not in made:
        host = served(name).build()
        torch.manual_seed(0)
        made[name] = host, tokenflex.wrap(host, scaler=AveragePoolScaler.Config(windows=WINDOWS))
    return made[name]


@pytest.fixture(params=TINY)
def name(request):
    return request.param


@pytest.fixture(params=SEEN, ids=IDS)
def seen(request):
    """(host, flex, function making the batch)."""
    name, rows = request.param
    host, flex = tiles(name)
    return host, flex, lambda side="left": TINY[name].batch(host.config, rows, side=side)


def alone(batch, row):
    """One row of a batch, without its padding."""
    keep = batch["attention_mask"][row].bool()
    out = {key: batch[key][row, keep][None] for key in ("input_ids", "attention_mask")}
    for keys, token in ((("pixel_values", "image_sizes"), IMAGE), (("pixel_values_videos",), VIDEO)):
        runs = [number_of_runs(ids, batch, token) for ids in batch["input_ids"]]
        first = sum(runs[:row])
        out |= {key: batch[key][first : first + runs[row]] for key in keys if key in batch and runs[row]}
        if token == IMAGE and runs[row] and "batch_num_images" in batch:
            out["batch_num_images"] = torch.tensor([runs[row]])
    return out


def number_of_runs(ids, batch, token):
    """Images or videos of a row: words always stand between them, or placeholders of the other kind."""
    here = (ids == token).int()
    return int(here[0]) + int((here.diff() == 1).sum())


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_identity_logits(seen, side):
    host, flex, batch = seen
    inputs = batch(side)
    assert torch.equal(host(**inputs).logits, flex(**inputs, level=FINEST).logits)


def test_identity_loss(seen):
    host, flex, batch = seen
    inputs = batch()
    hidden = (inputs["attention_mask"] == 0) | torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO]))
    labels = inputs["input_ids"].masked_fill(hidden, -100)
    assert torch.equal(host(**inputs, labels=labels).loss, flex(**inputs, labels=labels, level=FINEST).loss)


GENERATION = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("way", GENERATION)
def test_identity_generate(seen, way):
    host, flex, batch = seen
    inputs = batch()
    if "num_beams" in GENERATION[way] and host.config.model_type == "granite4_vision":
        inputs = TINY["granite4_vision"].batch(host.config, LONELY)  # its own beams mix up images of a row
    options = {"max_new_tokens": 6, **GENERATION[way]}
    assert torch.equal(host.generate(**inputs, **options), flex.generate(**inputs, level=FINEST, **options))


def test_beams_of_granite_keep_the_images_of_a_row_apart():
    host, flex = tiles("granite4_vision")
    inputs = TINY["granite4_vision"].batch(host.config, [[AN_IMAGE, 3, AN_IMAGE, 4]])
    given = host.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    given.deepstack_features = [(layer, [torch.cat(packed)]) for layer, packed in given.deepstack_features]
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6}
    expected = host.generate(**text, mm_encoder_outputs={"image": given}, **options)
    assert torch.equal(expected, flex.generate(**inputs, level=FINEST, **options))
    assert not torch.equal(expected, host.generate(**inputs, **options))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_mixed_levels_equals_singles(seen, side):
    _, flex, batch = seen
    inputs = batch(side)
    rows = [image.row for image in flex.encode(inputs).images]
    levels = [i % len(WINDOWS) for i in range(len(rows))]
    together = flex(**inputs, level=levels).logits
    for row in range(len(inputs["input_ids"])):
        mine = [level for level, at in zip(levels, rows, strict=True) if at == row]
        logits = flex(**alone(inputs, row), level=mine or None).logits[0]
        where = slice(together.shape[1] - len(logits), None) if side == "left" else slice(0, len(logits))
        torch.testing.assert_close(together[row, where], logits, atol=1e-4, rtol=1e-4)


def test_batch_generates_as_singles(seen):
    _, flex, batch = seen
    inputs = batch()
    options = {"level": 0, "max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 2}
    together = flex.generate(**inputs, **options)[:, -5:]
    for row in range(len(together)):
        assert torch.equal(together[row : row + 1], flex.generate(**alone(inputs, row), **options)[:, -5:])


def test_counts_are_known_in_advance(seen):
    _, flex, batch = seen
    inputs = batch()
    encoded = flex.encode(inputs)
    rows = torch.tensor([image.row for image in encoded.images])
    for level in range(len(WINDOWS)):
        spliced = flex.at_levels(inputs, encoded, [level] * len(rows))
        assert list(spliced.tokens) == encoded.counts[:, level].tolist()
        found = torch.isin(spliced.inputs["input_ids"], torch.tensor([IMAGE, VIDEO])).sum(-1)
        expected = [
            sum(t for t, at in zip(spliced.tokens, rows, strict=True) if at == row) for row in range(len(found))
        ]
        assert found.tolist() == expected
    assert (encoded.counts.diff(dim=1) > 0).all()


def test_answers_carry_loss_at_every_level(seen):
    _, flex, batch = seen
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < 17, -100)
    encoded = flex.encode(inputs)
    for level in range(len(WINDOWS)):
        spliced = flex.at_levels({**inputs, "labels": labels}, encoded, [level] * len(encoded.images)).inputs
        kept = spliced["labels"][spliced["labels"] != -100]
        assert torch.equal(kept, labels[labels != -100])


@torch.no_grad()
def test_text_only_batch_passes_through(name):
    host, flex = tiles(name)
    inputs = TINY[name].batch(host.config, [[1, 2, 3], [4]])
    assert torch.equal(host(**inputs).logits, flex(**inputs).logits)


def test_placeholders_are_no_words(seen):
    _, flex, batch = seen
    inputs = batch()
    words = [len(one.embeddings) for one in flex.adapter.instructions(flex.adapter.read(inputs))]
    visual = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO]))
    assert words == (inputs["attention_mask"].bool() & ~visual).sum(-1).tolist()


def test_host_is_untouched(name):
    host = served(name).build()
    inputs = TINY[name].batch(host.config, IMAGES)
    expected = host.generate(**inputs, max_new_tokens=4)
    host(**inputs)  # transformers installs its own recording hooks on first use
    before = snapshot(host)
    flex = tokenflex.wrap(host, scaler=AveragePoolScaler.Config(windows=WINDOWS))
    flex.generate(**inputs, max_new_tokens=4)
    flex(**inputs, labels=labels_of(inputs))
    after = snapshot(host)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1:] == after[1:]
    assert torch.equal(expected, host.generate(**inputs, max_new_tokens=4))


def test_vision_tower_runs_once(name):
    host, flex = tiles(name)
    calls = []
    handle = host.model.vision_tower.register_forward_hook(lambda *a: calls.append(1))
    flex.generate(**TINY[name].batch(host.config, IMAGES), max_new_tokens=3)
    handle.remove()
    assert calls == [1]


def test_gradients_reach_the_tower_at_every_level(seen):
    host, flex, batch = seen
    inputs = batch()
    weight = next(host.model.vision_tower.parameters())
    for level in range(len(WINDOWS)):
        weight.grad = None
        flex(**inputs, labels=labels_of(inputs), level=level).loss.backward()
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
    host.zero_grad()


def test_parts_are_saved_and_loaded(name, tmp_path):
    host, flex = tiles(name)
    inputs = TINY[name].batch(host.config, IMAGES)
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=host)
    pairs = zip(flex.decide(**inputs), again.decide(**inputs), strict=True)
    assert all(torch.equal(a.scores, b.scores) for a, b in pairs)
    assert type(again.adapter) is type(flex.adapter)
    other, _ = tiles("llava_next" if name != "llava_next" else "llava_next_video")
    with pytest.raises(ConfigError, match="model_type"):
        tokenflex.load_parts(tmp_path, host=other)


def test_parameter_groups_are_disjoint_and_complete(name):
    host, flex = tiles(name)
    groups = flex.adapter.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in host.parameters()}
    assert any(p is host.model.image_newline for p in groups["projector"])


@torch.no_grad()
def test_half_precision_is_identity(name):
    host = copy.deepcopy(tiles(name)[0]).to(torch.bfloat16)
    flex = tokenflex.wrap(host, scaler=AveragePoolScaler.Config(windows=WINDOWS))
    inputs = TINY[name].batch(host.config, IMAGES)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    assert torch.equal(host(**inputs).logits, flex(**inputs, level=FINEST).logits)
    assert torch.isfinite(flex(**inputs, level=0).logits).all()


@torch.no_grad()
def test_scaler_without_grid_goes_through(seen):
    host, _, batch = seen
    flex = tokenflex.wrap(host, scaler=RandomScaler.Config(windows=WINDOWS))
    inputs = batch()
    assert torch.equal(host(**inputs).logits, flex(**inputs, level=FINEST).logits)
    encoded = flex.encode(inputs)
    assert list(flex.at_levels(inputs, encoded, [0] * len(encoded.images)).tokens) == encoded.counts[:, 0].tolist()
    assert torch.isfinite(flex(**inputs, level=0).logits).all()


def test_onevision_shrinks_the_canvas_and_not_the_whole_image():
    host, flex = tiles("llava_onevision")
    inputs = TINY["llava_onevision"].batch(host.config, [[AN_IMAGE]] * 3)
    encoded = flex.encode(inputs)
    host, unshrunk = tiles("llava_next")
    others = unshrunk.encode(TINY["llava_next"].batch(host.config, [[AN_IMAGE]] * 3)).counts
    assert (encoded.counts[:, FINEST] < others[:, FINEST]).all()
    spliced = flex.at_levels(inputs, encoded, [FINEST] * 3).inputs["mm_encoder_outputs"]["image"].pooler_output
    for image, packed in zip(encoded.images, spliced, strict=True):
        assert torch.equal(packed[:16], image.features[0])


@torch.no_grad()
def test_onevision_without_numbers_takes_every_image_as_alone():
    host, flex = tiles("llava_onevision")
    inputs = TINY["llava_onevision"].batch(host.config, LONELY)
    del inputs["batch_num_images"]
    assert torch.equal(host(**inputs).logits, flex(**inputs, level=FINEST).logits)


def test_videos_are_frames_on_the_pooled_grid():
    for name, ends in (("llava_onevision", 1), ("llava_next_video", 0)):
        host, flex = tiles(name)
        inputs = TINY[name].batch(host.config, [[1, A_VIDEO]])
        (video,) = flex.encode(inputs).images
        assert video.grid == Grid(2, 2)
        assert video.features.shape == (3, 4, 32)
        assert [d.tokens for d in flex.decide(**inputs, level=0)] == [3 + ends]


@torch.no_grad()
@pytest.mark.parametrize(("name", "ends"), [("llava_onevision", 1), ("llava_next_video", 0)])
def test_frames_of_videos_are_merged_at_temporal_levels(name, ends):
    """Three frames of 2 x 2 tokens: the first two become one, the third stays; images have no time."""
    host, _ = tiles(name)
    in_time = AveragePoolScaler.Config(windows=((2, 2, 2), (2, 1, 1), (1, 1, 1)))
    flex = tokenflex.wrap(host, scaler=in_time, router="constant", voter="mean")
    inputs = TINY[name].batch(host.config, VIDEOS)
    encoded = flex.encode(inputs)
    assert [image.video for image in encoded.images] == [False] * 3 + [True] * 4
    assert encoded.counts[3:].tolist() == [[2 + ends, 8 + ends, 12 + ends]] * 4
    assert torch.equal(encoded.counts[:3, 1], encoded.counts[:3, 2])
    for level in range(3):
        assert list(flex.at_levels(inputs, encoded, [level] * 7).tokens) == encoded.counts[:, level].tolist()
    spliced = flex.at_levels(inputs, encoded, [1] * 7).inputs["mm_encoder_outputs"]["video"].pooler_output
    packed = torch.cat([entry.view(-1, 32) for entry in spliced])
    torch.testing.assert_close(packed[:4], encoded.images[3].features[:2].mean(0))
    together = flex.generate(**inputs, level=1, max_new_tokens=4, min_new_tokens=4, num_beams=2)[:, -4:]
    single = flex.generate(**alone(inputs, 2), level=1, max_new_tokens=4, min_new_tokens=4, num_beams=2)[:, -4:]
    assert torch.equal(together[2:3], single)


def test_planes_of_granite_are_averaged_like_the_features():
    host, flex = tiles("granite4_vision")
    inputs = TINY["granite4_vision"].batch(host.config, [[AN_IMAGE]])
    encoded = flex.encode(inputs)
    (image,) = encoded.images
    assert len(image.planes) == 3
    outputs = flex.at_levels(inputs, encoded, [0]).inputs["mm_encoder_outputs"]["image"].deepstack_features
    assert [layer for layer, _ in outputs] == [0, 1, 2, 3]
    for (_, (packed,)), plane in zip(outputs, (image.features, *image.planes), strict=True):
        whole = plane[0].view(2, 2, 2, 2, 32).mean((1, 3)).flatten(0, 1)
        torch.testing.assert_close(packed[:4], whole)


def test_wrong_number_of_images_is_refused():
    host, flex = tiles("llava_onevision")
    inputs = TINY["llava_onevision"].batch(host.config, IMAGES)
    inputs["batch_num_images"] = torch.tensor([1, 2])
    with pytest.raises(InputError, match=r"adds up to 3 images, pixel_values holds 4"):
        flex(**inputs)


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_videos_that_do_not_fit_are_refused(name):
    host, flex = tiles(name)
    inputs = TINY[name].batch(host.config, [[1, A_VIDEO]])
    with pytest.raises(InputError, match="pixel_values_videos has 4 axes"):
        flex(**inputs | {"pixel_values_videos": inputs["pixel_values_videos"][0]})
    with pytest.raises(InputError, match="placeholder"):
        flex(**{key: value for key, value in inputs.items() if key != "pixel_values_videos"})


def test_unknown_aspect_ratio_is_refused():
    host = copy.copy(tiles("llava_onevision")[0])
    host.config = copy.deepcopy(host.config)
    host.config.vision_aspect_ratio = "anyres"
    with pytest.raises(
        UnsupportedHostError, match=r"vision_aspect_ratio='anyres' names no largest number.*anyres_max_9"
    ):
        tokenflex.wrap(host)


@pytest.mark.parametrize("adapter", [LlavaOnevisionAdapter, Granite4VisionAdapter])
def test_bad_scope_and_foreign_hosts_are_refused(adapter):
    host, _ = tiles(adapter.model_types[0])
    with pytest.raises(ConfigError, match="scope='published'"):
        adapter(host, scope="published")
    assert "'llava_next'" in adapter.refusal(tiles("llava_next")[0])

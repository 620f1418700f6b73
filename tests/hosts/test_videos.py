"""Videos at temporal levels: windows over (time, rows, cols)."""

import itertools

import pytest
import torch

import tokenflex
from tests.hosts.served import served
from tokenflex.hosts.grid import GridAdapter
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.zoo.grids import VIDEOS
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE, IMAGE, VIDEO

IN_TIME = AveragePoolScaler.Config(windows=((2, 2, 2), (2, 1, 1), (1, 1, 1)))
SERVED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "cohere_compass", "cosmos3_edge"]
FRAMED = ["qwen3_vl", "qwen3_5", "cohere_compass", "glm4v"]


def wrapped(name, positions="span"):
    tiny = served(name)
    host = tiny.build()
    adapter = GridAdapter(host, positions=positions)
    return tiny, tokenflex.wrap(host, scaler=IN_TIME, router="constant", voter="mean", adapter=adapter)


@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_counts_features_and_generation(name):
    tiny, flex = wrapped(name)
    rows = ((1, A_VIDEO, 2), (3, 4), (A_VIDEO, 5, A_VIDEO, 6))
    inputs = tiny.batch(flex.host.config, rows)
    encoded = flex.encode(inputs)
    assert [image.video for image in encoded.images] == [True] * 3
    for number, (t, h, w) in enumerate(VIDEOS):
        halved = -(-t // 2)
        spatial = -(-h // 2) * -(-w // 2)
        assert encoded.counts[number].tolist() == [halved * spatial, halved * h * w, t * h * w]
    for level in range(3):
        spliced = flex.at_levels(inputs, encoded, [level] * 3)
        assert list(spliced.tokens) == encoded.counts[:, level].tolist()
    (merged,) = flex.compressor.scale([encoded.images[0]], [1])
    assert torch.equal(merged.features[0], encoded.images[0].features.mean(0))
    assert torch.equal(flex(**inputs, level=2).logits, flex.host(**inputs).logits)
    together = flex.generate(**inputs, level=[0, 1, 0], max_new_tokens=3, min_new_tokens=3)[:, -3:]
    alone = flex.generate(**tiny.batch(flex.host.config, rows[:1]), level=0, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(together[:1], alone[:, -3:])


@pytest.mark.parametrize("name", FRAMED)
def test_a_merged_frame_takes_its_time_along(name):
    """Video 1 has three frames of 2 x 6: the first two become one, the third stays, each behind its own time."""
    tiny, flex = wrapped(name)
    inputs = tiny.batch(flex.host.config, ((20, A_VIDEO, 21),), first=1)
    short = flex.prepare(inputs, 1)[0].inputs["input_ids"][0].tolist()
    full = inputs["input_ids"][0].tolist()
    placeholder = IMAGE if name == "glm4v" else VIDEO
    ends = [i for i, pair in enumerate(itertools.pairwise(full), 1) if pair[0] == placeholder != pair[1]]
    assert len(ends) == 3
    assert short == full[: ends[0]] + full[ends[1] :]


@pytest.mark.parametrize("positions", ["span", "compact"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_positions_of_merged_frames(name, positions):
    tiny, flex = wrapped(name, positions)
    inputs = tiny.batch(flex.host.config, ((1, A_VIDEO, 2, AN_IMAGE, 3),))
    short = flex.prepare(inputs, [1, 0])[0].inputs
    if positions == "compact":
        assert short["video_grid_thw"][0, 0] == 1
    else:
        assert short["position_ids"].shape[-1] == short["input_ids"].shape[1]
    assert flex(**inputs, level=[1, 0]).logits.isfinite().all()


def test_images_have_no_time():
    tiny, flex = wrapped("qwen2_vl")
    inputs = tiny.batch(flex.host.config, ((1, AN_IMAGE, 2),))
    assert flex.encode(inputs).counts.tolist() == [[4, 16, 16]]

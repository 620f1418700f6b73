"""The row of attention computed again, against the weights of the tower's own eager attention."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hosts.served import served
from tokenflex.contracts import Grid
from tokenflex.errors import InputError, UnsupportedHostError
from tokenflex.hosts import tower_attention
from tokenflex.hosts.architectures import ARCHITECTURES
from tokenflex.model import wrap
from tokenflex.registry import hosts
from tokenflex.scalers.average_pool import AveragePoolScaler
from tokenflex.testing.host_bench import ROWS, HostBench
from tokenflex.testing.zoo.recipe import A_VIDEO, AN_IMAGE

READ = [name for name, row in ARCHITECTURES.items() if row.attention_refusal is None]


def bench_of(name):
    torch.manual_seed(0)
    tiny = served(name)
    return HostBench(hosts.get(name)(tiny.build()), tiny)


def recorded(bench, inputs):
    """Per call of the tower the attention weights of the layer that the projector reads, from an eager copy."""
    host = copy.deepcopy(bench.host)
    host.set_attn_implementation("eager")
    layers = tower_attention._layers(host, bench.adapter.architecture.vision_tower)
    features = getattr(host.config, "vision_feature_layer", None)
    features = -1 if features is None else features
    features = features if isinstance(features, int) else features[-1]
    # hidden_states[i] is what layer i is given, so layer i - 1 made it.
    layer = layers[(len(layers) + 1 + features if features < 0 else features) - 1]
    seen = []
    handle = tower_attention._parts(layer)[1].register_forward_hook(lambda *call: seen.append(call[-1][1]))
    adapter = type(bench.adapter)(host)
    adapter.encode(adapter.read(inputs))
    handle.remove()
    return seen


@pytest.mark.parametrize("name", READ)
def test_it_is_the_towers_own_row(name):
    bench = bench_of(name)
    assert bench.adapter.attention_refusal is None
    inputs = bench.batch()
    with torch.no_grad():
        images = bench.adapter.encode(bench.adapter.read(inputs), attention=True)
        plain = bench.adapter.encode(bench.adapter.read(inputs))
        weights = torch.cat(recorded(bench, inputs))
    mean = weights.float().mean(1)
    class_token = math.isqrt(mean.shape[-1]) ** 2 != mean.shape[-1]
    rows = mean[:, 0, 1:] if class_token else mean.mean(1)
    side = math.isqrt(rows.shape[-1])
    grid = images[0].grid
    expected = F.adaptive_avg_pool2d(rows.view(-1, 1, side, side), (grid.rows, grid.cols)).flatten(1)
    found = torch.cat([image.attention for image in images])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert found.std() > 0
    for image, same in zip(images, plain, strict=True):
        torch.testing.assert_close(image.features, same.features)
        assert image.keys.shape[:-1] == image.features.shape[:-1]
        assert same.attention is None
        assert same.keys is None


@pytest.mark.parametrize("name", ["llava_next", "internvl", "llava"])
def test_a_image_is_attended_to_alike_alone_and_in_a_batch(name):
    bench = bench_of(name)
    with torch.no_grad():
        together = bench.adapter.encode(bench.adapter.read(bench.batch()), attention=True)
        first = bench.adapter.encode(bench.adapter.read(bench.batch(ROWS[:1])), attention=True)
    for image, alone in zip(together, first, strict=False):
        torch.testing.assert_close(image.attention, alone.attention, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(image.keys, alone.keys, atol=1e-5, rtol=1e-4)


def test_rows_in_pieces_are_the_whole(monkeypatch):
    bench = bench_of("paligemma")  # SigLIP: no class token, so all rows count
    with torch.no_grad():
        whole = bench.adapter.encode(bench.adapter.read(bench.batch()), attention=True)
        monkeypatch.setattr(tower_attention, "QUERIES_AT_ONCE", 3)
        pieces = bench.adapter.encode(bench.adapter.read(bench.batch()), attention=True)
    torch.testing.assert_close(pieces[0].attention, whole[0].attention)
    torch.testing.assert_close(whole[0].attention.sum(-1), torch.ones(len(whole[0].attention)))


class Glancing(AveragePoolScaler):
    """Average pooling that asks for the tower's attention."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AveragePoolScaler.Config):
        pass

    needs = frozenset({"attention"})


def test_a_tower_that_cannot_be_read_is_refused_when_parts_are_put_on():
    bench = bench_of("qwen2_vl")
    with pytest.raises(
        UnsupportedHostError, match=r"Glancing need\(s\) the vision tower's attention, which 'qwen2_vl'"
    ):
        wrap(bench.host, scaler=Glancing.Config(), router="constant", voter="mean")


def test_patches_off_the_square_are_refused():
    with pytest.raises(InputError, match=r"made 10 patches .* squares only"):
        tower_attention._on_grid(torch.zeros(1, 10, 1), Grid(2, 5))


def test_towers_without_projections_of_their_own_are_refused():
    model = nn.ModuleDict({"tower": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})})
    assert "query and a key projection" in tower_attention.unreadable(model, ["tower"])


def test_frames_of_videos_are_attended_to_on_their_pooled_grid():
    tiny = served("llava_next_video")
    adapter = hosts.get("llava_next_video")(tiny.build())
    inputs = tiny.batch(adapter.host.config, [[1, A_VIDEO, 2, AN_IMAGE], [A_VIDEO, 3]])
    with torch.no_grad():
        images = adapter.encode(adapter.read(inputs), attention=True)
    video = next(image for image in images if image.video)
    assert video.attention.shape == video.features.shape[:-1]
    assert video.keys.shape[:-1] == video.features.shape[:-1]

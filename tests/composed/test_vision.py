"""Features of several layers on one grid, and statistics that stay."""

import pytest
import timm
import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig

import tokenflex
from tests.composed.conftest import VISION
from tokenflex.composed.vision import joined
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_tokenizer

NAME = "tf_efficientnet_lite0"
SIDE = 64


@pytest.fixture
def language():
    return LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )


def compose(vision, language, **told):
    torch.manual_seed(0)
    return tokenflex.compose(vision, language, tokenizer=tiny_tokenizer(), pretrained=False, **told)


def test_the_first_layer_gives_the_grid_finer_ones_are_folded_and_coarser_ones_repeated(language):
    model, _ = compose(f"timm/{NAME}", language, image_size=SIDE, layer=(-2, -3, -1))
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        fine, middle, coarse = model.vision_tower.trunk.forward_intermediates(
            pixels, indices=[2, 3, 4], norm=True, intermediates_only=True
        )
        found = model.vision_tower(pixels)
    assert (fine.shape[1:], middle.shape[1:], coarse.shape[1:]) == ((40, 8, 8), (112, 4, 4), (320, 2, 2))
    assert found.shape == (2, 4 * 40 + 112 + 320, 4, 4)
    assert (model.config.grid, model.config.vision_width) == ([4, 4], 592)
    for row, col in ((0, 0), (1, 2), (3, 3)):
        patch = fine[:, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        expected = torch.cat([patch.flatten(1), middle[:, :, row, col], coarse[:, :, row // 2, col // 2]], dim=1)
        assert torch.equal(found[:, :, row, col], expected)


@pytest.mark.parametrize("vision", [f"timm/{NAME}", "timm/vit_tiny_patch16_224", "clip"])
def test_several_layers_are_saved_and_loaded(vision, language, tmp_path):
    given = CLIPVisionConfig(**VISION) if vision == "clip" else vision
    size = {} if vision == "clip" else {"image_size": SIDE}
    model, _ = compose(given, language, layer=(-2, -1), **size)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, *model.config.image_size)
    with torch.no_grad():
        assert torch.equal(model.vision_tower(pixels), again.vision_tower(pixels))


def test_of_a_transformer_they_stand_behind_each_other(language):
    model, _ = compose(CLIPVisionConfig(**VISION), language, layer=(-1, -2))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = model.vision_tower.trunk(pixel_values=pixels, output_hidden_states=True)
        found = model.vision_tower(pixels).flatten(2).transpose(1, 2)
    assert torch.equal(found, torch.cat([output.hidden_states[-2], output.last_hidden_state], dim=2)[:, 1:])


def test_grids_that_dont_fit_are_refused():
    maps = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 6, 6)]
    with pytest.raises(ConfigError, match="4 x 4 and 6 x 6 can't be joined"):
        joined(maps, 0)


@pytest.mark.parametrize("layer", [(), (-1, -1), (-1, 0), (0, 1), ("-1",), (True, -2), "last", 1.5])
def test_what_is_no_layer_is_refused(layer, language):
    with pytest.raises(ConfigError, match="layer="):
        compose(f"timm/{NAME}", language, image_size=SIDE, layer=layer)


def test_batch_normalisation_keeps_its_statistics_while_everything_is_trained(language):
    model, _ = compose(f"timm/{NAME}", language, image_size=SIDE, layer=-2)
    tower, pixels = model.vision_tower, torch.randn(4, 3, SIDE, SIDE)
    before = {name: value.clone() for name, value in tower.named_buffers()}
    with torch.no_grad():
        expected = tower(pixels)
    model.train()
    assert tower.training
    found = tower(pixels)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    assert any(p.grad is not None for name, p in tower.named_parameters() if "bn" in name)


def test_timms_own_encoder_would_lose_them():
    """What the test above guards against."""
    trunk = timm.create_model(NAME, pretrained=False)
    before = trunk.bn1.running_mean.clone()
    trunk.train()(torch.randn(4, 3, SIDE, SIDE))
    assert not torch.equal(trunk.bn1.running_mean, before)

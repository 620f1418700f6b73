"""The parts' two files: what is in them is sound, or is refused by name."""

import pytest
import torch

import tokenflex
from tokenflex import checkpoint
from tokenflex.errors import ConfigError
from tokenflex.testing.tiny_hosts import tiny_llava_next


@pytest.fixture
def flex():
    return tokenflex.wrap(tiny_llava_next())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(flex, tmp_path, value):
    with torch.no_grad():
        flex.compressor.router.mlp[0].bias[1] = value
    flex.save_parts(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenflex\.safetensors: NaN or infinite values in 'router\.mlp\.0\.bias'"):
        tokenflex.load_parts(tmp_path, host=tiny_llava_next())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_type_of_weights_is_looked_at(dtype):
    sound = {"a": torch.ones(3).to(dtype), "b": torch.arange(3), "c": torch.empty(3, device="meta")}
    checkpoint.require_sound(sound, "here")
    with pytest.raises(ConfigError, match="here: NaN or infinite values in 'd'"):
        checkpoint.require_sound({**sound, "d": torch.tensor([0.0, float("nan")]).to(dtype)}, "here")


def test_many_unsound_weights_are_counted():
    state = {name: torch.full((1,), float("nan")) for name in "abcde"}
    with pytest.raises(ConfigError, match="'a', 'b', 'c' and 2 more"):
        checkpoint.require_sound(state, "here")

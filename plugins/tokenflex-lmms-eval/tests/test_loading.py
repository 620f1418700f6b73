import pytest
import torch

from tokenflex.errors import ConfigError
from tokenflex_lmms_eval.loading import load
from tokenflex_lmms_eval.settings import Settings


def loaded(device="cpu", **given):
    return load(Settings.parse(given), device)


def test_a_saved_model_and_its_halves_are_the_same(saved, flex):
    whole, processor = loaded(model=saved / "model")
    halves, _ = loaded(host=saved / "host", parts=saved / "parts")
    assert type(processor).__name__ == "LlavaNextProcessor"
    expected = flex.state_dict()
    for model in (whole, halves):
        assert not model.training
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_untrained_parts_by_name(saved):
    flex, _ = loaded(host=saved / "host", scaler="stride", router="reconstruction", voter="mean")
    parts = (flex.compressor.scaler, flex.compressor.router, flex.compressor.voter)
    assert [type(part).__name__ for part in parts] == ["StrideScaler", "ReconstructionRouter", "MeanVoter"]


def test_dtype_attention_and_placement(saved):
    flex, _ = loaded("auto", model=saved / "model", dtype="bfloat16", attn_implementation="eager")
    assert flex.host.dtype == torch.bfloat16
    assert next(flex.compressor.router.parameters()).dtype == torch.float32
    assert flex.host.config.get_text_config()._attn_implementation == "eager"
    assert loaded("cpu:0", model=saved / "model")[0].device.type == "cpu"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "host"}, "is a plain LlavaNext.* without parts"),
        ({"host": "model", "level": 0}, "has parts of its own. Give it as the model"),
        ({"model": "model", "level": 5}, "level=5 is out of range: there are 0 .* to 4"),
        ({"model": "model", "level": -6}, "level=-6 is out of range"),
        ({"model": "bare"}, "the processor of .* can't be loaded"),
        ({"model": "model", "processor": "parts"}, "the processor of .* can't be loaded"),
    ],
)
def test_what_does_not_fit(saved, given, message):
    places = {name: saved / value if name in ("model", "host", "processor") else value for name, value in given.items()}
    with pytest.raises(ConfigError, match=message):
        loaded(**places)


def test_the_processor_may_be_elsewhere(saved):
    assert loaded(model=saved / "bare", processor=saved / "host")[1].tokenizer is not None

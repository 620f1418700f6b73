"""The scalers in a model: generating, saving, and training with the language model in stage 3."""

import pytest
import torch

import tokenflex
from tokenflex.testing.tiny_hosts import tiny_llava_next
from tokenflex.training import STAGES, MultiGranularityObjective, MultiGranularityTrainer
from tokenflex_resampling import AdaptivePoolScaler, NestedQueriesScaler, RegionAttentionScaler

TRAINED = (NestedQueriesScaler.Config(queries=(4, 16)), RegionAttentionScaler.Config())
ALL = (AdaptivePoolScaler.Config(sides=(2, 3, 5)), *TRAINED)


@pytest.mark.parametrize("config", TRAINED, ids=lambda config: config.owner.__name__)
def test_stage_three_trains_the_scaler(fresh, arguments, dataset, collator, training_batch, config):
    flex = fresh(config)
    stage = STAGES[3].with_rates(vision_tower=1e-3, projector=3e-3, language_model=3e-3, scaler=1e-3)
    trainer = MultiGranularityTrainer(
        flex, arguments, stage=stage, train_dataset=dataset, data_collator=collator, memory="auto"
    )
    before = {name: p.detach().clone() for name, p in flex.compressor.scaler.named_parameters()}
    with torch.no_grad():
        first = flex(**training_batch, objective=MultiGranularityObjective()).level_losses
    trainer.train()
    with torch.no_grad():
        last = flex(**training_batch, objective=MultiGranularityObjective()).level_losses
    unchanged = [name for name, p in flex.compressor.scaler.named_parameters() if torch.equal(p, before[name])]
    assert not unchanged
    assert bool((last < first).all())


def test_the_published_stage_three_has_a_rate_for_scalers():
    assert STAGES[3].rates["scaler"] > 0


@pytest.mark.parametrize("config", TRAINED, ids=lambda config: config.owner.__name__)
def test_all_ways_through_the_levels_give_the_same_gradients(fresh, training_batch, config):
    """``low`` is the default on a CPU: parameters of the scaler get the gradients of all levels there."""
    found = {}
    for memory in ("auto", "joint", "packed"):
        flex = fresh(config)
        scaler = flex.compressor.scaler
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for parameter in scaler.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        flex(**training_batch, objective=MultiGranularityObjective(memory)).loss.backward()
        found[memory] = {name: p.grad for name, p in scaler.named_parameters()}
    for name, gradient in found["joint"].items():
        assert bool(gradient.abs().sum() > 0), name
        for memory in ("auto", "packed"):
            torch.testing.assert_close(found[memory][name], gradient, atol=1e-5, rtol=1e-3, msg=f"{memory} {name}")


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.owner.__name__)
def test_generates_at_every_level_and_comes_back_from_disk(fresh, training_batch, tmp_path, config):
    flex = fresh(config).eval()
    prompt = {key: value for key, value in training_batch.items() if key != "labels"}
    counts = [sum(d.tokens for d in flex.decide(level=level, **prompt)) for level in range(flex.compressor.num_levels)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    flex.save_parts(tmp_path)
    again = tokenflex.load_parts(tmp_path, host=tiny_llava_next())
    for level in range(flex.compressor.num_levels):
        options = {"level": level, "max_new_tokens": 3, "do_sample": False}
        assert torch.equal(flex.generate(**prompt, **options), again.generate(**prompt, **options))


@torch.no_grad()
@pytest.mark.parametrize("config", ALL, ids=lambda config: config.owner.__name__)
def test_parts_in_float32_beside_a_host_in_half_precision(training_batch, config):
    flex = tokenflex.wrap(tiny_llava_next().bfloat16(), scaler=config)
    assert all(p.dtype == torch.float32 for p in flex.compressor.scaler.parameters())
    encoded = flex.encode(training_batch)
    for level in range(flex.compressor.num_levels):
        scaled = flex.compressor.scale(encoded.images, [level] * len(encoded.images))
        assert {item.features.dtype for item in scaled} == {torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("config", ALL, ids=lambda config: config.owner.__name__)
def test_under_autocast(fresh, training_batch, config):
    flex = fresh(config).eval()
    encoded = flex.encode(training_batch)
    for level in range(flex.compressor.num_levels):
        levels = [level] * len(encoded.images)
        plain = flex.compressor.scale(encoded.images, levels)
        with torch.autocast("cpu", torch.bfloat16):
            found = flex.compressor.scale(encoded.images, levels)
        for one, other in zip(plain, found, strict=True):
            assert other.features.dtype == torch.float32
            torch.testing.assert_close(other.features, one.features, atol=0.3, rtol=0.1)

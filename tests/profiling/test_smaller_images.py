"""Profiles and drawings of models whose levels are smaller images."""

import torch

from tests.model.smaller import LEVELS, assembled, batch_of, watched
from tokenflex.evaluation.drawing import cells
from tokenflex.evaluation.settings import parse
from tokenflex.profiling import Plan, profile
from tokenflex.profiling.plan import MeasuredSetting
from tokenflex.profiling.stages import STAGES, stages


def patches(flex, inputs, levels):
    shares = [flex.compressor.scaler.shares[level] for level in levels]
    return flex.adapter.resized(flex.adapter.read(inputs), shares).cpu["image_grid_thw"].prod(-1).tolist()


@torch.no_grad()
def test_the_towers_stage_is_what_the_setting_encodes():
    flex = assembled()
    inputs = batch_of(flex)
    encoded = flex.encode(inputs)
    looks, wanted = patches(flex, inputs, (0, 0, 0)), patches(flex, inputs, LEVELS)
    expected = {"level": [sum(wanted)], "routed": [sum(looks), sum(wanted[1:])]}
    plan = Plan(levels=(0,), answers=(1,), runs=1, warm_up=0)
    for setting in plan.settings(flex.compressor.num_levels):
        if setting.kind == "vanilla":
            continue
        found = stages(flex, inputs, setting, encoded, flex.decide(**inputs, level=LEVELS))
        with watched(flex) as calls:
            found["vision_tower"]()
        assert calls.patches == expected["routed" if setting.decides else "level"]
        with watched(flex) as calls:
            for name in STAGES[1:]:
                found.get(name, int)()
        assert calls.patches == []
    assert isinstance(setting, MeasuredSetting)


def test_a_profile_has_every_stage():
    flex = assembled()
    found = profile(flex, batch_of(flex), Plan(levels=(0,), answers=(1,), runs=1, warm_up=0))
    for setting in found.batches[0].settings[1:]:
        assert {"vision_tower", "scaler", "splice", "prefill"} <= set(setting.stages)


def test_drawings_show_the_cells_of_the_smaller_image():
    flex = assembled()
    inputs = batch_of(flex)
    grids = [image.grid for image in flex.adapter.encode(flex.adapter.read(inputs))]
    coarse, fine = (cells(flex, inputs, [level] * 3) for level in (0, 4))
    assert [(one.rows, one.cols) for one in fine] == [(grid.rows, grid.cols) for grid in grids]
    assert all(one.rows * one.cols < other.rows * other.cols for one, other in zip(coarse, fine, strict=True))
    assert all(list(one.into) == list(range(one.rows * one.cols)) for one in (*coarse, *fine))


@torch.no_grad()
def test_smaller_images_are_a_setting_of_evaluations_beside_the_models_own():
    flex = assembled(scaler="average-pool")
    inputs = batch_of(flex)
    settings = parse(flex, ["scaler:resolution", "scaler:resolution@shares=[0.25,1],pooling=[[2,2],[1,1]]"])
    assert [setting.level for setting in settings] == [0, 1, 2, 3, 4, 0, 1]
    for setting in settings:
        with watched(flex) as calls:
            decisions = setting.flex(**inputs, level=setting.level).decisions
        full = setting.level == setting.flex.compressor.num_levels - 1
        assert (sum(calls.patches) == len(inputs["pixel_values"])) == full
        assert all((one.tokens == one.of) == full for one in decisions)
    assert len(parse(assembled(), ["levels", "router", "random", "scaler:average-pool", "scaler:resize"])) == 17

"""A quickstart that was interrupted goes on where it was, to the same end; what is left is estimated honestly."""

import json
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.quickstart.test_quickstart import tiny
from tokenflex.quickstart import recipe
from tokenflex.quickstart.progress import left
from tokenflex.quickstart.run import run
from tokenflex.quickstart.unfinished import NAME, Unfinished


def results(folder):
    found = json.loads((folder / "report.json").read_text())
    return {name: value for name, value in found.items() if name != "seconds"}


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, capsys):
    """Interrupted twice: before stage 3, and between the router and the routers that see less."""
    plan = tiny(questions=24)
    run(tmp_path / "whole", seed=3, device="cpu", plan=plan)
    assert not (tmp_path / "whole" / NAME).exists()
    done, own = list[int](), {name: getattr(recipe, name) for name in ("train", "train_router")}

    def until(stage, times):
        def stopping(name):
            def trained(*given):
                phase = next(one for one in given if isinstance(one, recipe.Phase))
                if phase.stage.number == stage and done.count(stage) == times:
                    raise KeyboardInterrupt
                done.append(phase.stage.number)
                own[name](*given)

            return trained

        done.clear()
        for name in own:
            monkeypatch.setattr(recipe, name, stopping(name))

    for stage, times, expected in ((3, 0, [1, 2]), (4, 1, [3, 4]), (None, 0, [4, 4])):
        until(stage, times)
        with pytest.raises(KeyboardInterrupt) if stage else nullcontext():
            run(tmp_path / "cut", seed=3, device="cpu", plan=plan)
        assert done == expected
    said = capsys.readouterr().out
    assert "taken up after 'stage 2" in said
    assert "taken up after 'stage 4" in said
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    took = json.loads((tmp_path / "cut/report.json").read_text())["seconds"]
    assert set(took) == set(plan.expected)
    assert not (tmp_path / "cut" / NAME).exists()


def test_other_settings_and_damaged_files_are_not_taken_up(tmp_path):
    made = nn.Linear(2, 2)
    Unfinished(tmp_path, {"seed": 1}).keep(made, {"stage 0": 1.0})
    assert Unfinished(tmp_path, {"seed": 1}).seconds() == {"stage 0": 1.0}
    assert Unfinished(tmp_path, {"seed": 2}).seconds() == {}
    other = nn.Linear(2, 2)
    Unfinished(tmp_path, {"seed": 1}).load(other)
    assert torch.equal(made.weight, other.weight)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:40])
    assert Unfinished(tmp_path, {"seed": 1}).seconds() == {}
    assert Unfinished(tmp_path / "nowhere", {"seed": 1}).seconds() == {}


@given(st.floats(0, 400), st.floats(0.2, 5.0))
def test_what_is_left_is_what_is_expected_at_this_machines_pace(done, pace):
    total = 400.0
    truth = (total - done) * pace
    told = left(done * pace, done, total)
    assert min(truth, total - done) - 1e-6 <= told <= max(truth, total - done) + 1e-6


def test_one_slow_moment_at_the_start_is_not_the_pace():
    """Five expected seconds that took ten: 345 + 3 % of it, not twice as much."""
    assert left(10.0, 5.0, 345.0) == pytest.approx(340 * 70 / 65)
    assert left(600.0, 300.0, 345.0) == pytest.approx(45 * 660 / 360)

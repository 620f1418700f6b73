"""``flex.compile()``: deciding as one graph for requests of all shapes; the same decisions, names and errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"), reason="torch 2.6 makes a graph per shape (docs/how-to/compile.md)"
)


def run(*options):
    command = [sys.executable, "-m", "tests.model.compiled", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return run()


def test_requests_of_all_shapes_share_graphs(found):
    seen = found["requests"]
    assert 1 <= seen["graphs"] <= 4, "one or more images, of one or more views"
    assert seen["again"] == seen["graphs"]
    assert seen["breaks"] == 0


def test_decisions_and_answers_are_the_same(found):
    seen = found["requests"]
    for plain, compiled in zip(seen["plain"], seen["compiled"], strict=True):
        assert [level for level, _ in plain] == [level for level, _ in compiled]
        for (_, one), (_, other) in zip(plain, compiled, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert seen["same ids"]


def test_the_host_keeps_its_own_ways(found):
    assert not found["state"]["host"]
    assert found["requests"]["same with a static cache"]


def test_it_returns_nothing_as_torchs_own(found):
    assert found["state"]["returned"] is None


def test_names_of_weights_and_saved_parts_are_the_same(found):
    assert found["state"]["same names"]
    assert found["state"]["loaded"]


def test_copies_are_not_compiled_and_it_can_be_undone(found):
    assert found["state"]["copied"]
    assert found["state"]["graphs of copies, and after undoing"] == 0


def test_router_and_voter_learn_the_same(found):
    seen = found["training"]
    assert seen["same"]
    assert seen["with gradients"] > 5
    assert seen["off"] < 1e-4


def test_what_cannot_be_judged_is_refused_as_before(found):
    assert "no level can be chosen for image 0" in found["refusals"]["said"]


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "recompile_limit"),
    reason="this torch counts the graphs up to its limit otherwise",
)
def test_grids_beyond_the_limit_run_uncompiled(found):
    assert found["grids"] == {"graphs": 2, "off": pytest.approx(0.0, abs=1e-5)}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
def test_fewer_operators_are_run():
    seen = run("inductor")["operators"]
    assert seen["compiled"] < seen["plain"] / 2
    for one, other in zip(seen["plain scores"], seen["compiled scores"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)

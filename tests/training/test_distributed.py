"""Two processes, by torchrun and gloo, compute what one process does on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import two_processes
from tests.training.two_processes import SHARDS, SMALLER, WAYS

ROOT = Path(__file__).parents[2]
DATA_PARALLEL = (*(f"stage 3, {way}" for way in (*WAYS, SMALLER[0])), "stage 3, low, accumulated")
DATA_PARALLEL += ("stage 4", "stage 4, uneven", "stage 4, figures", "feedback")
SHARDED = tuple(f"sharded, {name}" for name in (*WAYS, *SMALLER, "stage 4"))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    quiet = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*launcher, "-m", "tests.training.two_processes", str(folder)],
        cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return torch.load(folder / "results.pt"), folder


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    alone = two_processes.data_parallel(tmp_path_factory.mktemp("one"), 1)
    return alone | (two_processes.sharded(1, 0) if SHARDS else {})


def test_nothing_is_left_out(by_two):
    assert set(by_two[0]) == {*DATA_PARALLEL, *(SHARDED if SHARDS else ())}


needs_sharding = pytest.mark.skipif(not SHARDS, reason="sharding is tried with transformers 5.24 or newer")


@pytest.mark.parametrize("name", [*DATA_PARALLEL, *(pytest.param(name, marks=needs_sharding) for name in SHARDED)])
def test_two_are_as_one(by_two, by_one, name):
    (losses, tensors), (expected_losses, expected) = by_two[0][name], by_one[name]
    assert len(losses) == len(expected_losses) > 0
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected_losses), rtol=1e-4, atol=1e-5)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(tensors[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_each_process_wrote_its_own_share(by_two):
    names = [path.name for path in (by_two[1] / "store").glob("part-*.parquet")]
    assert sorted({name.split("-")[1] for name in names}) == ["00000", "00001"]

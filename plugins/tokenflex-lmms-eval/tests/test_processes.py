import pytest
import torch

from tokenflex.errors import ConfigError
from tokenflex_lmms_eval.processes import accelerator_of_run, placement

CPU, SECOND = torch.device("cpu"), torch.device("cuda:1")


def test_one_process_goes_where_it_is_told():
    assert [placement(wanted, CPU, 1) for wanted in (None, "cuda:1", "auto")] == ["cpu", "cuda:1", "auto"]


def test_each_of_several_goes_to_its_own():
    assert [placement(wanted, SECOND, 2) for wanted in (None, "cuda", "cuda:1")] == ["cuda:1"] * 3
    for wanted in ("cuda:0", "auto", "cpu"):
        with pytest.raises(ConfigError, match=f"device={wanted} is for one process, and there are 2"):
            placement(wanted, SECOND, 2)


def test_processes_that_accelerate_does_not_know_of(monkeypatch):
    assert accelerator_of_run().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2, and accelerate knows of 1"):
        accelerator_of_run()

"""The command for a GPU's day: in order, within its time, taken up again; and its jobs in their smallest size."""

import json
import os
import subprocess
import time
from argparse import Namespace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_launches, gpu_steps

KEY = {"tokenflex": "1", "device": "a GPU", "size": "tiny"}
TOLD = {"date": "2026-01-01", "hardware": "a GPU", "torch": "2", "transformers": "5", "python": "3"}
COUNT = "open('runs.txt', 'a').write('x'); "


def job(name, code, seconds=1.0, **others):
    return gpu.Job(name, f"what {name} is", ("-c", code), {"tiny": seconds}, others.pop("writes", "text"), **others)


def day(out, jobs, minutes=5.0, key=KEY):
    return gpu.Day(out, jobs, key, TOLD, time.monotonic() + 60 * minutes)


def page_of(out):
    return (out / gpu.INDEX).read_text()


def status(out):
    return {name: one["status"] for name, one in json.loads((out / gpu.STATE).read_text()).items()}


def test_what_is_done_is_not_done_again(tmp_path):
    jobs = [job("first", COUNT + "print('found')"), job("second", "print(2)")]
    assert day(tmp_path, jobs).run(jobs[:1], "cpu")
    assert "found" in (tmp_path / "first.md").read_text()
    assert "| second | what second is | not run |" in page_of(tmp_path)
    assert day(tmp_path, jobs).run(jobs, "cpu")
    assert (tmp_path / "runs.txt").read_text() == "x"
    assert status(tmp_path) == {"first": "done", "second": "done"}
    assert "[first.md](first.md)" in page_of(tmp_path)


@pytest.mark.parametrize("other", [{"tokenflex": "2"}, {"device": "another"}])
def test_another_version_or_device_has_results_of_its_own(tmp_path, other):
    jobs = [job("first", COUNT)]
    day(tmp_path, jobs).run(jobs, "cpu")
    day(tmp_path, jobs, key={**KEY, **other}).run(jobs, "cpu")
    assert (tmp_path / "runs.txt").read_text() == "xx"


def test_a_failure_is_told_and_tried_again_and_others_go_on(tmp_path):
    jobs = [job("wrong", COUNT + "raise SystemExit('it broke')"), job("fine", "print(1)")]
    assert not day(tmp_path, jobs).run(jobs, "cpu")
    assert status(tmp_path) == {"wrong": "failed", "fine": "done"}
    assert "## wrong failed\n\n```\nit broke\n```" in page_of(tmp_path)
    assert not day(tmp_path, jobs).run(jobs, "cpu")
    assert (tmp_path / "runs.txt").read_text() == "xx"


def test_jobs_that_do_not_fit_are_not_started(tmp_path):
    jobs = [job("long", COUNT, seconds=100), job("short", "print(1)")]
    assert day(tmp_path, jobs, minutes=1).run(jobs, "cpu")
    assert status(tmp_path) == {"long": "no time left", "short": "done"}
    assert "no time left: takes about 100 s" in page_of(tmp_path)
    assert not (tmp_path / "runs.txt").exists()


def test_jobs_that_cannot_run_say_why(tmp_path):
    jobs = [job("cuda", COUNT, refusal=lambda device: None if device == "cuda" else "torch sees no CUDA device")]
    assert day(tmp_path, jobs).run(jobs, "cpu")
    assert "skipped: torch sees no CUDA device" in page_of(tmp_path)
    assert day(tmp_path, jobs).run(jobs, "cuda")
    assert status(tmp_path) == {"cuda": "done"}


def test_a_job_whose_time_is_over_ends_with_its_children_and_what_it_wrote_stays(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    child = "pipe = open('pipe', 'w'); import signal; signal.pause()"
    parent = (
        "import subprocess, sys, signal; open('slow.md', 'w').write('so far'); open('slow.md.a.tmp', 'w').close(); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); signal.pause()"
    )
    ends = []

    class Impatient(subprocess.Popen):
        """Out of time as soon as the child is there."""

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            ends.append((tmp_path / "pipe").open())
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(gpu.subprocess, "Popen", Impatient)
    jobs = [job("slow", parent, writes="page")]
    assert day(tmp_path, jobs).run(jobs, "cpu")
    with ends[0] as pipe:
        assert pipe.read() == "", "the child holds no end of the pipe any more"
    assert status(tmp_path) == {"slow": "cut off"}
    assert (tmp_path / "slow.md").read_text() == "so far"
    assert "[slow.md](slow.md)" in page_of(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_job_that_was_cut_off_keeps_saying_so_where_no_time_is_left(tmp_path):
    jobs = [job("slow", "raise SystemExit('it broke')")]
    day(tmp_path, jobs).run(jobs, "cpu")
    assert not day(tmp_path, jobs, minutes=0).run(jobs, "cpu")
    assert "it broke" in page_of(tmp_path)


def test_results_name_no_places_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.socket, "gethostname", lambda: "box-17")
    places = [f"{tmp_path}/a", f"{gpu.ROOT}/benchmarks/gpu.py", f"{gpu.sys.prefix}/lib", "box-17"]
    monkeypatch.setenv("SAID", " ".join(places))
    jobs = [job(kind, f"import os; {call}(os.environ['SAID'])") for kind, call in (("a", "print"), ("b", "exit"))]
    day(tmp_path, jobs).run(jobs, "cpu")
    for path in tmp_path.iterdir():
        assert not any(place in path.read_text() for place in places), path.name
    assert "./benchmarks/gpu.py" in page_of(tmp_path)
    assert "./benchmarks/gpu.py" in (tmp_path / "a.md").read_text()


def test_a_state_that_cannot_be_read_is_as_none(tmp_path):
    jobs = [job("first", COUNT)]
    for broken in ("{", "[]", '{"first": {"status": 1}}', '{"first": 3}'):
        (tmp_path / gpu.STATE).write_text(broken)
        assert day(tmp_path, jobs).run(jobs, "cpu")
    assert (tmp_path / "runs.txt").read_text() == "xxxx"


@pytest.mark.parametrize("size", ["tiny", "small", "7b"])
def test_every_command_is_understood(size):
    names = []
    for each in gpu.jobs():
        assert each.seconds[size] > 0
        arguments = each.arguments(size, "root")
        assert arguments[0] == "-m"
        if arguments[1] == "pytest":
            continue
        module = import_module(arguments[1])
        assert isinstance(module._options(arguments[2:]), Namespace)
        names.append(each.name)
    assert len(names) == len(set(names)) >= 10


def test_tests_of_cuda_are_found():
    assert "tests/hosts/test_varlen.py" in gpu.gpu_tests()


def test_it_runs_in_its_smallest_size(tmp_path):
    asked = ["--size", "tiny", "--minutes", "10", "--out", str(tmp_path), "--only"]
    with pytest.raises(SystemExit) as left:
        gpu.main([*asked, "cuda_tests", "checks", "launches", "steps"])
    assert left.value.code == 0, page_of(tmp_path)
    cuda = "done" if torch.cuda.is_available() else "skipped"
    assert status(tmp_path) == {"cuda_tests": cuda, "checks": "done", "launches": "done", "steps": "done"}
    steps = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert {row["what"] for row in steps} >= {"stage3/low", "stage4/ours", "request, vanilla"}
    assert all(row["peak"] > 0 and row["seconds"] > 0 for row in steps)
    launches = {row["what"]: row for row in json.loads((tmp_path / "launches.json").read_text())["rows"]}
    assert launches["scores"]["launches"] > 0
    assert launches["routed 0"]["launches"] > launches["forced 0"]["launches"]
    checks = json.loads((tmp_path / "checks.json").read_text())["rows"]
    found = {(row["host"], row["attention"]): row["outcome"] for row in checks}
    assert found["internvl", "sdpa"] == found["internvl", "flex_attention"] == "passed"
    assert found["qwen2_5_vl", "flex_attention"] == "refused"


def test_a_host_that_is_served_wrongly_fails(monkeypatch):
    def spoilt(*_, **__):
        raise AssertionError("ids differ")

    monkeypatch.setitem(gpu_checks._CHECKS, "generate", spoilt)
    row = gpu_checks.row("internvl", "sdpa", torch.float32, "cpu")
    assert (row.outcome, row.checks, row.detail) == ("failed", 4, "generate, coarsest: ids differ")


def test_launches_of_a_part_are_the_sum_less_its_first_step():
    row = gpu_launches.Row("encode", False, 10, 0, 1, 2, 3, 0.5)
    both = gpu_launches.Row("encode and scores", False, 14, 0, 1, 2, 5, 0.75)
    assert gpu_launches.apart([row, both]) == [row, gpu_launches.Row("scores", False, 4, 0, 0, 0, 2, 0.25)]


def test_launches_are_counted_by_name():
    names = [
        *("cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaStreamSynchronize"),
        *(
            "Memcpy DtoH (Device -> Pinned)",
            "Memcpy HtoD (Pageable -> Device)",
            "aten::_local_scalar_dense",
            "aten::add",
        ),
    ]
    events = [SimpleNamespace(name=name, cpu_children=[]) for name in names]
    seen = {"launches": 2, "graphs": 1, "reads": 1, "copies": 1, "waits": 1}
    assert gpu_launches.counts(events, "cuda") == seen
    assert gpu_launches.counts(events, "cpu")["launches"] == 1


def test_views_and_allocations_are_no_work():
    quiet = ("aten::view", "aten::as_strided", "aten::select", "aten::empty", "aten::transpose", "aten::to")
    loud = ("aten::add_", "aten::mm", "aten::copy_", "aten::gather")
    assert not any(gpu_launches.computes(SimpleNamespace(name=name)) for name in quiet)
    assert all(gpu_launches.computes(SimpleNamespace(name=name)) for name in loud)


def test_running_out_of_memory_is_a_result():
    def call():
        raise torch.OutOfMemoryError("tried to allocate too much")

    row = gpu_steps.measured("stage3/joint", call, lambda: None, 1, "cpu")
    assert row.failed == "out of memory: tried to allocate too much"
    assert "out of memory" in gpu_steps.page([row], {**TOLD, "size": "7b", "seed": 0, "protocol": ""})

"""Ray Data: every row is answered once, whatever dies on the way, and what is written isn't done again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serving.test_actors import BAD, NEW, ROWS, generated, inputs, model, same
from tokenflex.errors import ConfigError, DataError
from tokenflex.serving import ray as offline
from tokenflex.serving.actors import Answers, Engine, Requests, prompt
from tokenflex.serving.converting import vllm_prompt
from tokenflex.serving.ray import MANIFEST, Stage, answer, partitions

__all__ = ["model"]
ROOT = Path(__file__).parents[2]
MANY = [{**ROWS[i % len(ROWS)], "id": f"{i}{ROWS[i % len(ROWS)]['id']}"} for i in range(17)]


class Mortal(Answers):
    """Dies in the middle of the first batch it is given that nobody has died in before."""

    def __init__(self, grave, **settings):
        super().__init__(**settings)
        self.grave = Path(grave)

    def __call__(self, table):
        answered = super().__call__(table)
        if "7b" in answered["id"].to_pylist() and not self.grave.exists():
            self.grave.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return answered


class Counting(Answers):
    """Writes down what it was given."""

    def __init__(self, seen, **settings):
        super().__init__(**settings)
        self.seen = Path(seen)

    def __call__(self, table):
        for name, row in zip(table["partition"].to_pylist(), table["row"].to_pylist(), strict=True):
            with (self.seen / f"{name} {row}").open("x"):
                pass
        return super().__call__(table)


class Losing(Answers):
    """Loses a row."""

    def __call__(self, table):
        return super().__call__(table).slice(1)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with room for two actors and for reading, however few CPUs there are."""
    ray = pytest.importorskip("ray", reason="needs Ray Data: pip install 'tokenflex[ray]'")
    pytest.importorskip("ray.data")
    paths = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 1024**2,
        log_to_driver=False,
        runtime_env={"env_vars": paths},
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def source(tmp_path):
    """Two files, of three row groups and one."""
    folder = tmp_path / "questions"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(MANY[:14]), folder / "first.parquet", row_group_size=5)
    pq.write_table(pa.Table.from_pylist(MANY[14:]), folder / "second.parquet")
    return folder


NAMES = [*(f"first-{i:05d}.parquet" for i in range(3)), "second-00000.parquet"]


def stage(model, actor=Answers, **more):
    settings = {"model": model[0], "max_new_tokens": NEW, **more}
    return [Stage(actor, settings, actors=2, cpus=1, batch_size=2)]


def answered(folder):
    assert sorted(path.name for path in folder.glob("*") if path.name != MANIFEST) == NAMES
    return [row for name in NAMES for row in pq.read_table(folder / name).to_pylist()]


def require_all_answered(found, model, **settings):
    _, flex, processor = model
    assert [row["id"] for row in found] == [row["id"] for row in MANY]
    assert [row["row"] for row in found] == [*range(14), *range(3)]
    for row, told in zip(MANY, found, strict=True):
        kind = row["id"][-1]
        if kind in BAD:
            assert BAD[kind] in told["error"]
        else:
            wanted = generated(flex, processor, row, **settings)
            assert {name: told[name] for name in wanted} == wanted


def test_two_actors_give_the_answers_of_generate(cluster, model, source, tmp_path):
    errors = answer(source, tmp_path / "out", stage(model, level=0))
    require_all_answered(answered(tmp_path / "out"), model, level=0)
    assert sum(map(len, errors.values())) == sum(row["id"][-1] in BAD for row in MANY)
    assert "can't be read" in errors[NAMES[0]][3]


def test_an_actor_that_is_killed_loses_nothing(cluster, model, source, tmp_path):
    answer(source, tmp_path / "out", stage(model, Mortal, grave=str(tmp_path / "grave")))
    assert (tmp_path / "grave").exists()
    require_all_answered(answered(tmp_path / "out"), model)


def test_what_is_written_is_not_done_again(cluster, model, source, tmp_path):
    out, seen = tmp_path / "out", tmp_path / "seen"
    seen.mkdir()
    asked = stage(model, Counting, seen=str(seen))
    answer(source, out, asked)
    whole = {name: (out / name).read_bytes() for name in NAMES}
    lost = NAMES[1]
    (out / lost).unlink()
    (out / f"{lost}.abc.tmp").write_bytes(b"half of it")
    for file in seen.glob(f"{lost} *"):
        file.unlink()
    answer(source, out, asked)  # a row that was done before would be refused
    assert len(list(seen.iterdir())) == len(MANY)
    require_all_answered(answered(out), model)
    assert all((out / name).read_bytes() == whole[name] for name in NAMES if name != lost)


@pytest.mark.slow
def test_rows_that_never_come_are_an_error_and_nothing_half_is_written(cluster, model, source, tmp_path):
    with pytest.raises(DataError, match=r"never answered: .*first-00000\.parquet lacks"):
        answer(source, tmp_path / "out", stage(model, Losing))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MANIFEST]


def test_fronts_make_the_requests_of_export(cluster, model, source, tmp_path):
    """The half of the two-stage form that needs no vLLM."""
    folder, flex, processor = model
    answer(source, tmp_path / "out", [Stage(Requests, {"model": folder}, actors=2, batch_size=2)])
    for row, told in zip(MANY, answered(tmp_path / "out"), strict=True):
        assert told["id"] == row["id"]
        if row["id"][-1] in BAD:
            assert told["prompt_token_ids"] is None
        else:
            (request,) = flex.export(**inputs(processor, row))
            same(prompt(told), vllm_prompt(request))


def test_actors_that_leave_no_cpu_to_read_with_are_refused(cluster, model, source, tmp_path):
    asked = [Stage(Answers, {"model": model[0]}, actors=4)]
    with pytest.raises(ConfigError, match=r"5 CPUs are needed, 1 of them to read with, and Ray has 4"):
        answer(source, tmp_path / "out", asked)
    with pytest.raises(ConfigError, match=r"1 GPUs are needed, and Ray has 0"):
        answer(source, tmp_path / "out", [Stage(Answers, {"model": model[0]}, gpus=1)])


@pytest.mark.slow
def test_the_example_says_what_it_could_not_answer(model, source, tmp_path):
    pytest.importorskip("ray", reason="needs Ray Data: pip install 'tokenflex[ray]'")
    words = [model[0], str(source), str(tmp_path / "out"), "--actors", "2", "--cpus", "3", "--max-new-tokens", str(NEW)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "examples" / "ray_batch.py")
    run = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert "first-00000.parquet, row 3: row 3 (id '3d'): image" in run.stderr
    require_all_answered(answered(tmp_path / "out"), model)


def test_partitions_are_row_groups_with_their_places(source):
    found = partitions(source)
    assert [one.name for one in found] == NAMES
    assert [(one.group, one.start, one.rows) for one in found] == [(0, 0, 5), (1, 5, 5), (2, 10, 4), (0, 0, 3)]
    assert [one.name for one in partitions(source / "second.parquet")] == NAMES[-1:]


def test_sources_without_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        partitions(tmp_path)
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="has no rows"):
        partitions(tmp_path)
    (tmp_path / "odd.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"odd\.parquet can't be read as Parquet"):
        partitions(tmp_path)
    with pytest.raises(DataError, match=r"absent\.parquet can't be read as Parquet"):
        partitions(tmp_path / "absent.parquet")


@pytest.fixture
def idle(monkeypatch):
    """A run in which nothing is left to do."""

    class Ray:
        def is_initialized(self):
            raise AssertionError("nothing is to be done")

    monkeypatch.setattr(offline, "imported", Ray)


def finished(source, out, stages):
    """As a run leaves it that has answered all."""
    out.mkdir()
    offline._begin(out, partitions(source), stages)
    for one in partitions(source):
        nulls = pa.array([None] * one.rows, pa.string())
        pq.write_table(pa.table({"row": range(one.start, one.start + one.rows), "error": nulls}), out / one.name)


def test_a_run_that_is_done_starts_nothing(idle, source, tmp_path):
    asked = [Stage(Answers, {"model": str(tmp_path), "level": 1})]
    finished(source, tmp_path / "out", asked)
    assert answer(source, tmp_path / "out", asked) == {}
    more = [Stage(Answers, {"model": str(tmp_path), "level": 1}, actors=7, cpus=3, batch_size=99)]
    assert answer(source, tmp_path / "out", more) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, source: {"level": 2}, r"stages 0 level was '1' and is '2'"),
        (lambda folder, source: {"budget": 0.5}, r"stages 0 budget was None and is '0\.5'"),
        (lambda folder, source: (folder / "config.json").write_text("{ }") and {}, r"model's files config\.json"),
        (
            lambda folder, source: pq.write_table(pa.table({"question": ["w1"]}), source / "third.parquet") or {},
            r"partitions third-00000\.parquet was None and is 1",
        ),
    ],
)
def test_answers_to_something_else_are_not_gone_on_with(idle, source, tmp_path, change, message):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    settings = {"model": str(folder), "level": 1}
    finished(source, tmp_path / "out", [Stage(Answers, settings)])
    other = settings | change(folder, source)
    with pytest.raises(ConfigError, match=message):
        answer(source, tmp_path / "out", [Stage(Answers, other)])


def test_a_folder_of_something_else_is_refused(idle, source, tmp_path):
    with pytest.raises(ConfigError, match="give a folder of its own"):
        answer(source, source, [Stage(Answers, {"model": "m"})])
    assert not (source / MANIFEST).exists()


def test_two_stages_are_written_down(idle, source, tmp_path):
    asked = [Stage(Requests, {"model": "m"}), Stage(Engine, {"model": "n", "max_new_tokens": 3})]
    finished(source, tmp_path / "out", asked)
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())["stages"]
    assert [one["actor"].rpartition(".")[2] for one in told] == ["Requests", "Engine"]
    with pytest.raises(ConfigError, match="stages 1"):
        answer(source, tmp_path / "out", asked[:1])


def test_ray_that_is_not_there_is_named(monkeypatch, source, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'tokenflex\[ray\]'"):
        answer(source, tmp_path / "out", [Stage(Answers, {"model": "m"})])
    assert not (tmp_path / "out").exists()

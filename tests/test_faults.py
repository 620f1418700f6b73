"""Full disks, folders that can't be written, killed writers, Ctrl-C, two writers: told in a line, nothing lost.

`tests.torture` kills whole commands; here are the places where each fault is dealt with.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

import tokenflex
from tests.parity.golden import DATA
from tests.training.conftest import ROWS
from tokenflex import conversion
from tokenflex.cli import main as main_module
from tokenflex.cli import plugins
from tokenflex.cli.main import main
from tokenflex.conversion.finished import NAME
from tokenflex.errors import ConfigError, DataError, LostProcessError, WriteError
from tokenflex.files import locked, replaced, sweep, sweep_tensors, unwritten, whole, write_whole, writing
from tokenflex.model import FlexModel
from tokenflex.quickstart.run import run as quickstart
from tokenflex.testing.tiny_hosts import tiny_llava_next, tiny_llava_next_processor
from tokenflex.training import ChatDataset, FlexCollator, FlexTrainingArguments, RGLFTrainer
from tokenflex.training.lost import told_of_lost_processes
from tokenflex.training.resume import begin_again, fault

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")


def failing(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code), "some/file")

    return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device. Free some space"),
        (OSError(errno.EFBIG, "x"), "File too large. Free some space"),
        (OSError(errno.EROFS, "x"), "Read-only file system. Choose a folder that you may write to"),
        (PermissionError(errno.EACCES, "x"), "Permission denied. Choose a folder that you may write to"),
        (NotADirectoryError(errno.ENOTDIR, "x"), "A file lies where a folder is wanted"),
        (OSError(errno.EIO, "x"), "Look at that disk and folder"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device. Free"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk has space left"),
        (RuntimeError("something else"), None),
        (OSError("no number"), None),
    ],
)
def test_what_kept_a_file_from_being_written(error, message):
    found = unwritten(error)
    assert found is None if message is None else message in str(found)


@FULL
def test_a_full_disk_keeps_what_was_there(tmp_path):
    write_whole(tmp_path / "file", "before")

    def fill():
        with whole(tmp_path / "file") as scratch:
            scratch.symlink_to("/dev/full")
            scratch.write_text("after")

    with pytest.raises(WriteError, match=r"file can't be written: No space left on device. Free some space"):
        fill()
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_errors_of_other_kinds_and_of_this_library_pass(tmp_path):
    for error in (KeyError("x"), ConfigError("x"), RuntimeError("x")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in ("file.0a.tmp", ".tmpAb3dE9"):
        (tmp_path / name).write_text("half")
    (tmp_path / "file.0b.tmp").mkdir()
    (tmp_path / "file.0b.tmp" / ".tmpAb3dE9").write_text("half")
    mine = ["file", "other.0a.tmp", ".tmp", ".tmpfile-of-mine", "tmpAb3dE9"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    sweep(tmp_path, "file")
    sweep_tensors(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_command_tells_in_one_line_what_the_disk_refuses(monkeypatch, capsys, code):
    monkeypatch.setattr(plugins, "run", failing(code))
    assert main(["plugins"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"tokenflex plugins: some/file can't be read or written: {os.strerror(code)}. ")


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(plugins, "run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in jobs in the background
    try:
        assert main(["plugins"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "tokenflex plugins: interrupted."


@FULL
def test_standard_output_on_a_full_disk():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tokenflex.cli.main", "plugins"], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("tokenflex plugins: a file can't be read or written: No space left on device.")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    shutil.copytree(DATA / "e2e_g8" / "checkpoint", folder / "source")
    conversion.convert(folder / "source", folder / "out")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_conversion_that_is_done_says_so_and_sweeps(converted, capsys):
    out, before = converted / "out", contents(converted / "out")
    (converted / ".out.0a.tmp").mkdir()
    (converted / ".out.0a.tmp" / "model.safetensors").write_text("half")
    assert main(["convert", str(converted / "source"), str(out)]) == 0
    assert "is complete and equal to what would be written; nothing was done" in capsys.readouterr().out
    assert contents(out) == before
    assert sorted(path.name for path in converted.iterdir()) == ["out", "source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "config.json").write_text("{}"), r"was changed since \(config.json\)"),
        (lambda out: (out / "more.json").write_text("{}"), r"was changed since \(more.json\)"),
        (lambda out: (out / NAME).unlink(), "has no .conversion.json"),
        (lambda out: (out / NAME).write_text("[]"), "has no .conversion.json"),
        (lambda out: (out / NAME).write_text((out / NAME).read_text().replace('"torch": "', '"torch": "0')),
         "was made by other versions"),
        (lambda out: (out.parent / "source" / "model.safetensors").unlink(),
         r"was made of another source \(model.safetensors\)"),
    ],
)  # fmt: skip
def test_another_folder_is_refused_and_force_is_offered(converted, tmp_path, change, message):
    shutil.copytree(converted, tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    change(out)
    before = contents(out)
    with pytest.raises(ConfigError, match=f"exists already, and .*{message}.*--force"):
        conversion.convert(tmp_path / "copy" / "source", out)
    assert contents(out) == before


def test_force_replaces_a_model_and_nothing_else(converted, tmp_path):
    out, before = tmp_path / "out", contents(converted / "out")
    shutil.copytree(converted / "out", out)
    (out / "config.json").write_text("{}")
    (out / "more.json").write_text("{}")
    assert conversion.convert(converted / "source", out, force=True).written
    assert contents(out) == before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="isn't the folder of a model"):
        conversion.convert(converted / "source", tmp_path / "home", force=True)
    with pytest.raises(ConfigError, match="holds the source"):
        conversion.convert(converted / "source", converted / "source", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


def held_elsewhere(path, share, then):
    """Do something while another thread holds a lock."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with locked(path, share):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        then()
    finally:
        done.set()
        thread.join()


def test_a_second_training_into_a_folder_is_refused(tmp_path, capsys):
    recipe = {"stage": 4, "host": "none", "data": "none", "output_dir": str(tmp_path / "out"), "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def second():
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 1

    held_elsewhere(tmp_path / "out", "train", second)
    assert "another process on this machine is training into" in capsys.readouterr().err


def test_a_second_quickstart_into_a_folder_is_refused(tmp_path):
    def second():
        with pytest.raises(ConfigError, match="another process on this machine runs the quickstart into"):
            quickstart(tmp_path / "out", device="cpu")

    held_elsewhere(tmp_path / "out", "quickstart", second)
    assert not (tmp_path / "out").exists()


class Rows(Dataset):
    """A row that ends the process that reads it, or can't be used."""

    def __init__(self, ends):
        self.ends = ends

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if self.ends:
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError(f"row {index} of the data has no image. Mend or remove it.")


def read(ends):
    with told_of_lost_processes():
        list(DataLoader(Rows(ends), num_workers=1, batch_size=None))


def test_a_reader_of_data_that_was_killed_is_told():
    with pytest.raises(LostProcessError, match=r"a process that reads data is gone: .*memory ran out.*is kept"):
        read(ends=True)


def test_what_a_reader_of_data_refuses_is_told_without_its_traceback():
    with pytest.raises(DataError, match=r"\Arow 0 of the data has no image. Mend or remove it.\Z"):
        read(ends=False)


def test_a_finished_run_that_is_taken_up_makes_no_further_step(tmp_path):
    def train(resume):
        args = FlexTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=2, save_steps=1,
            save_strategy="steps", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            lr_scheduler_type="constant",
        )  # fmt: skip
        collator, flex = FlexCollator(tiny_llava_next_processor()), tokenflex.wrap(tiny_llava_next()).train()
        trainer = RGLFTrainer(flex, args, train_dataset=ChatDataset(ROWS), data_collator=collator)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step, flex.compressor.state_dict()

    torch.manual_seed(0)
    (steps, weights), (again, same) = train(None), train(True)
    assert (steps, again) == (1, 1)
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    folder = tmp_path / "checkpoint-1"
    assert fault(folder) is None
    begin_again(folder)
    assert "trainer_state.json" in str(fault(folder))


def test_files_of_a_save_take_their_places_together(tmp_path):
    def save(names, error=None):
        with replaced(tmp_path, "config.json", "model*.safetensors*", "README.md") as folder:
            for name in names:
                (folder / name).write_text(f"{len(names)} {name}")
            if error:
                raise error

    def found():
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    first = ["config.json", "model-1.safetensors", "model-2.safetensors", "mine.txt"]
    save(first)
    before = found()
    with pytest.raises(KeyboardInterrupt):
        save(["config.json", "model.safetensors"], KeyboardInterrupt())
    assert found() == before
    save(["config.json", "model.safetensors"])
    assert found() == {
        "config.json": "2 config.json", "model.safetensors": "2 model.safetensors", "mine.txt": "4 mine.txt"
    }  # fmt: skip


def test_a_model_that_could_not_be_saved_over_another_leaves_that_one(tmp_path, monkeypatch):
    torch.manual_seed(0)
    first, second = (tokenflex.wrap(tiny_llava_next()) for _ in range(2))
    first.save_pretrained(tmp_path)
    (tmp_path / ".save.0a.tmp").mkdir()
    (tmp_path / ".tmpAb3dE9").write_text("half")
    before = contents(tmp_path)
    monkeypatch.setattr("tokenflex.model.saving.explain", failing(errno.ENOSPC))
    with pytest.raises(WriteError, match="No space left on device"):
        second.save_pretrained(tmp_path)
    assert contents(tmp_path) == {path: data for path, data in before.items() if path.name != ".tmpAb3dE9"}
    monkeypatch.undo()
    second.save_pretrained(tmp_path)
    saved = FlexModel.from_pretrained(tmp_path).compressor.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in second.compressor.state_dict().items())
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


def test_parts_that_can_not_be_saved(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(WriteError, match=r"file/parts can't be written: Not a directory"):
        tokenflex.wrap(tiny_llava_next()).save_parts(tmp_path / "file" / "parts")


def test_tensors_on_a_full_disk_are_an_error_of_this_library(tmp_path, monkeypatch):
    """safetensors' own error is told; where there is no full disk, one that reads as its own."""

    def full(tensors, path, metadata=None):
        save_file(tensors, str(path))
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    flex = tokenflex.wrap(tiny_llava_next())
    flex.save_parts(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr("tokenflex.checkpoint.save_file", full)
    with pytest.raises(WriteError, match=r"tokenflex.safetensors can't be written: No space left on device. Free"):
        flex.save_parts(tmp_path)
    assert contents(tmp_path) == before


def test_ctrl_c_that_code_in_c_makes_another_error_of_is_still_ctrl_c(monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def drawn(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("invalid matrix") from None

    monkeypatch.setattr(main_module, "_run", drawn)
    try:
        assert main_module.main(["evaluate"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "tokenflex evaluate: interrupted." in capsys.readouterr().err


def test_errors_without_ctrl_c_stay_what_they_are(monkeypatch):
    def failed(*_):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(main_module, "_run", failed)
    with pytest.raises(ValueError, match="a fault of ours"):
        main_module.main(["evaluate"])

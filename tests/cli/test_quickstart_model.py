"""The quickstart's model is trained once, however many commands ask for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenflex.cli import quickstart_model
from tokenflex.quickstart import run


def test_two_commands_train_it_once(tmp_path, monkeypatch, capsys):
    """The second one comes while the first one trains, when half of the model is there."""
    middle, waits, trained, say = threading.Event(), threading.Event(), [], quickstart_model._say_waiting

    def train(folder):
        trained.append(folder)
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("half")
        middle.set()
        assert waits.wait(60)
        (folder / "model" / "config.json").write_text("whole")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run", train)
    monkeypatch.setattr(quickstart_model, "_say_waiting", lambda: (say(), waits.set()))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(quickstart_model.quickstart_model)
        assert middle.wait(60)
        second = quickstart_model.quickstart_model()
        assert Path(second, "config.json").read_text() == "whole"
        assert first.result() == second == "quickstart/model"
    assert trained == [Path("quickstart")]

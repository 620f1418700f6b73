import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_entry_point():
    (found,) = entry_points(group="lmms_eval.models", name="tokenflex")
    assert found.dist.name == "tokenflex-lmms-eval"
    assert callable(found.load())


def test_lmms_eval_finds_the_class():
    pytest.importorskip("lmms_eval", reason="lmms-eval isn't installed")
    from lmms_eval.models import get_model, get_model_manifest

    assert get_model("tokenflex").__name__ == "TokenFlex"
    assert get_model_manifest("tokenflex").simple_class_path is None


def test_the_tasks_of_the_readme_are_there():
    pytest.importorskip("lmms_eval", reason="lmms-eval isn't installed")
    from lmms_eval.tasks import TaskManager

    text = README.read_text(encoding="utf-8")
    table = re.findall(r"^\| [\w-]+ \| `(\w+)` \|", text, re.MULTILINE)
    (command,) = re.findall(r"--tasks ([\w,]+)", text)
    assert command.split(",") == table
    assert len(table) == 11
    assert set(table) <= set(TaskManager("ERROR").all_tasks)

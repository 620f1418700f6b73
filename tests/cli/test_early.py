"""Typos and missing files are answered before torch is imported, with the nearest match; Ctrl-C says how to go on."""

import subprocess
import sys

import pytest

from tokenflex import offered
from tokenflex.cli import quickstart
from tokenflex.cli.main import COMMANDS, GO_ON, main
from tokenflex.errors import UnknownComponentError

GUARDED = """
import sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "numpy"):
            raise SystemExit(f"{name} was imported")
sys.meta_path.insert(0, Heavy())
from tokenflex.cli.main import main
for words in %r:
    try:
        print(main(words))
    except SystemExit as error:
        print(error)
"""
WRONG = [
    (["evalute"], "there is no command 'evalute'. Did you mean 'evaluate'?"),
    (["plugins", "scalar"], "scalar: no such kind; there are scaler, router, voter, policy, confidence, host. Did you"),
    (["profile", "--router", "avgg"], "no router is called 'avgg'. Did you mean 'avg'?"),
    (["profile", "--scaler", "tom"], "no scaler is called 'tom'. Did you mean 'tome'"),
    (["profile", "a/b", "--router", "avg"], "a/b brings its own parts"),
    (["train", "recipe.yaml"], "recipe 'recipe.yaml' doesn't exist; give a YAML file. Did you mean 'recipes.yaml'?"),
    (["feedback", "recipe.yaml"], "Did you mean 'recipes.yaml'?"),
    (["evaluate", "--settings", "ruoter"], "setting 'ruoter' isn't known. Did you mean 'router'?"),
    (["evaluate", "./nothing"], "'./nothing' doesn't exist (looked up from "),
    (["serve", "/no/such/folder"], "'/no/such/folder' doesn't exist"),
    (["advise", "a.png", "why?", "--host", "../none"], "'../none' doesn't exist"),
    (["check", "avgg"], "nothing is called 'avgg'. Did you mean 'avg'?"),
]


def test_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "recipes.yaml").write_text("")
    script = GUARDED % [words for words, _ in WRONG]
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "was imported" not in done.stdout, done.stdout
    assert [code in ("1", "2") for code in done.stdout.split()] == [True] * len(WRONG), done.stdout + done.stderr
    for _, message in WRONG:
        assert message in done.stderr


def test_listing_imports_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", GUARDED % [["plugins"]]], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("0"), done.stdout + done.stderr
    assert "average-pool" in done.stdout


@pytest.mark.parametrize("width", [80, 60, 160])
def test_names_are_never_broken(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    for kind in ("scaler", "router", "voter", "policy", "confidence"):
        for name in offered.providers(kind):
            assert name in out
    assert ("Every token of every level" in out) == (width == 160)
    assert max(map(len, out.splitlines()[:-1])) <= width


def test_what_could_be_installed_is_listed(capsys, monkeypatch, no_plugins):
    monkeypatch.setenv("COLUMNS", "160")
    main(["plugins", "scaler"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " visionzip " in line]
    assert "tokenflex-matching" in line
    assert "not installed" in line
    assert "pip install tokenflex-matching" in line
    with pytest.raises(UnknownComponentError, match="pip install tokenflex-matching"):
        offered.require("scaler", "visionzip")


def test_trying_imports_and_names_the_cause(capsys, tmp_path, monkeypatch):
    from tests.test_registry import install

    install(tmp_path, monkeypatch, "sad-plugin", {"bad": "sad_plugin:Mine"}, code="import nothing_like_this")
    install(tmp_path, monkeypatch, "gone-plugin", {"gone": "gone_away:Mine"})
    monkeypatch.setenv("COLUMNS", "160")
    main(["plugins", "scaler", "--try"])
    assert "nothing_like_this" in " ".join(capsys.readouterr().out.split())
    main(["plugins", "scaler"])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["scaler"]}
    assert "no such file" in lines["gone"]
    assert "no such file" not in lines["bad"]


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(options, rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "run", interrupt)
    assert main(["quickstart"]) == 130
    assert "quickstart: interrupted. Run the same command again: it goes on where it was." in capsys.readouterr().err
    assert set(GO_ON) <= {command.__name__.rpartition(".")[2] for command in COMMANDS}


LOST = """
import os, signal, sys, weakref
from tokenflex.cli import quickstart
from tokenflex.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal starts it; jobs in the background ignore it

class Thing:
    pass

def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)

def run(options, rest):
    for _ in range({times}):
        thing = Thing()
        seen = weakref.ref(thing, interrupted)
        del thing  # the callback can't raise what the signal raises
    while True:
        pass

quickstart.run = run
sys.exit(main(["quickstart"]))
"""


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_while_an_object_is_cleared_away_is_not_lost(times):
    ended = subprocess.run(
        [sys.executable, "-c", LOST.format(times=times)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.strip().startswith("tokenflex quickstart: interrupted.")
    assert "Traceback" not in ended.stderr


def test_our_keys_come_first(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    ours, theirs = out.index("keys of TokenFlex"), out.index("keys of transformers' TrainingArguments")
    assert ours < out.index("--stage {1") < out.index("--router_rate") < theirs < out.index("--num_train_epochs")

"""``tokenflex demo``: what it refuses, and what it serves."""

import importlib.util
import re

import httpx
import pytest

from tests.cli.test_evaluate import saved
from tokenflex.cli import demo, main
from tokenflex.quickstart import run as quickstart
from tokenflex.quickstart.host import seeded

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason='the page needs gradio: pip install "tokenflex[demo]"'
)


@pytest.fixture
def call(capsys):
    def run(*words):
        return main.main(["demo", *words]), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "./no/where"], "'./no/where' doesn't exist"),
        (["--runs", "-1"], "--runs -1: use 1 or more, or 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: use 1 or more"),
        pytest.param(["--port", "70000"], "port 70000 isn't one", marks=needs_gradio),
        pytest.param(["--host", "192.0.2.1", "--port", "0"], "nothing can be served on", marks=needs_gradio),
        pytest.param(["--model", "no/where", "--port", "0"], "'no/where' can't be loaded", marks=needs_gradio),
    ],
)
def test_refusals(call, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, err = call(*words)
    assert code == 1
    assert err.startswith("tokenflex demo: ")
    assert message in err
    assert "Traceback" not in err


def test_without_the_extra(call, monkeypatch):
    inner = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else inner(name))
    code, err = call()
    assert code == 1
    assert 'gradio isn\'t installed; run pip install "tokenflex[demo]"' in err


def test_nothing_leaves_this_machine_unless_asked():
    options = main.build_parser().parse_args(["demo"])
    assert (options.host, options.share, options.model) == ("127.0.0.1", False, None)


@needs_gradio
def test_without_a_model_the_quickstart_s_is_trained_and_served(call, capsys, monkeypatch, tmp_path):
    """The training is a saved model without any; the rest is the command itself, up to Ctrl-C."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "run", lambda folder: saved(folder / "model", *seeded(0)))
    found = {}

    def interrupted():
        found["err"] = capsys.readouterr().err
        found["address"] = re.search(r"on (http://127\.0\.0\.1:\d+/)", found["err"])[1]
        found["page"] = httpx.get(found["address"])
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "wait", interrupted)
    code, err = call("--port", "0", "--runs", "0", "--device", "cpu")
    assert code == 130
    assert "running 'tokenflex quickstart' first, five to eight minutes" in found["err"]
    assert "quickstart/model" in found["err"]
    assert found["page"].status_code == 200
    assert "tokenflex demo: interrupted." in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(found["address"])

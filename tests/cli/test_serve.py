"""``tokenflex serve``: what it refuses before anything is loaded, and what it serves."""

import importlib.util

import httpx
import pytest
import uvicorn

from tests.cli.test_evaluate import saved
from tests.serving.server.conftest import running
from tokenflex.cli import main, serve
from tokenflex.quickstart.host import seeded


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), *seeded(0))


@pytest.fixture
def call(capsys):
    def run(*words):
        return main.main(["serve", *words]), capsys.readouterr().err

    return run


def test_a_folder_is_served_under_its_name(model, monkeypatch, capsys):
    """The command itself, but for the port and the end, which are the test's."""
    found = {}

    def run(app, **options):
        with running(app) as url:
            found.update(options, models=httpx.get(f"{url}/v1/models").json(), health=httpx.get(f"{url}/health"))

    monkeypatch.setattr(uvicorn, "run", run)
    assert main.main(["serve", model, "--device", "cpu", "--port", "0", "--served-name", "small"]) == 0
    assert [entry["id"] for entry in found["models"]["data"]] == ["small"]
    assert found["health"].status_code == 200
    assert (found["host"], found["port"]) == ("127.0.0.1", 0)
    assert "small, answered by transformers" in capsys.readouterr().err


def test_a_front_is_served(model, monkeypatch, tmp_path, capsys):
    found = {}

    def run(app, **options):
        with running(app) as url:
            found["health"] = httpx.get(f"{url}/health").json()

    monkeypatch.setattr(uvicorn, "run", run)
    words = ["serve", model, "--device", "cpu", "--engine", "vllm", "--upstream", "http://127.0.0.1:9"]
    assert main.main([*words, "--upstream-folder", model]) == 0
    assert (found["health"]["engine"], found["health"]["status"]) == ("vllm", "unavailable")
    host, _ = seeded(1)
    host.save_pretrained(tmp_path)
    assert main.main([*words, "--upstream-folder", str(tmp_path)]) == 1
    assert "doesn't hold this front's projector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--engine", "vllm"], "--engine vllm needs --upstream"),
        (["MODEL", "--upstream", "http://x"], "--engine vllm needs --upstream"),
        (["MODEL", "--engine", "vllm", "--upstream", "x:1", "--device", "cpu"], "upstream 'x:1' is no address"),
        (["MODEL", "--max-batch", "0"], "batch=0 lets no request through"),
        (["MODEL", "--timeout", "0"], "seconds=0.0 lets no request through"),
        (["no/where", "--device", "cpu"], "'no/where' can't be loaded"),
        (["MODEL", "--host", "x", "--device", "cpu"], "give either a saved FlexModel, or a host"),
    ],
)
def test_refusals(call, model, words, message):
    code, err = call(*(model if word == "MODEL" else word for word in words))
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_without_the_extra(call, monkeypatch):
    inner = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else inner(name))
    code, err = call("anything")
    assert code == 1
    assert "uvicorn isn't installed; run pip install 'tokenflex[serve]'" in err


def test_limits_are_passed_on():
    words = "serve x --max-pixels 2 --batch-wait 3 --max-body 0.5 --allow-images-from A.example b.example:81"
    parsed = main.build_parser().parse_args(words.split())
    limits = serve.limits(parsed)
    assert (limits.pixels, limits.wait, limits.body) == (2_000_000, 0.003, 2**19)
    assert limits.hosts == {"a.example", "b.example:81"}

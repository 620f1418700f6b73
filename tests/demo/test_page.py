"""The served page without a browser: it names no other server, opens no address, and leaves nothing behind."""

import json
import os
import re
from pathlib import Path

import httpx
import pytest

from tests.conftest import image
from tokenflex.demo.address import free_port
from tokenflex.demo.samples import Example
from tokenflex.errors import ConfigError

gradio = pytest.importorskip("gradio", reason='the page needs gradio: pip install "tokenflex[demo]"')
page = pytest.importorskip("tokenflex.demo.page")

NAMED = re.compile(r"(?:https?|wss?):(?:\\?/){2}([\w.-]+)|(?:src|href)=\"//([\w.-]+)")


@pytest.fixture(scope="module")
def served(model):
    """Its address, and the folder of its files."""
    examples = [Example("one", image(0), ("w1 w2", "w3")), Example("two", image(1), ("w4",))]
    with page.running(model, examples, host="127.0.0.1", port=0, share=False, runs=1) as address:
        yield address, Path(os.environ["GRADIO_TEMP_DIR"])


def hosts_of(text):
    return {one or other for one, other in NAMED.findall(text)} - {"127.0.0.1", "localhost", "www.w3.org"}


def test_the_page_and_its_settings_name_no_other_server(served):
    address, _ = served
    for path in ("", "config", "theme.css", "gradio_api/info"):
        found = httpx.get(f"{address}{path}")
        assert found.status_code == 200
        assert hosts_of(found.text) == set(), path
        assert "default-src 'self'" in found.headers["content-security-policy"]


def test_that_test_would_find_one():
    assert hosts_of('<link href="https://fonts.googleapis.com/x">') == {"fonts.googleapis.com"}
    assert hosts_of(r'{"url": "https:\/\/cdn.example"}') == {"cdn.example"}
    assert hosts_of('<script src="//evil.example/x">') == {"evil.example"}


def test_the_model_s_name_is_text(served):
    told = json.dumps(httpx.get(f"{served[0]}config").json())
    assert "<b>model" not in told
    assert "tiny" in told


def test_nobody_is_told_that_it_runs(model, monkeypatch):
    """No analytics, no question for newer versions; gradio would start threads for both."""
    told = []
    monkeypatch.setattr(gradio.analytics, "version_check", lambda: told.append("version"))
    monkeypatch.setattr(gradio.analytics, "_do_analytics_request", lambda *given, **named: told.append(given))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    made = page.build(model, [Example("one", image(2), ("w1",))], 1)
    assert not made.analytics_enabled
    assert told == []


def upload_event(address):
    config = httpx.get(f"{address}config").json()
    (button,) = [one["id"] for one in config["components"] if one["type"] == "uploadbutton"]
    return next(one["id"] for one in config["dependencies"] if [button, "upload"] in one["targets"])


def test_an_address_in_place_of_an_upload_isn_t_opened(served, monkeypatch):
    """Whoever writes requests by hand could name one; gradio would fetch it."""
    opened = []

    async def download(url, **given):
        opened.append(url)
        raise OSError

    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", download)
    address, _ = served
    file = {"path": "http://elsewhere.example/a.png", "meta": {"_type": "gradio.FileData"}}
    request = {"data": [file, None], "fn_index": upload_event(address), "session_hash": "by-hand"}
    assert httpx.post(f"{address}gradio_api/queue/join", json=request).status_code == 200
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=by-hand", timeout=30) as events:
        told = next(line for line in events.iter_lines() if "process_completed" in line)
    assert json.loads(told.removeprefix("data:"))["success"] is False
    assert opened == []


def test_files_of_this_machine_aren_t_given_out(served):
    address, folder = served
    assert folder.is_dir()
    for path in ("/etc/passwd", str(Path(__file__))):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403


def test_a_proxy_doesn_t_keep_the_page_from_starting(model, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    examples = [Example("one", image(2), ("w1",))]
    with page.running(model, examples, host="127.0.0.1", port=0, share=False, runs=0) as address:
        assert httpx.get(address).status_code == 200
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
def test_other_names_of_this_machine(model, host):
    try:
        free_port(host, 0)
    except ConfigError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    examples = [Example("one", image(2), ("w1",))]
    with page.running(model, examples, host=host, port=0, share=False, runs=0) as address:
        assert httpx.get(address, trust_env=False).status_code == 200
        assert address.startswith(("http://[::1]:", "http://localhost:"))


def test_uploaded_files_go_when_the_page_goes(model):
    with page.running(model, [Example("one", image(2), ("w1",))], host="127.0.0.1", port=0, share=False,
                      runs=0) as address:  # fmt: skip
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        sent = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b"no image")})
        assert Path(sent.json()[0]).is_relative_to(folder)
        large = httpx.post(f"{address}gradio_api/upload", files={"files": ("b.png", bytes(25 << 20))})
        assert large.status_code == 413
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") != str(folder)

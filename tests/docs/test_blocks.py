"""Python that pages show runs, block after block in one namespace, on tiny models; or says why it isn't run."""

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

import tokenflex
from tests.conftest import TEXTS
from tests.docs.fences import PAGES, ROOT, Block, blocks
from tokenflex.registry import REGISTRIES
from tokenflex.testing.tiny_hosts import tiny_llava_next

OWN_TESTS = {
    "README.md": "tests/test_readme.py",
    "docs/compose.md": "tests/docs/test_compose_page.py",
    "docs/escalate.md": "tests/docs/test_escalate_page.py",
    "docs/use.md": "tests/docs/test_use_page.py",
    "docs/write_a_host.md": "tests/docs/test_write_a_host.py",
    "docs/write_a_scaler.md": "tests/docs/test_write_a_scaler.py",
}
"""Pages whose blocks are run by tests that look at the outcome, too."""
PYTHON = {page: [block for block in blocks(page) if block.language in ("python", "py")] for page in PAGES}
RUN = {
    page: [block for block in found if block.reason is None] for page, found in PYTHON.items() if page not in OWN_TESTS
}


@pytest.fixture
def registered():
    """What pages register under a name is gone afterwards."""
    before = [dict(registry._added) for registry in REGISTRIES]
    yield
    for registry, names in zip(REGISTRIES, before, strict=True):
        registry._added.clear()
        registry._added.update(names)


@pytest.fixture
def given(processor, batch, tmp_path, monkeypatch):
    """Names that pages use without making them, and folders that they name, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    host = tiny_llava_next()
    flex = tokenflex.wrap(host, processor=processor)
    flex.save_pretrained("my-model")
    processor.save_pretrained("my-model")
    for folder in ("my-router", "avg-llava"):
        flex.save_parts(folder)
    host.save_pretrained("avg-llava")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    image.save("photo.jpg")
    return {
        "tokenflex": tokenflex,
        "torch": torch,
        "host": host,
        "processor": processor,
        "flex": flex,
        "image": image,
        "prompt": "user : <image> w1 w2 assistant :",
        "inputs": batch("user : <image> w1 w2 assistant :"),
        "batches": [batch(*TEXTS, first=number) for number in range(3)],
        "rows": [
            {"image": image, "messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}
        ]
        * 2,
    }


def run(block: Block, names: dict) -> None:
    """Line numbers of errors are those of the page."""
    exec(compile("\n" * (block.line - 1) + block.text, str(ROOT / block.page), "exec"), names)


@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found])
def test_the_blocks_run(page, given, registered):
    with contextlib.redirect_stdout(io.StringIO()):
        for block in RUN[page]:
            run(block, given)


def test_blocks_that_are_not_run_say_why():
    silent = [f"{b.page}:{b.line}" for found in PYTHON.values() for b in found if b.reason is not None and not b.reason]
    assert silent == []


def test_no_block_hides_behind_another_name_of_the_language():
    assert [f"{b.page}:{b.line}" for found in PYTHON.values() for b in found if b.language == "py"] == []


@pytest.mark.parametrize("page", OWN_TESTS)
def test_pages_with_tests_of_their_own_have_them(page):
    assert PYTHON[page]
    text = (ROOT / OWN_TESTS[page]).read_text(encoding="utf-8")
    assert page.rpartition("/")[2] in text.replace('"docs" / "', "").replace('DOCS / "', "")


def test_an_error_names_the_page_and_the_line():
    block = Block("docs/use.md", 7, "python", "", "one = 1\nraise ValueError(one)\n", None)
    with pytest.raises(ValueError, match="1") as caught:
        run(block, {})
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno) == (ROOT / "docs" / "use.md", 7)

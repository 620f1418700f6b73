"""Tables in pages: two that are renewed at once both stay."""

import threading

import pytest

from tokenflex.errors import ConfigError
from tokenflex.tables import marked_page

PAGE = "one\n<a>\nold\n</a>\ntwo\n<b>\nold\n</b>\nthree\n"


def test_what_stands_between_two_marks_is_renewed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    marked_page.renew_page(page, "<b>", "</b>", "new")
    assert page.read_text() == "one\n<a>\nold\n</a>\ntwo\n<b>\n\nnew\n</b>\nthree\n"
    with pytest.raises(ConfigError, match="has no lines '<c>' and '</c>'"):
        marked_page.renew_page(page, "<c>", "</c>", "new")


def test_two_tables_renewed_at_once_both_stay(tmp_path, monkeypatch):
    """The second one comes after the first one has read the page and before it writes."""
    page, waits, threads = tmp_path / "page.md", threading.Event(), []
    page.write_text(PAGE)
    write, locked = marked_page.write_whole, marked_page.locked
    monkeypatch.setattr(marked_page, "locked", lambda path: locked(path, waiting=waits.set))

    def slow(path, text):
        if not threads:
            threads.append(threading.Thread(target=marked_page.renew_page, args=(page, "<b>", "</b>", "second")))
            threads[0].start()
            assert waits.wait(60)
        write(path, text)

    monkeypatch.setattr(marked_page, "write_whole", slow)
    marked_page.renew_page(page, "<a>", "</a>", "first")
    threads[0].join()
    assert page.read_text() == "one\n<a>\n\nfirst\n</a>\ntwo\n<b>\n\nsecond\n</b>\nthree\n"

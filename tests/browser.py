"""A browser of this machine, for tests that look at pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = f"none of the browsers {', '.join(NAMES)} is installed"


@contextmanager
def started(playwright: Any) -> Iterator[Any]:
    """The browser, driven by the module ``playwright.sync_api``."""
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()

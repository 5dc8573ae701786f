"""A real browser for pages: Chromium without a network, in which every complaint fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = os.environ.get("PLIANT_BROWSER") == "required"

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

in_a_browser = pytest.mark.skipif(
    (CHROMIUM is None or sync_playwright is None) and not REQUIRED,
    reason="not tried in a browser: that needs Chromium (apt-get install chromium) and playwright",
)


@contextmanager
def launched() -> Iterator[Any]:
    """Start the browser, and end it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path) -> Iterator[Any]:
    """Open a page from a file; afterwards, the browser must have had nothing to complain about."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    yield page
    assert complaints == []
    context.close()

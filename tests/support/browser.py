"""A page in a headless browser, for tests of HTML: `browser_page`."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # a shorter life than the session's, since playwright's event loop runs in this thread
def browser() -> Iterator[Any]:
    """An installed Chromium, without a window; skips the test if there is none, or no playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def console_errors() -> list[str]:
    """The errors that `browser_page` has reported. A test that expects some checks and clears them."""
    return []


@pytest.fixture
def browser_page(browser: Any, console_errors: list[str]) -> Iterator[Any]:
    """A page of playwright in a context of its own; the test fails if a script of the page does, or logs an error."""
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.on("console", lambda message: console_errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    yield page
    context.close()
    assert console_errors == []

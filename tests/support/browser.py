"""A headless Chromium for tests of pages. Import the fixture `browser_page` into the test module."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """An installed Chromium without a window; the test is skipped if there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="tests of pages need playwright (pip install '.[dev]')")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("tests of pages need an installed Chromium or Chrome")
    with api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def browser_page(browser: Any) -> Iterator[Any]:
    """A new page, which fails the test if the console has a warning or an error, or if it requests the network."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if outside(request.url) else None)
    yield page
    context.close()
    assert not problems, problems


def outside(url: str) -> bool:
    """True for addresses on other machines."""
    return url.startswith(("http:", "https:")) and not url.startswith(("http://127.0.0.1", "http://localhost"))

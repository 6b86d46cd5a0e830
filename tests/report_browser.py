"""Reports in a real browser, for every test that looks at one. Skips where playwright or Chromium is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sapwood.evaluate.report import write_report

Browser = Any
CHROMIUM = next(
    (path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")) if path.exists()), None
)


@pytest.fixture(scope="module")
def launched() -> Iterator[Browser]:
    """A browser for the tests of a file."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install it to run the page tests")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A report in a tab, and everything it asked for or complained about."""

    def __init__(self, browser: Browser, folder: Path, width: int = 1280) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.address = write_report(folder).as_uri()
        self.tab.goto(self.address)

    def close(self) -> None:
        """Close the tab, after a look at what it did in the meantime."""
        assert self.complaints == []
        assert [url for url in self.requests if url not in {self.address, "data:,"}] == []
        self.tab.close()

    def rows(self) -> int:
        return self.tab.locator(".item, .item-row").count()

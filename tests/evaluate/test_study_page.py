"""A study's page in a real browser: filters, the address, keys, hostile text, and ten thousand items in under a second."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_study import write

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium on this machine: install it to run the page tests")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: sync_api.Browser, folder: Path, more: str = "", width: int = 1280) -> tuple[sync_api.Page, list[str]]:
    """The page in a tab, and everything that it asked for or complained about."""
    tab, said = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce"), list[str]()
    address = (folder / "report.html").as_uri()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith((address, "data:,")) else said.append(request.url))
    tab.goto(address + more)
    return tab, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study"
    write(path, 80, rude=True)
    return path


def test_filters_and_the_address_that_keeps_them(browser: sync_api.Browser, folder: Path) -> None:
    tab, said = opened(browser, folder)
    assert tab.locator(".one").count() == 25
    assert tab.locator("#found").inner_text() == "80 of 80 items"
    tab.get_by_role("button", name="Show more").click()
    sync_api.expect(tab.locator(".one")).to_have_count(50)
    tab.locator("[name=status]").select_option("worse")
    tab.locator("[name=tag]").select_option("edge:typos")
    tab.wait_for_url(re.compile("status=worse&tag=edge"))
    kept = tab.locator("#found").inner_text()
    assert kept != "80 of 80 items"
    again, _ = opened(browser, folder, "#" + tab.url.split("#")[1])
    assert again.locator("#found").inner_text() == kept
    tab.locator("[name=status]").select_option("")
    tab.locator("[name=tag]").select_option("")
    tab.locator("[name=fault]").select_option("rude")
    sync_api.expect(tab.locator("#found")).to_have_text(re.compile("^1 of"))
    tab.locator("[name=fault]").select_option("")
    tab.locator("[name=text]").fill("/refund number 1[0-9]\\?/")
    sync_api.expect(tab.locator("#found")).to_have_text(re.compile("^10 of"))
    tab.locator("[name=text]").fill("/(/")
    sync_api.expect(tab.locator("#found")).to_have_text(re.compile("^no pattern"))
    assert said == []


def test_nothing_moves_from_under_the_pointer(browser: sync_api.Browser, folder: Path) -> None:
    """A click is a press and a release at one place: where the button is when it is reached, there it stays."""
    tab, _ = opened(browser, folder)
    for count in (50, 75):
        tops = tab.evaluate(
            """async () => {
                const more = document.getElementById("more"), tops = [];
                more.scrollIntoView({ block: "center" });
                for (let frame = 0; frame < 12; frame++) {
                    tops.push(more.getBoundingClientRect().top);
                    await new Promise((next) => requestAnimationFrame(next));
                }
                return tops;
            }"""
        )
        assert len(set(tops)) == 1, tops
        tab.mouse.click(*tab.evaluate("(({x, y, width, height}) => [x + width / 2, y + height / 2])(more.getBoundingClientRect())"))
        sync_api.expect(tab.locator(".one")).to_have_count(count)


def test_a_text_goes_the_way_of_its_own_letters(browser: sync_api.Browser, folder: Path) -> None:
    """Hebrew stands at the right, with its full stop at the left; what is in Latin letters stays as it is."""
    tab, _ = opened(browser, folder)
    for words, side in (("The shop opens at 9.", "left"), ("החנות נפתחת ב-9.", "right")):
        gaps = tab.evaluate(
            """(words) => {
                const block = document.querySelector(".one .sides pre"), range = document.createRange();
                block.textContent = words;
                range.selectNodeContents(block);
                const [box, text] = [block.getBoundingClientRect(), range.getBoundingClientRect()];
                range.setStart(block.firstChild, words.length - 1);
                const stop = range.getBoundingClientRect();
                return { left: text.left - box.left, right: box.right - text.right, stop: stop.left - text.left > 5 ? "right" : "left" };
            }""",
            words,
        )
        assert gaps[side] < 20 < gaps["left" if side == "right" else "right"], gaps
        assert gaps["stop"] == ("right" if side == "left" else "left")


def test_keys_go_from_item_to_item(browser: sync_api.Browser, folder: Path) -> None:
    tab, said = opened(browser, folder)
    for _ in range(27):
        tab.keyboard.press("j")
    assert tab.evaluate("[...document.querySelectorAll('.one')].indexOf(document.activeElement)") == 26
    tab.keyboard.press("k")
    assert tab.evaluate("[...document.querySelectorAll('.one')].indexOf(document.activeElement)") == 25
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.name") == "text"
    assert said == []


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_text_stays_text_and_the_page_fits(browser: sync_api.Browser, folder: Path, width: int) -> None:
    tab, said = opened(browser, folder, width=width)
    tab.locator("[name=text]").fill("onerror")
    sync_api.expect(tab.locator("#found")).to_have_text(re.compile("^1 of"))
    assert "owned" not in tab.title()
    assert "onerror" in tab.locator(".one").first.inner_text()
    assert tab.locator(".one img").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []


def test_ten_thousand_items_filter_in_under_a_second(browser: sync_api.Browser, tmp_path: Path) -> None:
    write(tmp_path / "study", 10_000)
    tab, said = opened(browser, tmp_path / "study")
    assert tab.locator("#found").inner_text() == "10,000 of 10,000 items"
    assert tab.locator(".one").count() <= 40
    took = tab.evaluate(
        """async () => {
            const form = document.getElementById("filters"), found = document.getElementById("found"), took = {};
            const tries = [["status", "worse"], ["tag", "real"], ["text", "number 77"], ["text", "/refund number 9+\\\\?/"]];
            for (const [name, value] of tries) {
                const before = found.textContent, began = performance.now();
                form.elements[name].value = value;
                form.dispatchEvent(new Event("input"));
                while (found.textContent === before) await new Promise((next) => setTimeout(next, 5));
                await new Promise((next) => requestAnimationFrame(next));
                took[name + value] = performance.now() - began;
            }
            return took;
        }"""
    )
    assert len(took) == 4
    assert max(took.values()) < 1000, took
    assert said == []

"""The report in a real browser: it runs, asks for nothing, filters, and stays small with ten thousand items."""

from __future__ import annotations

from pathlib import Path

import pytest

from report_browser import Browser, Opened, launched
from report_runs import HOSTILE, bare_run, full_run

browser = launched

MOST_ROWS = 40
"""Items that all lists together may have in the document."""


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_text_stays_text_and_fits_the_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    page = Opened(browser, full_run(tmp_path / "sft-1"), width)
    for summary in page.tab.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert page.tab.evaluate("window.hacked") is None
    assert page.tab.locator("img").count() == 0
    assert page.tab.locator("script").count() == 2
    assert HOSTILE in (page.tab.locator("#worse .answer.tuned .text").first.text_content() or "")
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    heights = page.tab.locator(".curve span").evaluate_all("spans => spans.map(span => span.getClientRects()[0].height)")
    assert heights
    assert max(heights) < 30, "a chart's label broke into lines"
    page.close()


def test_side_by_side_shows_the_other_arm_right_and_the_tuned_one_wrong(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, full_run(tmp_path / "sft-1", text="x"))
    first = page.tab.locator("#worse .item").first
    assert first.locator(".asked").text_content() == "question 2 x"
    assert first.locator("h4").all_text_contents() == ["few-shot 4 ✓ right", "tuned ✗ wrong"]
    assert first.locator(".answer .text").all_text_contents() == ["few-shot 4 says 2 x", "tuned says 2 x"]
    page.close()


def test_search_and_status_filter_together(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, full_run(tmp_path / "sft-1", items=40, text="x"))
    found, search = page.tab.locator(".found"), page.tab.locator("input[type=search]")
    assert found.text_content() == "40 of 40 items"
    page.tab.locator("input[value=worse]").check()
    assert found.text_content() == "10 of 40 items"
    search.fill("TUNED SAYS 2 X")
    assert found.text_content() == "1 of 40 items"
    assert page.tab.locator("[data-list=items] .excerpt").all_text_contents() == ["question 2 x"]
    search.fill("no such text")
    assert found.text_content() == "0 of 40 items"
    assert page.tab.locator("[data-list=items] .item-row").count() == 0
    search.fill("policy")  # the system prompt is the same everywhere: it is not what people search for
    assert found.text_content() == "0 of 40 items"
    page.close()


def test_the_keyboard_opens_an_item_and_turns_the_page(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, full_run(tmp_path / "sft-1", items=60, text="x"))
    rows = page.tab.locator("[data-list=items] .item-row")
    rows.first.locator("summary").first.focus()
    page.tab.keyboard.press("Enter")
    rows.first.locator(".answer.tuned").wait_for()  # the browser announces that a row was opened a moment later
    assert rows.first.locator(".answer").count() == 2
    page.tab.locator("[data-list=items] button", has_text="More").focus()
    page.tab.keyboard.press("Enter")
    assert rows.first.locator(".excerpt").text_content() == "question 25 x"
    assert page.tab.locator("[data-list=items] .where").text_content() == "26–50 of 60"
    page.close()


def test_ten_thousand_items_keep_the_document_small(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, full_run(tmp_path / "sft-1", items=10_000, arms=("tuned", "few-shot 4"), text="x"))
    assert 0 < page.rows() <= MOST_ROWS
    page.tab.locator("input[type=search]").fill("says 9999 x")
    assert page.tab.locator(".found").text_content() == "1 of 10,000 items"
    page.tab.locator("input[type=search]").fill("")
    page.tab.locator("input[value=better]").check()
    assert page.tab.locator(".found").text_content() == "2,500 of 10,000 items"
    assert 0 < page.rows() <= MOST_ROWS
    page.close()


def test_a_bare_run_opens_without_a_complaint(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, bare_run(tmp_path / "sft-1"), width=390)
    assert "No verdict" in (page.tab.locator("h1").text_content() or "")
    page.close()

"""Every page in a real browser: it looks as in docs/pictures, axe finds nothing serious, and nothing is loaded from elsewhere.

`SAPWOOD_PICTURES=1 pytest tests/review/test_review_pictures.py` writes the pictures anew; otherwise they are taken and thrown away.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from review_runs import ARMS, RUBRIC, Place, candidates, known, served

from sapwood.review.batch import BatchConfig
from sapwood.review.desk import Ballot, cast, next_case
from sapwood.review.experts import correct_answer, rule, write_guideline
from sapwood.review.people import Role, invite
from sapwood.review.results import cast_votes, results_of
from sapwood.review.tables import votes
from sapwood.review.web.asking import RunLine

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
CHROMIUM = next(
    (path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")) if path.exists()), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install it to run the page tests")

PICTURES = Path(__file__).parents[2] / "docs" / "pictures" / "review"
AXE = Path(__file__).parent / "axe" / "axe.min.js"
NOW = 1_764_000_000.0  # the pictures bear dates, which must not change from run to run
PAGES = ("welcome", "desk", "home", "batch", "queue", "case", "guidelines", "people", "runs", "log", "single", "refused")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A batch in the middle of its work: votes, a careless rater, a correction, a decision, two versions of the guidelines."""
    folder = tmp_path_factory.mktemp("pictures")
    runs = [
        RunLine("refunds-2", "sft · better, +31.0 points · 2025-11-24 15:12", "finished", folder / "report.html", folder),
        RunLine("refunds-1", "eval · 2025-11-24 14:40", "finished", folder / "report.html", folder),
        RunLine("refunds-3", "sft", "running", None, folder),
    ]
    (folder / "report.html").write_text("<!doctype html><title>report</title><p>A report.")
    people = ("ann", "bob", "cyd", "eve:expert", "zoe:admin")
    config = BatchConfig(overlap=3, gold_every=3)
    items = [*candidates(40), *known(14)]
    options = {"runs": lambda: runs, "doctors": lambda: runs[:1], "clock": lambda: NOW + 9000}
    with served(folder / "review.db", items, config, rubric=RUBRIC, people=people, now=NOW, **options) as made:
        _work(made)
        yield made


def _work(made: Place) -> None:
    dice, now = random.Random(7), NOW
    with made.store.writing() as connection:
        for _ in range(40):
            for name in ("ann", "bob", "cyd"):
                now += dice.uniform(5, 40)
                shown = next_case(connection, made.batch, made.people[name], now)
                if shown is None:
                    continue
                truth = shown.case.gold or ("b" if shown.case.id % 4 == 0 else "a")
                better = truth if shown.case.gold or dice.random() < 0.85 else "b" if truth == "a" else "a"
                verdict = ("a", "slightly_a")[dice.random() < 0.3] if better == shown.left else ("b", "slightly_b")[dice.random() < 0.3]
                verdict = (
                    "a" if name == "cyd" and dice.random() < 0.9 else "tie" if dice.random() < 0.12 and not shown.case.gold else verdict
                )
                marks = {"right": {"a": dice.choice((1, 2, 2)), "b": dice.choice((0, 1, 2))}, "tone": {"a": 2, "b": dice.choice((0, 1))}}
                errors = ({"answer": "b", "type": dice.choice(("incomplete", "too long", "wrong promise"))},) if dice.random() < 0.3 else ()
                comment = "The left one says what to do." if dice.random() < 0.1 else ""
                cast(
                    connection,
                    made.batch,
                    made.people[name],
                    shown.seat,
                    Ballot(verdict, marks, errors, comment, 9000),
                    now + dice.uniform(6, 30),
                )
        rows = made_cases(connection)
        eve = made.people["eve"]
        text = "Yes. Send a photo within **30 days**, as the terms of May say, and we refund the full price, postage included."
        broken = next(row for row in rows if "broken" in row.asked[-1]["content"])
        correct_answer(connection, made.batch, broken, "a", text, "The terms changed in May: 30 days, not 14.", eve, now)
        rule(connection, made.batch, rows[1].id, "a", "It names the day; the other tells nothing.", eve, now)
        newer = (
            "Judge what the customer gets, not how it sounds.\n\n- **Right before nice.**\n"
            "- A promise that the terms do not make is worse than no answer.\n- *Tie* is an answer."
        )
        write_guideline(connection, made.batch, newer, eve, now)
        invite(connection, "Dan", Role.RATER, NOW)


def made_cases(connection: object) -> list:
    from sqlalchemy import select

    from sapwood.review.tables import cases

    return list(connection.execute(select(cases).where(cases.c.gold.is_(None)).order_by(cases.c.split.desc(), cases.c.id)).all())  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


def _come_in(tab: object, place: Place, name: str) -> None:
    tab.goto(place.link(name))  # type: ignore[attr-defined]
    tab.wait_for_function("document.activeElement.tagName === 'BUTTON'")  # type: ignore[attr-defined]
    tab.keyboard.press("Enter")  # type: ignore[attr-defined]
    tab.wait_for_url(place.url + "/")  # type: ignore[attr-defined]


def _visit(tab: object, place: Place) -> Iterator[str]:
    """Go through the pages; the name of each when it stands."""
    from sqlalchemy import select

    from sapwood.review.tables import corrections

    with place.store.reading() as connection:
        edited = connection.execute(select(corrections.c.case)).scalar_one()
    tab.goto(place.link("ann"))  # type: ignore[attr-defined]
    yield "welcome"
    tab.keyboard.press("Enter")  # type: ignore[attr-defined]
    tab.locator("#desk").wait_for()  # type: ignore[attr-defined]
    tab.keyboard.press("r")  # type: ignore[attr-defined]
    tab.keyboard.press("3")  # type: ignore[attr-defined]
    yield "desk"
    _come_in(tab, place, "zoe")
    yield "home"
    for name, path in (
        ("batch", "/batch/1"),
        ("queue", "/queue/1"),
        ("case", f"/case/{edited}?queue=disagreement"),
        ("guidelines", "/guidelines/1"),
        ("people", "/people"),
        ("runs", "/runs"),
        ("log", "/log"),
        ("refused", "/nowhere"),
    ):
        tab.goto(place.url + path)  # type: ignore[attr-defined]
        if name == "case":
            tab.keyboard.press("l")  # type: ignore[attr-defined]
        yield name


@pytest.mark.parametrize(
    ("scheme", "width"),
    [("light", 1280), pytest.param("dark", 1280, marks=pytest.mark.slow), pytest.param("light", 390, marks=pytest.mark.slow)],
)
def test_every_page_is_sound_and_loads_nothing_from_elsewhere(
    browser: object, place: Place, tmp_path: Path, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme, reduced_motion="reduce", bypass_csp=False)  # type: ignore[attr-defined]
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if not request.url.startswith((place.url, "data:")) else None)
    seen = []
    for name in _visit(tab, place):
        seen.append(name)
        _hold(tab, name, scheme, width, tmp_path)
    assert set(seen) >= set(PAGES) - {"single"}
    assert [text for text in said if "404" not in text] == []
    context.close()


@pytest.mark.parametrize(
    ("scheme", "width"),
    [("light", 1280), pytest.param("dark", 1280, marks=pytest.mark.slow), pytest.param("light", 390, marks=pytest.mark.slow)],
)
def test_the_page_of_single_answers(browser: object, tmp_path: Path, scheme: str, width: int) -> None:
    """One answer at a time, its criteria, and its errors with the degrees that the requirements name."""
    options = {"rubric": RUBRIC, "people": ("ann",), "now": NOW, "clock": lambda: NOW}
    with served(tmp_path / "single.db", candidates(12), BatchConfig(single=True, overlap=1, gold_every=0), **options) as place:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[attr-defined]
        tab = context.new_page()
        tab.goto(place.link("ann"))
        tab.keyboard.press("Enter")
        tab.locator("#desk").wait_for()
        assert tab.locator(".answer").count() == 1
        assert tab.locator("button[data-key]").filter(has_text="Usable").count() == 1
        tab.keyboard.press("e")
        tab.get_by_label("wrong promise, Answer").select_option("costly")
        tab.get_by_label("incomplete, Answer").check()
        tab.keyboard.press("Escape")
        _hold(tab, "single", scheme, width, tmp_path)
        tab.keyboard.press("2")
        tab.get_by_text("1 by you").wait_for()
        (vote,) = place.rows(votes)
        wrong = {"answer": "a", "type": "wrong promise", "degree": "costly"}
        assert (vote.verdict, vote.errors) == ("usable", [wrong, {"answer": "a", "type": "incomplete"}])
        with place.store.reading() as connection:
            costs = {error: cost for _, error, _, cost in results_of(place.batch, cast_votes(connection, place.batch)).errors}
        assert costs == {"wrong promise": 30, "incomplete": 2}, "as bad as this one was"
        context.close()


def _hold(tab: object, name: str, scheme: str, width: int, otherwise: Path) -> None:
    """axe finds nothing serious, nothing scrolls sideways, nothing tells who is who; and its picture is taken."""
    serious = [
        f"{scheme} {width} {name}: {found['id']} {found['help']}: {[node['html'][:160] for node in found['nodes'][:3]]}"
        for found in _axe(tab)
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways at {width}"  # type: ignore[attr-defined]
    html = tab.content()  # type: ignore[attr-defined]
    assert not any(arm in html for arm in (ARMS[1], f">{ARMS[0]}<")), f"{name} tells who is who"
    if width == 1280 or name in ("desk", "batch", "single"):
        folder = PICTURES if os.environ.get("SAPWOOD_PICTURES") else otherwise
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / f"{name}-{scheme if width == 1280 else 'phone'}.png"
        tab.screenshot(path=str(picture), full_page=name in ("batch", "guidelines"))  # type: ignore[attr-defined]
        assert picture.stat().st_size > 3000


def _axe(tab: object) -> list[dict]:
    if not tab.evaluate("typeof axe === 'object'"):  # type: ignore[attr-defined]
        tab.evaluate(AXE.read_text() + "\n;0")  # type: ignore[attr-defined]
    return tab.evaluate("axe.run(document, {resultTypes: ['violations']}).then(found => found.violations)")  # type: ignore[attr-defined]


def test_the_pictures_are_there_and_small() -> None:
    names = {re.sub(r"-(light|dark|phone)\.png$", "", path.name) for path in PICTURES.glob("*.png")}
    assert names >= set(PAGES)
    assert sum(path.stat().st_size for path in PICTURES.glob("*.png")) < 2_000_000

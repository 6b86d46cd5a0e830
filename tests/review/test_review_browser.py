"""People at work in a real browser, by keyboard alone: thirty pairs, an undo, another device; a correction that becomes a row."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from review_runs import ARMS, RUBRIC, Place, candidates, known, served, wait_for

from sapwood.data import read
from sapwood.review.batch import BatchConfig, batch_by_id
from sapwood.review.exporting import export
from sapwood.review.tables import batches, cases, corrections, events, rulings, seats, votes

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
CHROMIUM = next(
    (path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")) if path.exists()), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: install it to run the page tests")
TELLING = (ARMS[1], "secret-7b", ">tuned<", '"tuned"', "OpenAI", "arm_a", "arm_b")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """Somebody at a browser of their own. Everything that the server ever told it is kept."""

    def __init__(self, browser: Any, place: Place, name: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce", **options)
        self.tab, self.place = self.context.new_page(), place
        self.told: list[str] = []
        self.tab.on("response", self._hear)
        self.tab.on("pageerror", lambda error: self.told.append(f"ERROR {error}"))
        self.tab.on("dialog", lambda dialog: self.told.append(f"ERROR {dialog.message}"))
        self.tab.goto(place.link(name))
        self.tab.wait_for_function("document.activeElement.tagName === 'BUTTON'")  # a key before that is nobody's
        self.tab.keyboard.press("Enter")
        self.tab.wait_for_url(lambda url: "/in" not in url)

    def _hear(self, response: Any) -> None:
        self.told.append(f"{response.url} {response.headers}")

    def look(self) -> None:
        """Keep what the page holds."""
        self.told.append(self.tab.content())

    @property
    def case(self) -> str:
        return self.tab.get_attribute("#desk", "data-case") or ""

    def press(self, key: str) -> None:
        """A key that changes the case, and the wait for the next one."""
        before = self.case
        self.tab.keyboard.press(key)
        self.tab.locator(f'#desk:not([data-case="{before}"])').wait_for()
        sync_api.expect(self.tab.locator(".htmx-request, .htmx-swapping, .htmx-settling")).to_have_count(0)  # or the focus moves once more
        self.look()

    def go(self, path: str) -> None:
        self.tab.goto(self.place.url + path)
        self.look()

    def close(self) -> None:
        self.look()
        self.context.close()
        assert [line for line in self.told if line.startswith("ERROR")] == []


def test_thirty_pairs_by_keyboard_with_an_undo_and_another_device(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path / "r.db", [*candidates(34, hostile=True), *known(4)], BatchConfig(gold_every=10), rubric=RUBRIC) as place:
        ann = Person(browser, place, "ann")
        for number in range(12):
            ann.press("12345670"[number % 8])
        assert (ann.tab.text_content(".far strong") or "") == "12"
        ann.press("u")
        assert ann.tab.locator("[aria-pressed=true]").get_attribute("data-key") == "4", "the verdict that was taken back is marked"
        ann.tab.keyboard.press("r")
        for step in "3121":  # each digit is a step, and the next criterion follows
            ann.tab.keyboard.press(step)
        ann.tab.keyboard.press("c")
        ann.tab.keyboard.type("half a tho")
        wait_for(lambda: any((row.draft or {}).get("comment") == "half a tho" for row in place.rows(seats)))
        case = ann.case
        ann.close()  # the browser dies in the middle of a thought

        again = Person(browser, place, "ann", color_scheme="dark")
        assert again.case == case
        assert again.tab.input_value("#comment") == "half a tho"
        again.tab.keyboard.press("c")
        again.tab.keyboard.press("c")
        again.tab.locator("#comment").press("End")
        again.tab.keyboard.type("ught")
        again.tab.keyboard.press("Escape")
        again.press("5")
        again.press("s")
        while int(again.tab.text_content(".far strong") or "") < 30:
            again.press("1")
        assert again.tab.evaluate("window.hacked") is None
        assert again.tab.locator("img").count() == 0
        again.close()

        rows = [row for row in place.rows(votes) if row.withdrawn is None]
        assert len(rows) == 30
        assert len({row.case for row in rows}) == 30
        mended = next(row for row in rows if row.supersedes)
        assert (mended.verdict, mended.comment) == ("b", "half a thought")
        assert {name: sorted(steps.values()) for name, steps in mended.criteria.items()} == {"right": [0, 2], "tone": [0, 1]}
        assert mended.criteria["right"][mended.left] == 2, "the first digit was for the left answer"
        assert all(row.ms > 0 for row in rows)
        assert all(row.left in "ab" for row in rows)
        for told in (*ann.told, *again.told):
            assert not any(word in told for word in TELLING), "something tells who is who before the batch is closed"


def test_a_pause_gives_the_case_back_and_the_keys_are_shown(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path / "r.db", candidates(3)) as place:
        ann = Person(browser, place, "ann")
        ann.tab.keyboard.press("?")
        assert ann.tab.locator("#keys").is_visible()
        ann.tab.keyboard.press("Escape")
        ann.tab.keyboard.press("d")
        ann.tab.locator("#difference ins, #difference del").first.wait_for()
        ann.tab.keyboard.press("d")
        ann.tab.locator("#difference").wait_for(state="hidden")
        ann.press("p")
        assert all(row.person is None for row in place.rows(seats))
        assert "Paused" in (ann.tab.text_content("h1.first") or "")
        ann.tab.keyboard.press("p")
        ann.tab.locator("#ballot").wait_for()
        for _ in range(3):
            ann.press("3")
        assert "Nothing is left" in (ann.tab.text_content("h1.first") or "")
        ann.press("u")
        ann.press("3")
        ann.close()


def test_two_raters_at_once_never_get_a_case_beyond_its_overlap(tmp_path: Path) -> None:
    import re

    with served(tmp_path / "r.db", candidates(25), BatchConfig(overlap=1)) as place:
        given: dict[str, list[str]] = {"ann": [], "bob": []}

        def work(name: str) -> None:
            with place.client(name) as client:
                page = client.get("/desk/1").text
                form = re.search(r'name="form" value="([^"]+)"', page)
                while (seat := re.search(r'name="seat" value="(\d+)"', page)) and form:
                    given[name].append(seat[1])
                    data = {"form": form[1], "seat": seat[1], "verdict": "a"}
                    page = client.post("/desk/1/vote", data=data, headers={"HX-Request": "true"}).text

        workers = [threading.Thread(target=work, args=(name,)) for name in given]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert sorted(given["ann"] + given["bob"], key=int) == sorted({str(row.id) for row in place.rows(seats)}, key=int)
        assert max(Counter(row.case for row in place.rows(votes)).values()) == 1
        assert min(map(len, given.values())) > 3


def test_an_expert_corrects_decides_and_exports_what_then_trains(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path / "r.db", candidates(6), BatchConfig(overlap=2)) as place:
        ann, bob = Person(browser, place, "ann"), Person(browser, place, "bob")
        for _ in range(6):
            ann.press("1")
            bob.press("5")
        ann.close()
        bob.close()
        eve = Person(browser, place, "eve")
        eve.go("/queue/1?queue=disagreement")
        eve.tab.locator(".list a").first.click()
        eve.tab.wait_for_url("**/case/**")  # its script included: a key before that is nobody's
        eve.tab.keyboard.press("l")
        field = eve.tab.locator("textarea[name=text]:visible")
        before = field.input_value()
        eve.tab.keyboard.press("Control+End")
        eve.tab.keyboard.type(" And we are sorry.")
        eve.tab.locator(".preview ins").first.wait_for()
        eve.tab.keyboard.press("Tab")
        eve.tab.keyboard.type("Politeness.")
        eve.tab.keyboard.press("Control+Enter")
        eve.tab.locator(".mended ins").first.wait_for()
        eve.tab.keyboard.press("2")
        eve.tab.keyboard.press("Tab")
        eve.tab.keyboard.type("It answers.")
        eve.tab.keyboard.press("Control+Enter")
        eve.tab.get_by_text("The decision is kept.").wait_for()
        eve.go("/batch/1")
        assert "System 1" in eve.tab.content()
        eve.close()
        assert not any(word in told for told in eve.told for word in TELLING)

        correction, ruling = place.rows(corrections)[0], place.rows(rulings)[0]
        assert (correction.reason, ruling.reason) == ("Politeness.", "It answers.")
        assert correction.after == correction.before + " And we are sorry."
        assert ("⟦name 1⟧" in before) == ("Secret" in correction.after), "covered names are put back"
        zoe = Person(browser, place, "zoe")
        zoe.go("/batch/1")
        zoe.tab.locator(".danger summary").press("Enter")
        zoe.tab.locator("[name=sure]").press("Space")
        zoe.tab.locator(".danger button").press("Enter")
        zoe.tab.get_by_text(ARMS[1]).first.wait_for()
        zoe.close()
        assert [row.state for row in place.rows(batches)] == ["closed"]
        assert {row.action for row in place.rows(events)} >= {"came in", "corrected", "decided", "closed"}

        _export_equals_the_store(place, tmp_path / "out", correction, ruling)


def _export_equals_the_store(place: Place, folder: Path, correction: Any, ruling: Any) -> None:
    with place.store.reading() as connection:
        batch = batch_by_id(connection, 1)
        assert batch is not None
        done = export(connection, [batch], folder)
    lines = {name: [orjson.loads(line) for line in (folder / f"{name}.jsonl").read_bytes().splitlines()] for name in done.counts}
    assert {name: len(rows) for name, rows in lines.items()} == done.counts
    assert (done.counts["votes"], done.counts["scores"], done.counts["sft"], done.blind) == (12, 12, 1, False)
    held = {row.id: row for row in place.rows(votes)}
    by_id = {row.id: row for row in place.rows(cases)}
    for row in lines["votes"]:
        vote = held[row["id"]]
        case = by_id[vote.case]
        assert row["left"] == (case.arm_a if vote.left == "a" else case.arm_b)
        assert (row["verdict"], row["ms"], row["comment"], row["at"]) == (vote.verdict, vote.ms, vote.comment, vote.at)
        assert row["winner"] == (row["left"] if vote.verdict == "a" else row["right"])
    assert len((folder / "votes.csv").read_text().splitlines()) == 13

    rows = read([str(folder / "sft.jsonl")])
    assert rows.refused == []
    conversation = rows.conversations[0]
    assert conversation.messages[-1].content == correction.after
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant"]
    about = conversation.meta["review"]
    assert (about["corrected_by"], about["reason"], about["correction"], about["batch"]) == ("eve", "Politeness.", correction.id, "mails")
    pairs = read([str(folder / "preferences.jsonl")]).preferences
    decided = next(pair for pair in pairs if pair.meta["review"].get("reason") == "It answers.")
    better = by_id[ruling.case].arm_a if ruling.verdict in ("a", "slightly_a") else by_id[ruling.case].arm_b
    assert decided.chosen[-1].content == by_id[ruling.case].answers[better]["content"]
    mended = next(pair for pair in pairs if pair.meta["review"].get("correction") == correction.id)
    assert (mended.chosen[-1].content, mended.rejected[-1].content) == (correction.after, correction.before)

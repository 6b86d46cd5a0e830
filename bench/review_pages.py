"""Pages of the review application in a real browser: a batch of 50,000 items against one of 500. What grows with the items?

    python -m bench.review_pages [--items 50000] [--small 500] [--rounds 5] [--out bench/results/review-pages.json]

Both batches stand in databases of their own behind servers of their own process; rounds alternate. A page's time is from the click to
its load event (`performance` of Chromium), a vote's from the key to the next case on the screen. The median of each is taken.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.review_load import fill, start
from bench.setting import commit, machine
from sapwood.remote.addresses import listen
from sapwood.review.batch import all_batches
from sapwood.review.desk import Ballot, cast, next_case
from sapwood.review.people import Role, invite
from sapwood.review.tables import KIND, VERSION, metadata
from sapwood.store import open_store

CHROMIUM = "/usr/bin/chromium"
PAGES = {"home": "/", "batch": "/batch/1", "queue": "/queue/1"}
VOTES = 200
"""Votes that stand before: a queue of disagreements has something in it."""


@contextmanager
def standing(folder: Path, items: int) -> Iterator[tuple[str, str, str]]:
    """(address, link of a rater, link of the admin) of a batch with that many items, some of them judged."""
    place = str(folder / f"{items}.db")
    people = fill(place, items, 3)
    dice = random.Random(0)
    with open_store(place, metadata, kind=KIND, version=VERSION) as store, store.writing() as connection:
        _, admin = invite(connection, "zoe", Role.ADMIN, time.time())
        (batch,) = all_batches(connection)
        for turn in range(VOTES):
            now = time.time() + turn
            shown = next_case(connection, batch, people[turn % 2][0], now)
            assert shown is not None
            cast(connection, batch, people[turn % 2][0], shown.seat, Ballot(dice.choice(("a", "b", "tie"))), now)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    server = start(place, port, 0)
    base = f"http://127.0.0.1:{port}"
    try:
        yield base, f"{base}/in/{people[2][1]}", f"{base}/in/{admin}"
    finally:
        server.kill()
        server.join()


def come_in(browser: Any, link: str) -> Any:
    """A page of somebody who has followed their link."""
    tab = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    tab.goto(link)
    tab.keyboard.press("Enter")
    tab.wait_for_url(lambda url: "/in/" not in url)
    tab.wait_for_load_state("load")
    return tab


def page_time(tab: Any, address: str) -> float:
    """Milliseconds to the load event."""
    tab.goto(address, wait_until="load")
    return float(tab.evaluate("(n => n.loadEventStart - n.startTime)(performance.getEntriesByType('navigation')[0])"))


def vote_time(tab: Any) -> float:
    """Milliseconds from the key to the next case."""
    before = tab.locator("#desk").get_attribute("data-case")
    began = time.perf_counter()
    tab.keyboard.press("1")
    tab.wait_for_function("seat => document.querySelector('#desk').dataset.case !== seat", arg=before, polling="raf")
    return 1000 * (time.perf_counter() - began)


def measure(items: int, small: int, rounds: int) -> dict[str, Any]:
    """Medians of both, and their ratios."""
    from playwright.sync_api import sync_playwright

    times: dict[int, dict[str, list[float]]] = {items: {}, small: {}}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with standing(Path(folder), items) as large, standing(Path(folder), small) as little:
            tabs = {}
            for size, (base, rater, admin) in ((items, large), (small, little)):
                tabs[size] = base, come_in(browser, rater), come_in(browser, admin)
            for number in range(rounds + 1):
                for size, (base, rater, admin) in tabs.items():
                    found = {name: page_time(admin, base + path) for name, path in PAGES.items()} | {"vote": vote_time(rater)}
                    if number:  # the first round warms both
                        for name, took in found.items():
                            times[size].setdefault(name, []).append(took)
        browser.close()
    medians = {size: {name: median(values) for name, values in of.items()} for size, of in times.items()}
    return {
        "items": items,
        "small": small,
        "rounds": rounds,
        "commit": commit(),
        "machine": machine(),
        "milliseconds": {str(size): of for size, of in medians.items()},
        "ratio": {name: medians[items][name] / medians[small][name] for name in medians[items]},
    }


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--small", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = measure(given.items, given.small, given.rounds)
    for name, ratio in found["ratio"].items():
        print(f"{name:<8}{ratio:5.2f} times as long with {given.items:,} items as with {given.small:,}")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

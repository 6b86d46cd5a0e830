"""The page's figures of fifty people at once are those of the committed result, and nothing was lost."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "review.md").read_text(encoding="utf-8")


def test_fifty_people_at_once() -> None:
    found = json.loads((ROOT / "bench" / "results" / "review-load.json").read_text())["databases"]
    assert [one["database"] for one in found] == ["SQLite", "PostgreSQL"]
    for one in found:
        assert (one["raters"], one["seconds"] >= 300, one["nice"]) == (50, True, 0)
        assert one["lost"] == one["doubled"] == one["beyond the overlap"] == 0
        assert one["acknowledged"] == one["votes in the database"]
        assert one["refused"] == {}
        assert one["broken connections"], "the server was killed"
        assert one["server ms"]["p95"] < 100
    sqlite, postgres = found
    assert f"| votes | {sqlite['acknowledged']:,} | {postgres['acknowledged']:,} |" in PAGE
    for part, words in (("p50", "server's time of a vote, ms: median"), ("p95", "95 of 100 within"), ("p99", "99 of 100 within")):
        mark = "**" if part == "p95" else ""
        assert f"| {words} | {mark}{sqlite['server ms'][part]:.1f}{mark} | {mark}{postgres['server ms'][part]:.1f}{mark} |" in PAGE
    assert f"({sqlite['broken connections']} and {postgres['broken connections']})" in PAGE


def test_a_hundred_times_as_many_cases() -> None:
    found = json.loads((ROOT / "bench" / "results" / "review-pages.json").read_text())
    text, ratio = " ".join(PAGE.split()), found["ratio"]
    assert (found["items"], found["small"], found["rounds"]) == (50_000, 500, 5)
    assert (
        f"takes {ratio['home']:.2f} times as long, a batch's page {ratio['batch']:.2f}, the queue of disagreements {ratio['queue']:.2f}"
        in text
    )
    assert f"from the key to the next case {ratio['vote']:.2f}" in text
    assert f"after {max(found['milliseconds']['50000'].values()):.0f} ms" in text

"""The page of a study: its record and one row an item in, one HTML file out that loads nothing from anywhere.

The items travel as JSON and are drawn by the page's script, a screenful at a time, as text nodes. Left out on purpose: statistics; the
page shows what `study_view` worked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.scatter import scatter
from sapwood.evaluate.study_text import interval, percent, points
from sapwood.pages import Pages, json_for_script

Record = dict[str, Any]

WORDS = {"ship": "Ship it", "don't ship": "Do not ship", "inconclusive": "Inconclusive", "no candidate": "Compared"}
KINDS = {"ship": "better", "don't ship": "worse", "inconclusive": "not-shown", "no candidate": "not-shown"}


def render_study(record: Record, rows: Sequence[Record]) -> str:
    """The whole page."""
    arms = [arm["name"] for arm in record["arms"]]
    data = {"arms": arms, "candidate": record["candidate"], "other": record["best_other"], "items": rows}
    return _PAGES.render(
        "study.html",
        styles=("page.css", "study.css"),
        script="study.js",
        record=record,
        word=WORDS[record["answer"]],
        kind=KINDS[record["answer"]],
        arms=arms,
        plot=_plot(record),
        bars=_bars(record),
        costs=scatter(record["arms"], record["candidate"]),
        statuses=_statuses(rows),
        tags=sorted({tag for row in rows for tag in row["tags"]}),
        faults=[error["name"] for error in record["errors"]],
        texts=any(row["asked"] for row in rows),
        data=json_for_script(data),
    )


def _plot(record: Record) -> Markup:
    found = record["difference"]
    if found is None:
        return Markup("")
    label = f"{points(found)} points against {record['best_other']}"
    return charts.difference_plot(found["mean"], found["low"], found["high"], unseen=found["minimum_detectable"], label=label)


def _bars(record: Record) -> dict[str, Markup]:
    top = max([arm["high"] or 0.0 for arm in record["arms"]] or [1.0]) or 1.0
    return {
        arm["name"]: charts.bar(arm["rate"], arm["low"], arm["high"], top) if arm["rate"] is not None else Markup("")
        for arm in record["arms"]
    }


def _statuses(rows: Sequence[Record]) -> list[tuple[str, str, int]]:
    words = {"worse": "got worse", "better": "improved", "wrong": "both wrong", "right": "both right", "unscored": "not compared"}
    return [(key, word, sum(row["status"] == key for row in rows)) for key, word in words.items()]


def _money(value: float | None) -> str:
    return "–" if value is None else charts.plain(value)


_PAGES = Pages("evaluate/report_page", percent=percent, interval=interval, points=points, plain=charts.plain, money=_money)

"""The page of `sapwood eval --benchmarks`: rates and paired differences in, one HTML file out that loads nothing from anywhere.

In: the rows of `benchmarks.json` and what is recorded of each question. Out: a section a benchmark: every model's rate with its interval,
what changed against the first, and the questions on which they differ, the lost ones first. Left out on purpose: questions that all
models answer alike; they stand in `benchmarks.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.study_text import interval, percent, points
from sapwood.pages import Pages
from sapwood.run import write_atomic

Record = dict[str, Any]
MOST = 100
"""Questions of a benchmark that are listed."""


@dataclass(frozen=True)
class Part:
    """One benchmark as the page draws it."""

    name: str
    about: str
    rows: list[tuple[Record, Markup, Markup]]
    """(row, its bar, its difference to the first model)"""
    differing: list[Record]
    more: int
    """Questions that differ and are not listed."""


def write_benchmarks(
    path: Path, rows: Sequence[Record], described: Sequence[Record], records: Sequence[Record], asked: Mapping[str, str]
) -> None:
    """Write the page, whole or not at all; `asked` gives questions by their item. Raises `StorageError` where it cannot be written."""
    told = [{**one, "asked": asked.get(one["item"], "")} for one in records]
    parts = [_part(name, rows, described, told) for name in dict.fromkeys(row["benchmark"] for row in rows)]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    page = _PAGES.render("benchmarks.html", styles=("page.css", "study.css"), parts=parts, arms=arms)
    write_atomic(path, page.encode("utf-8", "replace"))


def _part(name: str, rows: Sequence[Record], described: Sequence[Record], records: Sequence[Record]) -> Part:
    own = [_flat(row) for row in rows if row["benchmark"] == name]
    top = max((row["high"] or 0.0 for row in own), default=0.0) or 1.0
    drawn = [(row, _bar(row, top), _difference(row, own[0]["arm"])) for row in own]
    differing = _differing([record for record in records if record["benchmark"] == name], [row["arm"] for row in own])
    about = _about(next((one for one in described if one["name"] == name), {}))
    return Part(name, about, drawn, differing[:MOST], max(0, len(differing) - MOST))


def _flat(row: Record) -> Record:
    low, high = row["interval"] or (None, None)
    return {**row, "low": low, "high": high}


def _about(one: Mapping[str, Any]) -> str:
    if not one:
        return ""
    way = "through the model's chat template" if one["chat"] else "as plain text"
    return f"{one['asked']:,} of {one['of']:,} questions, {one['examples']} examples before each, asked {way}."


def _bar(row: Record, top: float) -> Markup:
    return Markup("") if row["rate"] is None else charts.bar(row["rate"], row["low"], row["high"], top)


def _difference(row: Record, first: str) -> Markup:
    found = row["change"]
    if found is None:
        return Markup("")
    label = f"{row['arm']} against {first}: {points(found)} points"
    return charts.difference_plot(found["mean"], found["low"], found["high"], unseen=None, label=label)


def _differing(records: Sequence[Record], arms: Sequence[str]) -> list[Record]:
    """Questions whose value is not that of the first model everywhere, those that were lost first."""
    by_item: dict[str, dict[str, Record]] = {}
    for record in records:
        by_item.setdefault(record["item"], {})[record["arm"]] = record
    found = []
    for item, given in by_item.items():
        values = [given[arm]["value"] if arm in given else None for arm in arms]
        known = [value for value in values if value is not None]
        if values[0] is not None and len(set(known)) > 1:
            lost = values[0] - min(known)
            first = given[arms[0]]
            answers = [given[arm].get("answer") if arm in given else None for arm in arms]
            found.append({"item": item, "asked": first.get("asked", ""), "values": values, "answers": answers, "lost": lost})
    return sorted(found, key=lambda one: -one["lost"])


_PAGES = Pages("evaluate/report_page", percent=percent, interval=interval, points=points, plain=charts.plain)

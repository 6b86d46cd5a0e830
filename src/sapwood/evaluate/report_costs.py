"""What answers cost, as the page shows it: decision.json or costs.json in, a table and sentences out.

Numbers are shown as recorded. Left out on purpose: prices, which only the user knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sapwood.evaluate.decision import dollars
from sapwood.evaluate.report_files import Record, mapping, number

COSTS = ("Arm", "Right", "Valid", "Answers here", "Paid here", "1,000 queries", "1,000 right answers", "Tokens in", "Tokens out", "Seconds")


@dataclass(frozen=True)
class CostsView:
    """The table, without columns that hold nothing, and what follows from it."""

    terms: list[str]
    rows: list[tuple[str, ...]]
    """One an arm."""
    notes: list[str]


def costs_view(record: Record) -> CostsView:
    """Of a decision, or of an evaluation."""
    forms = mapping(mapping(record.get("forms")).get("arms"))
    rows = [_row(name, mapping(entry), mapping(forms.get(name))) for name, entry in mapping(record.get("costs")).items()]
    filled = [place for place in range(len(COSTS)) if place == 0 or any(row[place] != "–" for row in rows)]
    frontier = record.get("frontier")
    best = ", ".join(map(str, frontier)) if isinstance(frontier, list) else ""
    notes = [_pays(mapping(record.get("break_even"))), f"No other arm is both right more often and cheaper than: {best}." if best else ""]
    return CostsView([COSTS[place] for place in filled], [tuple(row[place] for place in filled) for row in rows], list(filter(None, notes)))


def _row(name: str, cost: Record, form: Record) -> tuple[str, ...]:
    right = number(cost.get("dollars_a_right_answer"))
    return (
        name,
        _shown(cost.get("rate"), _percent),
        _shown(form.get("share"), _percent),
        _shown(cost.get("answers"), lambda value: f"{value:,.0f}"),
        _shown(cost.get("dollars"), dollars),
        _shown(cost.get("dollars_a_thousand"), dollars),
        "–" if right is None else dollars(1000 * right),
        _shown(cost.get("tokens_in"), lambda value: f"{value:,.0f}"),
        _shown(cost.get("tokens_out"), lambda value: f"{value:,.0f}"),
        _shown(cost.get("seconds"), lambda value: f"{value:.2g}"),
    )


def _shown(value: Any, form: Any) -> str:
    known = number(value)
    return "–" if known is None else str(form(known))


def _pays(record: Record) -> str:
    once, saved, queries = (number(record.get(name)) for name in ("dollars_once", "saved_a_thousand", "queries"))
    if once is None or saved is None:
        return ""
    if queries is None:
        return f"Against the hosted model a thousand queries cost {dollars(-saved)} more, so {dollars(once)} paid once never come back."
    months = number(record.get("months"))
    back = f" or {months:,.1f} months" if months is not None else ""
    saving = f"Paid once: {dollars(once)} (setup and training). Saved: {dollars(saved)} a thousand queries."
    return f"{saving} Even after {rounded(queries)} queries{back}."


def rounded(rows: float) -> str:
    """A number with two digits that say something."""
    if rows < 10:
        return f"{rows:.0f}"
    step = 10 ** (math.floor(math.log10(rows)) - 1)
    return f"{round(rows / step) * step:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

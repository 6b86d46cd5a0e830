"""The top of a decision's report: decision.json in, the answer, the learning curve and the costs as the page shows them out.

Numbers are shown as recorded. Left out on purpose: fitting anything here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sapwood.evaluate.charts import plain
from sapwood.evaluate.report_costs import rounded
from sapwood.evaluate.report_files import Record, RunFiles, mapping, number, text_of

KINDS = {"yes": "better", "no": "worse", "not yet": "not-shown"}
"""The answer → the page's look of it."""
MARKS = {True: "speaks for it", False: "does not", None: "open"}
TARGETS = {"best_without_tuning_and_gain": "to be worth it", "wish": "as you wish"}
HEIGHT = 300


@dataclass(frozen=True)
class DecisionView:
    """What the page says of a decision."""

    kind: str
    word: str
    text: str
    reasons: list[tuple[str, str, str]]
    """(name, whether it holds in words, line)"""
    chart: Markup
    caption: str
    needed: list[tuple[str, str, str, str]]
    """(rate, why it, rows, their interval)"""
    facts: list[tuple[str, str]]


def decision_view(files: RunFiles) -> DecisionView | None:
    """What decision.json says; None for a run that decided nothing."""
    record = files.decision
    answer = text_of(record.get("answer"))
    if answer not in KINDS:
        return None
    curve = mapping(record.get("curve"))
    reasons = _objects(record.get("reasons"))
    steps = record.get("next_steps")
    return DecisionView(
        kind=KINDS[answer],
        word=answer.capitalize(),
        text=_upper(" ".join([text_of(record.get("why")), *map(text_of, steps if isinstance(steps, list) else [])]).strip()),
        reasons=[(_upper(text_of(one.get("name"))), _mark(one.get("holds")), text_of(one.get("line"))) for one in reasons],
        chart=_chart(record, curve) if curve else Markup(""),
        caption=_caption(record, curve) if curve else "",
        needed=_needed(mapping(curve.get("rows_for"))),
        facts=_facts(record),
    )


def as_verdict(files: RunFiles) -> Record:
    """The arms of a decision in the form of verdict.json: the largest pilot stands where the tuned arm does."""
    record = files.decision
    points = _objects(record.get("pilot"))
    largest = max(points, key=lambda point: (number(point.get("rows")) or 0, -(number(point.get("seed")) or 0)), default={})
    found = {"arms": mapping(record.get("arms")), "best_other": record.get("best_without_tuning")}
    return found | ({"tuned": largest["arm"]} if "arm" in largest else {})


def _chart(record: Record, curve: Record) -> Markup:
    """Rate over rows, on a logarithmic axis: pilots as dots, the middle as a line in its band, what is compared with as dashes."""
    line = sorted((one for one in _objects(curve.get("line")) if (number(one.get("rows")) or 0) > 0), key=lambda one: float(one["rows"]))
    points = [(number(one.get("rows")), number(one.get("rate"))) for one in _objects(record.get("pilot"))]
    if len(line) < 2 or line[0]["rows"] == line[-1]["rows"]:
        return Markup("")
    first, last = math.log(float(line[0]["rows"])), math.log(float(line[-1]["rows"]))

    def x(rows: float) -> float:
        return 100 * (math.log(rows) - first) / (last - first)

    def path(name: str, entries: Sequence[Record]) -> list[str]:
        return [f"{x(float(one['rows'])):.2f} {100 - 100 * _of(one, name):.2f}" for one in entries]

    label = f"Learning curve: {_caption(record, curve)}"
    parts = [Markup('<div class="curve" role="img" aria-label="{}" style="height:{}px">').format(label, HEIGHT)]
    for share in (0, 25, 50, 75, 100):
        parts.append(Markup('<span class="y" style="top:{}%">{}</span>').format(100 - share, f"{share} %"))
    all_rows = number(record.get("rows"))
    for rows in _ticks(float(line[0]["rows"]), float(line[-1]["rows"]), all_rows):
        parts.append(Markup('<span class="x" style="left:{:.2f}%">{}</span>').format(x(rows), plain(rows)))
    parts.append(Markup('<span class="x-name">rows trained on</span>'))
    parts.append(Markup('<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'))
    parts += [Markup('<path class="grid" d="M0 {}H100"/>').format(share) for share in (0, 25, 50, 75, 100)]
    parts.append(Markup('<path class="band" d="M{}L{}Z"/>').format("L".join(path("low", line)), "L".join(path("high", line[::-1]))))
    if all_rows is not None and line[0]["rows"] <= all_rows <= line[-1]["rows"]:
        parts.append(Markup('<path class="mark" d="M{:.2f} 0V100"/>').format(x(all_rows)))
    for look, rate in (("other", _best_rate(record)), ("wish", number(record.get("wish")))):
        if rate is not None:
            parts.append(Markup('<path class="{}" d="M0 {:.2f}H100"/>').format(look, 100 - 100 * rate))
    parts.append(Markup('<path class="accent" d="M{}"/>').format("L".join(path("middle", line))))
    dots = "".join(f"M{x(rows):.2f} {100 - 100 * rate:.2f}h0" for rows, rate in points if rows and rows > 0 and rate is not None)
    parts.append(Markup('<path class="ink dots" d="{}"/></svg></div>').format(dots))
    return Markup("").join(parts)


def _objects(value: Any) -> list[Record]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _mark(holds: Any) -> str:
    return MARKS[holds] if isinstance(holds, bool) else MARKS[None]


def _of(entry: Record, name: str) -> float:
    return min(1.0, max(0.0, number(mapping(entry.get("rate")).get(name)) or 0.0))


def _ticks(first: float, last: float, all_rows: float | None) -> list[float]:
    """Round numbers, doubling or so; the number of all rows in the place of those near it."""
    ticks = [digit * 10**power for power in range(8) for digit in (1, 2, 5) if first <= digit * 10**power <= last]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if str(round(tick))[0] == "1"] or ticks
    if all_rows is not None and first <= all_rows <= last:
        ticks = [tick for tick in ticks if abs(math.log(tick / all_rows)) > 0.09 * math.log(last / first)] + [all_rows]
    return sorted(ticks)


def _best_rate(record: Record) -> float | None:
    best = record.get("best_without_tuning")
    return number(mapping(mapping(record.get("arms")).get(best)).get("rate")) if isinstance(best, str) else None


def _caption(record: Record, curve: Record) -> str:
    full = mapping(mapping(curve.get("all_rows")).get("rate"))
    middle, low, high = (number(full.get(name)) for name in ("middle", "low", "high"))
    rows, level = number(record.get("rows")), number(curve.get("level")) or 0.9
    expected = ""
    if rows is not None and middle is not None and low is not None and high is not None:
        expected = (
            f" All {rows:,.0f} rows (upright line) are expected to give {100 * middle:.0f} %, between {100 * low:.0f} and {100 * high:.0f}."
        )
    best, wish = text_of(record.get("best_without_tuning")), number(record.get("wish"))
    lines = f" Dashed: the best arm without tuning ({best})" + ("" if wish is None else f"; dotted: the wished {100 * wish:.0f} %") + "."
    return (
        f"Share right after training on so many rows, all with the same number of steps. Dots are pilot trainings, the band holds "
        f"{100 * level:.0f} % of what further trainings and items like these would give.{expected}{lines}"
    )


def _needed(record: Record) -> list[tuple[str, str, str, str]]:
    found = []
    for name, entry in record.items():
        one = mapping(entry)
        rows, rate = mapping(one.get("rows")), number(one.get("rate"))
        if rate is None:
            continue
        middle, low, high = (number(rows.get(key)) for key in ("middle", "low", "high"))
        ends = "out of reach" if low is None else f"{rounded(low)} to {'never' if high is None else rounded(high)}"
        found.append(
            (f"{100 * rate:.0f} %", TARGETS.get(name, name), "out of reach" if middle is None else f"about {rounded(middle)}", ends)
        )
    return found


def _facts(record: Record) -> list[tuple[str, str]]:
    facts = [
        (term, f"{value:,.0f}")
        for term, key in (("Rows to train on", "rows"), ("Items asked", "items"))
        if (value := number(record.get(key)))
    ]
    if record.get("scorer"):
        facts.append(("Scored by", text_of(record["scorer"])))
    if (gain := number(record.get("gain"))) is not None:
        facts.append(("Worth it from", f"{100 * gain:g} points"))
    if form := text_of(mapping(record.get("forms")).get("name")):
        facts.append(("Valid answers are", form))
    return facts


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]

"""Quality against cost as an inline SVG: arms in, a drawing out, with the line of those that no other arm beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from sapwood.evaluate.charts import plain, scale_over

HEIGHT, TOP, BOTTOM = 300, 16, 260
LINE, NEAR = 15, 22
"""Pixels between two labels, and per cent of the width within which they would run into each other."""


def scatter(arms: Sequence[dict[str, Any]], candidate: str) -> Markup:
    """Rate upwards, cost of a thousand queries to the right; seconds a query where not every price is known. Empty for fewer than two."""
    priced = all(arm["cost"]["dollars_a_thousand"] is not None for arm in arms)
    key = "dollars_a_thousand" if priced else "seconds"
    points = [(arm, arm["cost"][key], arm["rate"]) for arm in arms if arm["rate"] is not None and arm["cost"][key] is not None]
    if len(points) < 2:
        return Markup("")
    across, up = scale_over([0.0, *(cost for _, cost, _ in points)]), scale_over([0.0, *(rate for _, _, rate in points)])
    place = {arm["name"]: (4 + 0.82 * across.place(cost), BOTTOM - (BOTTOM - TOP) * up.place(rate) / 100) for arm, cost, rate in points}
    said = "; ".join(f"{arm['name']}: {100 * rate:.1f} % at {plain(cost)}" for arm, cost, rate in points)
    parts = [Markup('<svg class="scatter" width="100%" height="{}" role="img" aria-label="{}">').format(HEIGHT, said)]
    for tick in up.ticks:
        y = BOTTOM - (BOTTOM - TOP) * up.place(tick) / 100
        parts.append(Markup('<line class="grid" x1="4%" x2="86%" y1="{0}" y2="{0}"/>').format(round(y, 1)))
        parts.append(Markup('<text class="tick" x="3.4%" y="{}" text-anchor="end">{} %</text>').format(round(y + 4, 1), plain(100 * tick)))
    for tick in across.ticks:
        x = round(4 + 0.82 * across.place(tick), 2)
        parts.append(Markup('<text class="tick" x="{}%" y="{}" text-anchor="middle">{}</text>').format(x, BOTTOM + 18, plain(tick)))
    parts.append(
        Markup('<text class="tick" x="86%" y="{}" text-anchor="end">{}</text>').format(
            BOTTOM + 36, "price of a thousand queries" if priced else "seconds a query, on this machine"
        )
    )
    best = sorted((place[arm["name"]] for arm, _, _ in points if arm["pareto"]), key=lambda point: point[0])
    for (x1, y1), (x2, y2) in pairwise(best):
        parts.append(Markup('<line class="pareto" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(*(round(v, 2) for v in (x1, y1, x2, y2))))
    taken: list[tuple[float, float]] = []
    label = Markup('<text class="tick strong" x="{}%" dx="12" y="{}">{}</text>')
    for arm, _, _ in sorted(points, key=lambda point: -place[point[0]["name"]][1]):
        x, y = place[arm["name"]]
        look = "dot candidate" if arm["name"] == candidate else "dot on-line" if arm["pareto"] else "dot"
        parts.append(Markup('<circle class="{}" cx="{}%" cy="{}" r="6"/>').format(look, round(x, 2), round(y, 1)))
        height = y + 4
        while any(abs(height - other) < LINE and abs(x - there) < NEAR for there, other in taken):
            height -= LINE  # upwards: below lies the axis
        taken.append((x, height))
        parts.append(label.format(round(x, 2), round(height, 1), arm["name"]))
    return Markup("").join([*parts, Markup("</svg>")])

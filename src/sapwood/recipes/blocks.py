"""Curves as letters: numbers in, lines of block characters out, for a terminal or a log.

    sparkline   one line: ▇▅▃▂▁
    chart       several lines: columns of a curve, and points of another above them

Left out on purpose: axes with ticks. The report has those; here a few numbers stand beside the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*%#"
POINT, ASCII_POINT = "●", "o"
Points = Sequence[tuple[float, float]]
"""(x, y), ascending in x; only finite y are drawn."""


@dataclass(frozen=True)
class Chart:
    """Lines of equal width, top first. `points` are the (line, column) of what was drawn as a point."""

    lines: tuple[str, ...]
    points: frozenset[tuple[int, int]]
    low: float
    high: float


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """At most `width` letters, each the mean of its neighbours; as many as there are values where those are fewer. Empty without any."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    columns = min(width, len(finite))
    means = []
    for column in range(columns):
        part = finite[column * len(finite) // columns : (column + 1) * len(finite) // columns]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    return "".join(blocks[1 + _level(mean, low, high, 7)] for mean in means)


def chart(curve: Points, points: Points, *, end: float, width: int, height: int, ascii_only: bool = False) -> Chart:
    """`curve` as columns over x from 0 to `end`, `points` laid over it. What lies right of the curve's last x stays empty.

    Between two of the curve's x the columns are interpolated; a column that holds several is their mean.
    """
    curve = [(x, y) for x, y in curve if math.isfinite(y)]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    heights = _columns(curve, end, width)
    seen = [value for value in heights if value is not None] + [y for _, y in points]
    low, high = min(seen, default=0.0), max(seen, default=0.0)
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    levels = [None if value is None else 1 + _level(value, low, high, 8 * height - 1) for value in heights]
    rows = []
    for row in range(height):
        below = 8 * (height - 1 - row)
        rows.append([" " if level is None else blocks[max(0, min(8, level - below))] for level in levels])
    drawn = set()
    for x, y in points:
        column = min(width - 1, int(x / end * width))
        row = height - 1 - _level(y, low, high, 8 * height - 1) // 8
        rows[row][column] = ASCII_POINT if ascii_only else POINT
        drawn.add((row, column))
    return Chart(tuple("".join(row) for row in rows), frozenset(drawn), low, high)


def _level(value: float, low: float, high: float, top: int) -> int:
    """Where a value stands between low and high, from 0 to `top`; in the middle where all are alike."""
    return round((value - low) / (high - low) * top) if high > low else top // 2


def _columns(curve: Points, end: float, width: int) -> list[float | None]:
    if not curve or end <= 0:
        return [None] * width
    inside: dict[int, list[float]] = {}
    for x, y in curve:
        inside.setdefault(min(width - 1, int(x / end * width)), []).append(y)
    means = {column: sum(ys) / len(ys) for column, ys in inside.items()}
    known = sorted(means)
    found: list[float | None] = [None] * width
    for left, right in zip(known, [*known[1:], known[-1]], strict=True):
        for column in range(left, right + 1):
            share = (column - left) / (right - left) if right > left else 0.0
            found[column] = means[left] + share * (means[right] - means[left])
    for column in range(known[0]):
        found[column] = means[known[0]]
    return found

"""The result of `sapwood bench growth` as one SVG of four panels: what was measured as a line, what tokens alone would give as dashes.

Panels of sharing, rows and width show how many times as fast the forest is; that of length shows what a token costs, into what it
costs in the shortest row. Heights begin at zero. `python -m bench.growth_picture RESULT.json PICTURE.svg` draws a result again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import orjson

from sapwood.run import write_atomic

WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM = 380, 250, 20, 46, 62, 40
_INK, _FAINT, _RULE, _GREEN = "#1c2321", "#5c6663", "#e4e9e6", "#2e7d5b"
TITLES = {
    "sharing": ("By the share of tokens in common", "times as fast as apart; 8 rows of 512 tokens"),
    "rows": ("By rows under one prompt", "times as fast; 448 tokens in common, 64 a row's own"),
    "length": ("By length of one row", "cost of a token, shortest row = 1; nothing to share"),
    "width": ("By width of the model", "times as fast as apart; 8 rows of 448 + 64 tokens"),
}


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Write the picture to `path` and return it."""
    whole, high = 2 * WIDTH + GAP, 2 * HEIGHT + GAP + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{high}" viewBox="0 0 {whole} {high}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="12">',
        "<title>What a training pass costs, by sharing, rows, length and width</title>",
        f'<rect width="{whole}" height="{high}" fill="#ffffff"/>',
    ]
    for number, axis in enumerate(TITLES):
        x, y = (number % 2) * (WIDTH + GAP), (number // 2) * (HEIGHT + GAP)
        parts += [f'<g transform="translate({x} {y})">', *_panel(axis, result[axis]), "</g>"]
    words = "line: measured · dashes: if the cost of a pass were its unique tokens alone"
    parts.append(f'<text x="{LEFT}" y="{high - 10}" fill="{_FAINT}">{words}</text>')
    write_atomic(path, "\n".join([*parts, "</svg>\n"]).encode())
    return path


def heights(axis: str, points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """What a panel shows of each point: what was measured, and what the number of tokens alone would give."""
    if axis != "length":
        return [point["ratio"] for point in points], [point["token_ratio"] for point in points]
    cost = [point["seconds"]["forest"] / point["unique_tokens"] for point in points]
    return [each / cost[0] for each in cost], [1.0] * len(cost)


def _panel(axis: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    measured, by_tokens = heights(axis, points)
    top = max(*measured, *by_tokens) * 1.12
    step = next(size for size in (0.25, 0.5, 1, 2, 4, 8, 16) if top / size <= 6)

    def right(place: int) -> float:
        return LEFT + 14 + (WIDTH - LEFT - 40) * place / max(1, len(points) - 1)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    title, below = TITLES[axis]
    parts = [
        f'<text x="{LEFT}" y="24" fill="{_INK}" font-size="14" font-weight="600">{escape(title)}</text>',
        f'<text x="{LEFT}" y="42" fill="{_FAINT}">{escape(below)}</text>',
    ]
    for tick in range(int(top / step) + 1):
        parts.append(f'<path d="M{LEFT} {down(tick * step):.1f}H{WIDTH}" stroke="{_RULE}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(tick * step) + 4:.1f}" text-anchor="end" fill="{_INK}">{tick * step:g}</text>')
    for place, point in enumerate(points):
        words = f"{point['at']:.0%}" if axis == "sharing" else f"{point['at']:,}"
        parts.append(f'<text x="{right(place):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="{_INK}">{words}</text>')
    for values, look in ((by_tokens, f'stroke="{_FAINT}" stroke-dasharray="5 4"'), (measured, f'stroke="{_GREEN}" stroke-width="2.2"')):
        line = "L".join(f"{right(place):.1f} {down(value):.1f}" for place, value in enumerate(values))
        parts.append(f'<path d="M{line}" fill="none" {look} stroke-linejoin="round"/>')
    parts += [
        f'<circle cx="{right(place):.1f}" cy="{down(value):.1f}" r="3" fill="{_GREEN}"/>'
        f'<text x="{right(place):.1f}" y="{down(value) + (18 if value < planned else -9):.1f}" text-anchor="middle" fill="{_GREEN}" '
        f'font-weight="600">{value:.2g}</text>'
        for place, (value, planned) in enumerate(zip(measured, by_tokens, strict=True))
    ]
    return parts


if __name__ == "__main__":
    draw(orjson.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))

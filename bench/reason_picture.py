"""The curves of a proof of the recipe as one SVG: greedy answers while GRPO trains and while more SFT does, by the share of the time.

In: the result of `sapwood bench reason`. Out: a picture whose text is drawn on a white ground, so that it reads in a page, in a dark theme
and on paper. The lines are of instances that were watched on the way; the marks at the right are of the test's, which were looked at once.
`python -m bench.reason_picture SUMMARY.json PICTURE.svg` draws a committed summary again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import orjson

from sapwood.run import write_atomic

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 52, 210, 64, 34
INK, FAINT, RULE, GREEN = "#1c2321", "#c3ccc8", "#e4e9e6", "#2e7d5b"
APART = 14
"""Least distance of two labels, in pixels."""


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Write the picture to `path` and return it. Heights run from 0 to 100 %, so that nothing looks greater than it is."""
    whole = max(seen["seconds"] for line in result["watched"].values() for seen in line) or 1.0

    def right(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / whole

    def down(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    title = "From one checkpoint: taught by rewards, and by more imitation"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="12">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" fill="{INK}" font-size="14" font-weight="600">{title}</text>',
        f'<text x="{LEFT}" y="44" fill="{INK}">Lines: greedy answers to watched instances. Dots: samples of GRPO\'s steps. '
        "At the right: the test.</text>",
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path d="M{LEFT} {down(tick):.1f}H{WIDTH - RIGHT}" stroke="{RULE}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end" fill="{INK}">{tick:.0%}</text>')
    for share, words in ((0.0, "start"), (0.5, "half of the time"), (1.0, "end")):
        parts.append(f'<text x="{right(share * whole):.1f}" y="{HEIGHT - 12}" text-anchor="middle" fill="{INK}">{words}</text>')
    seconds = 0.0
    for point in result["curve"]:
        seconds += point["seconds"]
        parts.append(f'<circle cx="{right(seconds):.1f}" cy="{down(point["solved"]):.1f}" r="2" fill="{FAINT}"/>')
    for name, line in result["watched"].items():
        points = "L".join(f"{right(seen['seconds']):.1f} {down(seen['greedy']):.1f}" for seen in line)
        parts.append(f'<path d="M{points}" fill="none" stroke="{_colour(name)}" stroke-width="2" stroke-linejoin="round"/>')
    floor = float("inf")
    for share, name in sorted((arm["greedy"], name) for name, arm in result["arms"].items()):
        floor = min(down(share), floor - APART)  # a label is pushed up where it would lie on the one below
        parts.append(f'<path d="M{WIDTH - RIGHT} {down(share):.1f}h6" stroke="{_colour(name)}" stroke-width="2"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{floor + 4:.1f}" fill="{_colour(name)}" font-weight="600">{escape(name)} {share:.1%}</text>'
        )
    write_atomic(path, "\n".join([*parts, "</svg>\n"]).encode())
    return path


def _colour(name: str) -> str:
    return GREEN if name == "grpo" else INK


if __name__ == "__main__":
    draw(orjson.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))

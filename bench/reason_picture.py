"""The curve of a proof of the recipe as one SVG: what GRPO's samples solved at each step, and what each state answers to unseen questions.

In: the result of `sapwood bench reason`. Out: a picture whose text is drawn on a white ground, so that it reads in a page, in a dark theme
and on paper. `python -m bench.reason_picture SUMMARY.json PICTURE.svg` draws a committed summary again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import orjson

from sapwood.run import write_atomic

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 700, 280, 52, 150, 48, 34
INK, FAINT, RULE, GREEN = "#1c2321", "#96a29d", "#e4e9e6", "#2e7d5b"
APART = 14
"""Least distance of two labels, in pixels."""


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Write the picture to `path` and return it. Heights run from 0 to 100 %, so that nothing looks greater than it is."""
    solved = np.array([point["solved"] for point in result["curve"]])
    last = max(len(solved), 2)
    smooth = [float(np.mean(solved[max(0, step - 2) : step + 3])) for step in range(len(solved))]

    def right(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / (last - 1)

    def down(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    title = "Solved by GRPO's samples at each step, and greedy answers to unseen questions"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="12">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" fill="{INK}" font-size="14" font-weight="600">{title}</text>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path d="M{LEFT} {down(tick):.1f}H{WIDTH - RIGHT}" stroke="{RULE}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end" fill="{INK}">{tick:.0%}</text>')
    for step in sorted({1, (1 + last) // 2, last}):
        words = "step 1" if step == 1 else str(step)
        parts.append(f'<text x="{right(step):.1f}" y="{HEIGHT - 12}" text-anchor="middle" fill="{INK}">{words}</text>')
    parts += [f'<circle cx="{right(step):.1f}" cy="{down(share):.1f}" r="2" fill="{FAINT}"/>' for step, share in enumerate(solved, 1)]
    points = "L".join(f"{right(step):.1f} {down(share):.1f}" for step, share in enumerate(smooth, 1))
    parts.append(f'<path d="M{points}" fill="none" stroke="{GREEN}" stroke-width="2" stroke-linejoin="round"/>')
    floor = float("inf")
    for share, name in sorted((arm["greedy"], name) for name, arm in result["arms"].items()):
        colour = GREEN if name == "grpo" else INK
        floor = min(down(share), floor - APART)  # a label is pushed up where it would lie on the one below
        parts.append(f'<path d="M{LEFT} {down(share):.1f}H{WIDTH - RIGHT}" stroke="{colour}" stroke-dasharray="4 4"/>')
        parts.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{floor + 4:.1f}" fill="{colour}" font-weight="600">{escape(name)} {share:.1%}</text>'
        )
    write_atomic(path, "\n".join([*parts, "</svg>\n"]).encode())
    return path


if __name__ == "__main__":
    draw(orjson.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))

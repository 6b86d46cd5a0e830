"""The result of `sapwood bench memory` as one SVG: what was predicted as a dashed line, what was measured as points; heights begin at zero.

`python -m bench.memory_picture RESULT.json PICTURE.svg` draws a result again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from sapwood.run import write_atomic

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 400, 64, 84, 36, 62
_INK, _FAINT, _RULE = "#1c2321", "#5c6663", "#e4e9e6"
LOOKS = {
    "apart": ("#2e7d5b", "rows that share nothing"),
    "shared": ("#b8632a", "eight rows under one beginning, 4.5 times the row tokens"),
}


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Write the picture to `path` and return it."""
    points = result["points"]
    widest = max(point["unique_tokens"] for point in points) * 1.04
    tallest = max(max(point["peak_bytes"], point["predicted_bytes"]) for point in points) / 2**30 * 1.1
    step = next(size for size in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if tallest / size <= 7)

    def right(tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / widest

    def down(size: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size / 2**30 / tallest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="12.5">',
        "<title>Peak memory of training by unique tokens of a pass</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="32" fill="{_INK}" font-size="19" font-weight="600">Peak memory by unique tokens of a pass</text>',
    ]
    for number, (colour, words) in enumerate(LOOKS.values()):
        parts.append(f'<circle cx="{LEFT + 5 + 190 * number}" cy="52" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 16 + 190 * number}" y="56" fill="{_FAINT}">{words}</text>')
    parts.append(f'<text x="{LEFT}" y="74" fill="{_FAINT}">points: measured, GiB · dashes: what the plan predicts</text>')
    for tick in range(int(tallest / step) + 1):
        height = down(tick * step * 2**30)
        parts.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="{_RULE}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end" fill="{_INK}">{tick * step:g}</text>')
    for tokens in sorted({point["unique_tokens"] for point in points if point["kind"] == "apart"}):
        parts.append(f'<text x="{right(tokens):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="{_INK}">{tokens:,}</text>')
    for kind, (colour, _) in LOOKS.items():
        mine = sorted((point for point in points if point["kind"] == kind), key=lambda point: point["unique_tokens"])
        line = "L".join(f"{right(point['unique_tokens']):.1f} {down(point['predicted_bytes']):.1f}" for point in mine)
        if kind == "apart" and line:
            parts.append(f'<path d="M{line}" fill="none" stroke="{_FAINT}" stroke-dasharray="5 4"/>')
        for point in mine:
            x, y = right(point["unique_tokens"]), down(point["peak_bytes"])
            if kind == "apart":
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>')
                size = f"{point['peak_bytes'] / 2**30:.2f}"
                parts.append(f'<text x="{x:.1f}" y="{y - 12:.1f}" text-anchor="end" fill="{colour}" font-weight="600">{size}</text>')
            else:  # a ring, for it lies on the other
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    words = f"unique tokens of a pass; {result['settings']['model']}, LoRA r=16"
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 16}" fill="{_FAINT}">{words}</text>')
    write_atomic(path, "\n".join([*parts, "</svg>\n"]).encode())
    return path


if __name__ == "__main__":
    draw(orjson.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))

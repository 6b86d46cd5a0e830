"""A result as one SVG: a bar for each contestant with the spread of its rounds, the ratio, and where it was measured.

Text is drawn as text on a white ground, so that the picture reads in a page, in a dark theme and on paper. Left out on purpose: a
chart library, and axes that do not begin at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from sapwood.run import write_atomic

WIDTH = 760
_LEFT, _RIGHT, _BAR, _GAP, _TOP = 190, 130, 30, 18, 78
_INK, _FAINT, _OURS, _PEER = "#1c2321", "#5c6663", "#2e7d5b", "#9aa5a1"


@dataclass(frozen=True)
class Bar:
    """One contestant: its median, the least and the most of its rounds, and whether it is ours."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = False


def draw(path: Path, title: str, subtitle: str, bars: Sequence[Bar], unit: str, notes: Sequence[str]) -> Path:
    """Write the picture to `path` and return it. `notes` are lines of small print."""
    longest = max(bar.high for bar in bars) or 1.0
    room = WIDTH - _LEFT - _RIGHT
    height = _TOP + len(bars) * (_BAR + _GAP) + 14 + 19 * len(notes) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(24, 34, title, 19, _INK, weight=600),
        _text(24, 57, subtitle, 14, _FAINT),
    ]
    for number, bar in enumerate(bars):
        top = _TOP + number * (_BAR + _GAP)
        middle = top + _BAR / 2
        length, low, high = (room * value / longest for value in (bar.value, bar.low, bar.high))
        parts += [
            _text(_LEFT - 12, middle + 5, bar.label, 14, _INK, anchor="end", weight=600 if bar.ours else 400),
            f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{_OURS if bar.ours else _PEER}"/>',
            f'<path d="M{_LEFT + low:.1f} {middle}H{_LEFT + high:.1f}" stroke="{_INK}" stroke-width="1.3"/>',
            *(f'<path d="M{_LEFT + end:.1f} {middle - 5}v10" stroke="{_INK}" stroke-width="1.3"/>' for end in (low, high)),
            _text(_LEFT + max(length, high) + 9, middle + 5, f"{bar.value:,.0f} {unit}", 14, _INK, weight=600 if bar.ours else 400),
        ]
    foot = _TOP + len(bars) * (_BAR + _GAP) + 18
    parts += [_text(24, foot + 19 * number, note, 12.5, _FAINT) for number, note in enumerate(notes)]
    write_atomic(path, "\n".join([*parts, "</svg>\n"]).encode())
    return path


def _text(x: float, y: float, words: str, size: float, colour: str, *, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )

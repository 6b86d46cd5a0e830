"""Draws docs/pictures/curve-*.svg from the committed runs of `curve_runs`: `python tests/curve_pictures.py`.

The training loss of each step is faint, its running median dark, the held-out loss green; a dashed line stands at the step that
the finding names. Text is drawn on a white ground, so that the picture reads in a page, in a dark theme and on paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from curve_runs import read
from sapwood.evaluate.curve_shape import Curves, curves_from
from sapwood.evaluate.curves import read_curves

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SHOWN = ("a rule, two epochs", "one epoch", "overfitting", "memorisation", "underfitting", "stuck", "diverging", "made worse", "spikes")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 190, 44, 92, 14, 30
INK, FAINT, RULE, GREEN = "#1c2321", "#96a29d", "#e4e9e6", "#2e7d5b"


def path_of(name: str) -> Path:
    """Where the picture of a run lies."""
    return PICTURES / f"curve-{name.replace(' ', '-').replace(',', '')}.svg"


def drawn(name: str) -> str:
    """The picture of a run."""
    records = read(name)
    c, step = curves_from(records), next((finding.step for finding in read_curves(records) if finding.step is not None), None)
    x_end, low, high = _extent(c)

    def place(x: float, y: float) -> str:
        right = LEFT + (WIDTH - LEFT - RIGHT) * x / x_end
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - min(y, high)) / (high - low)
        return f"{right:.1f} {down:.1f}"

    def line(xs: np.ndarray, ys: np.ndarray, colour: str, width: float) -> str:
        points = " L".join(place(float(x), float(y)) for x, y in zip(xs, ys, strict=True))
        return f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'

    half = max(1, len(c.loss_S) // 40)
    median_S = np.array([np.median(c.loss_S[max(0, s - half) : s + half + 1]) for s in range(len(c.loss_S))])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="12">',
        f"<title>Training and held-out loss: {name}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tick in np.linspace(low, high, 4):
        right, down = place(0, float(tick)).split()
        parts.append(f'<path d="M{right} {down}H{WIDTH - RIGHT}" stroke="{RULE}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(down) + 4:.1f}" text-anchor="end" fill="{INK}">{tick:.1f}</text>')
    for tick in sorted({0, round(x_end / 2), round(x_end)}):
        right, words = place(tick, low).split()[0], "step 0" if tick == 0 else str(tick)
        parts.append(f'<text x="{right}" y="{HEIGHT - 10}" text-anchor="middle" fill="{INK}">{words}</text>')
    if step is not None:
        right = place(step, low).split()[0]
        parts.append(f'<path d="M{right} {TOP}V{HEIGHT - BOTTOM}" stroke="{INK}" stroke-dasharray="3 3"/>')
    parts += [line(c.step_S, c.loss_S, FAINT, 1), line(c.step_S, median_S, INK, 1.8)]
    ends = [(float(median_S[-1]), "training", INK)]
    if len(c.held_K):
        parts.append(line(c.step_K, c.held_K, GREEN, 1.8))
        for x, y in zip(c.step_K, c.held_K, strict=True):
            right, down = place(float(x), float(y)).split()
            parts.append(f'<circle cx="{right}" cy="{down}" r="3" fill="{GREEN}"/>')
        ends.append((float(c.held_K[-1]), "held out", GREEN))
    floor = float("inf")
    for y, label, colour in sorted(ends):  # lowest first; a label is pushed up where it would lie on the one below
        down = min(float(place(0, y).split()[1]), floor - 14)
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{down + 4:.1f}" fill="{colour}" font-weight="600">{label}</text>')
        floor = down
    return "\n".join([*parts, "</svg>\n"])


def _extent(c: Curves) -> tuple[float, float, float]:
    """(last step, lowest and highest loss that is drawn)"""
    values = np.concatenate([c.loss_S, c.held_K])
    low, high = float(values.min()), float(values.max())
    return float(c.step_S[-1]), max(0.0, low - 0.08 * (high - low)), high


if __name__ == "__main__":
    for name in SHOWN:
        path_of(name).write_text(drawn(name), encoding="utf-8")

"""Small charts as inline SVG: numbers in, markup out.

Lengths are percentages of whatever width the page gives, heights are pixels, and colours are CSS classes, so one
drawing serves phone, wide screen, dark mode and print, and its text never shrinks. Left out on purpose: a chart
library, scripts, animation, and any text that was not escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MINUS = "−"
LONGEST_LINE = 400
"""Points that a drawn line keeps; more than that no screen shows."""


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, with round numbers to label it by."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where `value` lies, in percent of the axis, kept inside it."""
        share = (value - self.low) / (self.high - self.low)
        return 100 * min(1.0, max(0.0, share))


def scale_over(values: Sequence[float], *, count: int = 5, pad: bool = True) -> Scale:
    """An axis that holds all `values`; its ends are round numbers too if `pad`. `values` may not be empty."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    if pad:
        return Scale(ticks[0], ticks[-1], tuple(ticks))
    return Scale(low, high, tuple(tick for tick in ticks if low <= tick <= high))


def signed(value: float, digits: int = 0) -> str:
    """A number with its sign, a real minus, and no sign at zero."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def plain(value: float, digits: int | None = None) -> str:
    """A number with as many digits as tell it from its neighbours, or as many as asked for."""
    if digits is not None:
        text = f"{value:,.{digits}f}"
    elif value and not 1e-3 <= abs(value) < 1e6:
        text = f"{value:.2g}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", MINUS)


def difference_plot(mean: float, low: float, high: float, *, unseen: float | None, label: str) -> Markup:
    """A dot with its interval against zero, in points (0.31 is drawn at 31).

    `unseen` shades the differences that a comparison of this size would usually miss; `label` says it all in words.
    """
    mean, low, high = 100 * mean, 100 * low, 100 * high
    band = 100 * unseen if unseen else 0.0
    scale = scale_over([low, high, mean, -max(band, 1.0), max(band, 1.0)], count=6)  # a point either way at least: no zoom into rounding
    parts = [Markup('<svg class="difference" width="100%" height="108" role="img" aria-label="{}">').format(label)]
    if band:
        x, width = scale.place(-band), scale.place(band) - scale.place(-band)
        parts.append(Markup('<rect class="unseen" x="{}%" width="{}%" y="24" height="52"/>').format(_two(x), _two(width)))
    digits = 0 if scale.ticks[1] - scale.ticks[0] >= 1 else 1
    for tick in scale.ticks:
        zero = abs(tick) < 1e-9
        parts.append(_vertical(scale.place(tick), 24, 76, "zero" if zero else "grid"))
        parts.append(_text(scale.place(tick), 96, signed(tick, digits), "tick strong" if zero else "tick"))
        if zero:
            parts.append(_text(scale.place(tick), 15, "no difference", "tick strong"))
    a, b, dot = scale.place(low), scale.place(high), scale.place(mean)
    parts.append(Markup('<line class="span" x1="{}%" x2="{}%" y1="50" y2="50"/>').format(_two(a), _two(b)))
    parts += [_vertical(a, 42, 58, "span"), _vertical(b, 42, 58, "span")]
    parts.append(Markup('<circle class="dot" cx="{}%" cy="50" r="8"/></svg>').format(_two(dot)))
    return Markup("").join(parts)


def bar(rate: float, low: float | None, high: float | None, top: float) -> Markup:
    """A bar from 0 to `rate` on an axis that ends at `top`, with a whisker from `low` to `high`. Its numbers stand beside it."""
    scale = Scale(0.0, top, ())
    width = _two(scale.place(rate))
    parts = [
        Markup('<svg class="bar" width="100%" height="22" aria-hidden="true">'),
        Markup('<line class="axis" x1="0" x2="0" y1="0" y2="22"/>'),
    ]
    parts.append(Markup('<rect x="0" y="3" width="{}%" height="16"/>').format(width))
    if low is not None and high is not None:
        a, b = scale.place(low), scale.place(high)
        parts.append(Markup('<line class="whisker" x1="{}%" x2="{}%" y1="11" y2="11"/>').format(_two(a), _two(b)))
        parts += [_vertical(a, 7, 15, "whisker"), _vertical(b, 7, 15, "whisker")]
    return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True)
class Series:
    """One line of a chart. A None is a gap; `look` is its CSS class; `dots` marks the points instead of only joining them."""

    name: str
    look: str
    xs: tuple[float, ...]
    ys: tuple[float | None, ...]
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two lines over the same x; where one of them is None there is none of it."""

    xs: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]


def curve(
    series: Sequence[Series],
    *,
    height: int,
    label: str,
    x_name: str,
    over: Sequence[float] = (),
    from_zero: bool = False,
    form: Callable[[float], str] | None = None,
    band: Band | None = None,
) -> Markup:
    """Lines over a common x, with the y axis on the left. Empty if no series has a finite point.

    `over` are further x that the axis must hold, so that charts below each other line up; `form` writes the numbers of the y axis.
    The plot is stretched to the space it has (strokes are not); labels are ordinary text laid over it.
    """
    shown = [thinned(one) for one in series if any(y is not None for y in one.ys)]
    if not shown:
        return Markup("")
    edges = [y for side in (band.lows, band.highs) for y in side if y is not None] if band else []
    values = [y for one in shown for y in one.ys if y is not None] + edges + ([0.0] if from_zero else [])
    y_scale = scale_over(values, count=4 if height > 100 else 2)
    x_scale = scale_over([*over, *(x for one in shown for x in one.xs)], count=6, pad=False)
    parts = [Markup('<div class="curve" role="img" aria-label="{}" style="height:{}px">').format(label, height)]
    for tick in y_scale.ticks:
        parts.append(Markup('<span class="y" style="top:{}%">{}</span>').format(_two(100 - y_scale.place(tick)), (form or plain)(tick)))
    for tick in x_scale.ticks:
        parts.append(Markup('<span class="x" style="left:{}%">{}</span>').format(_two(x_scale.place(tick)), plain(tick)))
    parts.append(Markup('<span class="x-name">{}</span>').format(x_name))
    parts.append(Markup('<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'))
    parts += [Markup('<path class="grid" d="M0 {}H100"/>').format(_two(100 - y_scale.place(tick))) for tick in y_scale.ticks]
    if band:
        parts.append(Markup('<path class="band" d="{}"/>').format(_area(band, x_scale, y_scale)))
    for one in shown:
        places = [None if y is None else (x_scale.place(x), 100 - y_scale.place(y)) for x, y in zip(one.xs, one.ys, strict=True)]
        parts.append(Markup('<path class="{}" d="{}"/>').format(one.look, _line(places)))
        if one.dots:
            dots = "".join(f"M{_two(place[0])} {_two(place[1])}h0" for place in places if place)
            parts.append(Markup('<path class="{} dots" d="{}"/>').format(one.look, dots))
    return Markup("").join([*parts, Markup("</svg></div>")])


def span_pair(before: Sequence[float], after: Sequence[float], scale: Scale) -> Markup:
    """Before (hollow) above after (filled), each (mean, low, high), on a common axis. Decoration: the numbers stand beside it."""
    parts = [Markup('<svg class="pair" width="100%" height="34" aria-hidden="true">')]
    parts += [_vertical(scale.place(tick), 0, 34, "grid") for tick in scale.ticks]
    for look, y, (mean, low, high) in (("before", 10, before), ("after", 24, after)):
        a, b = scale.place(low), scale.place(high)
        parts.append(Markup('<line class="{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(look, _two(a), _two(b), y, y))
        parts.append(Markup('<circle class="{}" cx="{}%" cy="{}" r="5"/>').format(look, _two(scale.place(mean)), y))
    return Markup("").join([*parts, Markup("</svg>")])


def axis(scale: Scale) -> Markup:
    """The numbers that belong under drawings on `scale`."""
    parts = [_text(scale.place(tick), 13, plain(tick), "tick") for tick in scale.ticks]
    return Markup('<svg class="axis-row" width="100%" height="18" aria-hidden="true">') + Markup("").join(parts) + Markup("</svg>")


def smoothed(ys: Sequence[float | None], window: int) -> tuple[float | None, ...]:
    """Centred running mean over `window` points (fewer at the ends); gaps count for nothing and stay gaps."""
    half, result = window // 2, list[float | None]()
    for place, y in enumerate(ys):
        near = [value for value in ys[max(0, place - half) : place + half + 1] if value is not None]
        result.append(None if y is None else sum(near) / len(near))
    return tuple(result)


def thinned(one: Series) -> Series:
    """The same line with at most `LONGEST_LINE` points, each the mean of its neighbours; a bucket without a number stays a gap."""
    size = math.ceil(len(one.xs) / LONGEST_LINE)
    if size <= 1:
        return one
    xs, ys = list[float](), list[float | None]()
    for start in range(0, len(one.xs), size):
        part = one.xs[start : start + size]
        known = [y for y in one.ys[start : start + size] if y is not None]
        xs.append(sum(part) / len(part))
        ys.append(sum(known) / len(known) if known else None)
    return Series(one.name, one.look, tuple(xs), tuple(ys), one.dots)


def _line(places: Sequence[tuple[float, float] | None]) -> str:
    text, pen_down = "", False
    for place in places:
        if place is None:
            pen_down = False
            continue
        text += f"{'L' if pen_down else 'M'}{_two(place[0])} {_two(place[1])}"
        text += "" if pen_down else "h0"  # a point between two gaps is drawn as a dot
        pen_down = True
    return text


def _area(band: Band, x_scale: Scale, y_scale: Scale) -> str:
    """One closed path for each stretch without a gap."""
    low, high = (
        thinned(Series("", "", band.xs, tuple(None if None in pair else pair[side] for pair in zip(band.lows, band.highs, strict=True))))
        for side in (0, 1)
    )
    text = ""
    stretch: list[tuple[float, float, float]] = []
    for x, bottom, top in [*zip(low.xs, low.ys, high.ys, strict=True), (0.0, None, None)]:
        if bottom is not None and top is not None:
            stretch.append((x_scale.place(x), 100 - y_scale.place(bottom), 100 - y_scale.place(top)))
        elif stretch:
            outline = [(x, top) for x, _, top in stretch] + [(x, bottom) for x, bottom, _ in reversed(stretch)]
            text += "M" + "L".join(f"{_two(x)} {_two(y)}" for x, y in outline) + "Z"
            stretch = []
    return text


def _vertical(x: float, top: int, bottom: int, look: str) -> Markup:
    return Markup('<line class="{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(look, _two(x), _two(x), top, bottom)


def _text(x: float, y: int, text: str, look: str) -> Markup:
    anchor = "start" if x < 2 else "end" if x > 98 else "middle"
    return Markup('<text class="{}" x="{}%" y="{}" text-anchor="{}">{}</text>').format(look, _two(x), y, anchor, escape(text))


def _two(value: float) -> str:
    return f"{value:.2f}"

"""The page of `sapwood ab report`: an analysis in, one self-contained HTML file out. No script; all data is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from sapwood.ab.analysis import Analysis, Comparison, Measured, signed
from sapwood.ab.prediction import Prediction
from sapwood.evaluate import charts
from sapwood.evaluate.charts import Series
from sapwood.pages.page import Pages
from sapwood.run import write_atomic

PAGES = Pages("ab/report_page", signed=signed)
TONES = {"ship": "better", "stop for harm": "worse", "split broken": "worse"}


def write_page(path: Path, analysis: Analysis, predicted: Prediction | None) -> None:
    """Write the page, whole or not at all. Raises `StorageError` where it cannot be written."""
    write_atomic(path, page(analysis, predicted).encode("utf-8", "replace"))


def page(analysis: Analysis, predicted: Prediction | None) -> str:
    """The whole page as text."""
    return PAGES.render(
        "page.html",
        analysis=analysis,
        plan=analysis.plan,
        tone=TONES.get(analysis.decision, "unsure"),
        pictures=[picture(one, analysis.plan.effect) for one in analysis.comparisons],
        rows=[[row(measured) for measured in (one.primary, *one.guardrails)] for one in analysis.comparisons],
        predicted=predicted,
        since=when(analysis.started),
        until=when(analysis.now),
    )


def picture(comparison: Comparison, effect: float) -> Markup:
    """The interval as it narrowed, unit by unit; beside it nothing, and the gain that is worth it."""
    points = comparison.primary.over_time
    if len(points) < 2:
        return Markup("")
    xs = tuple(float(point.n) for point in points)
    span = comparison.primary.metric.high - comparison.primary.metric.low

    def near(values: Sequence[float]) -> tuple[float | None, ...]:
        """Only what lies near: the first intervals are as wide as the metric and would press the rest flat."""
        room = 4 * max(effect, abs(points[-1].high - points[-1].low), 0.02 * span)
        return tuple(value if abs(value - points[-1].mean) <= room else None for value in values)

    label = f"Gain of {comparison.arm} in {comparison.primary.metric.name} with its interval, over units"
    lines = [
        Series("high", "bound", xs, near([point.high for point in points])),
        Series("low", "bound", xs, near([point.low for point in points])),
        Series("worth it", "wish", (xs[0], xs[-1]), (effect, effect)),
        Series("no difference", "zero", (xs[0], xs[-1]), (0.0, 0.0)),
        Series("gain", "gain", xs, near([point.mean for point in points])),
    ]
    return charts.curve(lines, height=260, label=label, x_name="units settled")


def row(measured: Measured) -> list[str]:
    """A metric as a line of a table."""
    gain = measured.gain
    means = [charts.plain(arm.mean, 3) if arm.mean is not None else "–" for arm in (measured.control, measured.treated)]
    interval = f"{signed(gain.mean)} [{signed(gain.low)}, {signed(gain.high)}]"
    return [measured.metric.name, *means, f"{gain.n:,}", interval, f"{100 * gain.level:.4g} %", state(measured)]


def state(measured: Measured) -> str:
    """What is known of it, in a word or two."""
    if measured.harmed:
        return "harmed"
    if measured.gain.low > 0:
        return "better"
    if measured.metric.margin and measured.safe:
        return f"no worse than {measured.metric.margin:g}"
    return "worse" if measured.gain.high < 0 else "open"


def when(stamp: float) -> str:
    """A moment, in UTC."""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M UTC")

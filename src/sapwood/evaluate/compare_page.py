"""The page of `sapwood runs compare`: a comparison in, one self-contained HTML file out. No script; all data is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.charts import Series
from sapwood.evaluate.compare_runs import Comparison, Pairing
from sapwood.evaluate.report import PAGES
from sapwood.evaluate.report_files import Record, number
from sapwood.run import write_atomic

LOOKS = 6
"""Colours that lines have; a seventh run begins again with the first."""
SMOOTHED = 9
"""Steps of the running mean of a training loss."""


@dataclass(frozen=True)
class PairView:
    """One paired difference as the page draws it."""

    line: str
    arm: str
    tone: str
    plot: Markup


def write_comparison(path: Path, found: Comparison) -> None:
    """Write the page, whole or not at all. Raises `StorageError` where it cannot be written."""
    write_atomic(path, comparison_page(found).encode("utf-8", "replace"))


def comparison_page(found: Comparison) -> str:
    """The whole page as text."""
    return PAGES.render(
        "compare.html",
        styles=("page.css", "compare.css"),
        names=found.names,
        tables=[("Settings", found.settings), ("Data", found.data), ("Made with", found.made_with)],
        held_out=_curves(found, "eval", "Held-out loss over steps", 1),
        training=_curves(found, "train", "Training loss over steps", SMOOTHED),
        smoothed=SMOOTHED,
        looks=[f"run-{place % LOOKS}" for place in range(len(found.names))],
        arms=[(name, [_cell(arm) for arm in arms]) for name, arms in found.arms.items()],
        pairs=[_pair(pairing) for pairing in found.pairings],
        notes=found.notes,
    )


def _curves(found: Comparison, kind: str, label: str, window: int) -> Markup:
    """A line a run."""
    series = []
    for place, files in enumerate(found.files):
        records = [record for record in files.metrics if record.get("kind", "train") == kind]
        ys = charts.smoothed([number(record.get("loss")) for record in records], window)
        series.append(Series(found.names[place], f"run-{place % LOOKS}", tuple(map(_step, records)), ys, dots=kind == "eval"))
    return charts.curve(series, height=220, label=label, x_name="step")


def _step(record: Record) -> float:
    return number(record.get("step")) or 0.0


def _cell(arm: Any) -> str:
    if arm is None or arm.rate is None or arm.interval is None:
        return "–"
    return f"{100 * arm.rate:.1f} % [{100 * arm.interval.low:.1f}, {100 * arm.interval.high:.1f}] of {arm.items}"


def _pair(pairing: Pairing) -> PairView:
    d = pairing.difference
    plot = Markup("")
    if d is not None:
        plot = charts.difference_plot(d.mean, d.interval.low, d.interval.high, unseen=d.minimum_detectable, label=pairing.line)
    return PairView(pairing.line, pairing.arm, pairing.decision.replace(" ", "-"), plot)

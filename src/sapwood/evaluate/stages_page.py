"""The page of `sapwood reason`: what is known of each stage in, one HTML file out that loads nothing from anywhere.

In: what `stages.json` holds. Out: every state's accuracy with its interval, how long its answers are, and a way to the page of each stage.
Left out on purpose: curves and answers. They stand on the page of the stage that made them, beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.study_text import interval, percent
from sapwood.pages import Pages
from sapwood.run import write_atomic

Record = dict[str, Any]


@dataclass(frozen=True)
class StageRow:
    """One state of the model, as the page draws it."""

    name: str
    line: str
    """Its verdict; empty for the base model."""
    page: str
    """Address of its own page from this one, or empty."""
    rates: list[tuple[Record, Markup]]
    """(mean, low, high; its bar), in the order of the columns; empty where nothing was measured."""
    tokens: float | None
    takes_back: float | None
    """Share of the samples that take themselves back."""
    unjudged: int


def write_stages(path: Path, stages: Mapping[str, Record], planned: int) -> None:
    """Write the page of the stages that are finished, of so many `planned`. Raises `StorageError` where it cannot be written."""
    figures = next((list(rates) for one in stages.values() if (rates := _rates(one))), [])
    rows = [_row(name, one, figures, path.parent) for name, one in stages.items()]
    finished = sum(name != "base" for name in stages)
    name = path.parent.name
    page = _PAGES.render(
        "stages.html", styles=("page.css", "study.css"), name=name, figures=figures, rows=rows, finished=finished, planned=planned
    )
    write_atomic(path, page.encode("utf-8", "replace"))


def _row(name: str, one: Record, figures: list[str], folder: Path) -> StageRow:
    measured, rates = one.get("measured") or {}, _rates(one)
    page = f"{name}/report.html"
    return StageRow(
        name=name,
        line=one.get("line", ""),
        page=page if (folder / page).is_file() else "",
        rates=[(rates[key], charts.bar(rates[key]["mean"], rates[key]["low"], rates[key]["high"], 1.0)) for key in figures if key in rates],
        tokens=measured.get("tokens"),
        takes_back=measured.get("self_corrections"),
        unjudged=measured.get("unjudged", 0),
    )


def _rates(one: Record) -> dict[str, Record]:
    """The accuracies of a stage by their names: whatever has an interval."""
    return {key: value for key, value in (one.get("measured") or {}).items() if isinstance(value, dict)}


_PAGES = Pages("evaluate/report_page", percent=percent, interval=interval, plain=charts.plain)

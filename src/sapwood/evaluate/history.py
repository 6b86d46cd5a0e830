"""What a series of runs has come to: run directories in, a line for each run with scores out, each against the one before it.

Runs are in order of time. Of each the arm counts that it was about (what was tuned, or the one model that was asked), and the run before
it is the last that was asked at least `FEWEST` of the same questions: only then the two are compared, item by item. Left out on purpose:
a curve through rates of different questions; what was measured on other items is another number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.experiment import ArmScore, over_samples, scores_from
from sapwood.evaluate.free import FREE_ARMS
from sapwood.evaluate.report_files import RunFiles, text_of
from sapwood.evaluate.study_text import percent, points
from sapwood.evaluate.verdict import ArmResult, arm_result, difference_record, paired_scores
from sapwood.pages import Pages
from sapwood.run import write_atomic
from sapwood.stats import Difference

FEWEST = 20
"""Questions that two runs must share before they are compared."""


@dataclass(frozen=True)
class Entry:
    """One run in the series."""

    name: str
    when: str
    kind: str
    arm: str
    result: ArmResult
    verdict: str
    """Of the run itself, in a few words."""
    before: str | None
    """The run that it is compared with."""
    change: Difference | None
    """This run's arm minus that of the run before, over the questions of both."""

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "name": self.name,
            "when": self.when,
            "kind": self.kind,
            "arm": self.arm,
            **self.result.to_dict(),
            "verdict": self.verdict,
            "before": self.before,
            "change": None if self.change is None else difference_record(self.change),
        }


@dataclass(frozen=True)
class Told:
    """A run as its folder tells it."""

    files: RunFiles
    when: str
    kind: str
    verdict: str


def history(runs: Sequence[Told]) -> list[Entry]:
    """The series, oldest first; runs without scores are not in it. `runs` are in order of time."""
    entries: list[Entry] = []
    seen: list[tuple[str, list[ArmScore]]] = []
    for run in runs:
        found = _about(run.files)
        if found is None:
            continue
        arm, scores = found
        items = {score.item for score in scores if score.value is not None}
        shared = ((name, theirs) for name, theirs in reversed(seen) if len(items & {one.item for one in theirs}) >= FEWEST)
        before, theirs = next(shared, (None, []))
        change = paired_scores(theirs, scores) if before is not None else None
        entries.append(Entry(run.files.path.name, run.when, run.kind, arm, arm_result(scores), run.verdict, before, change))
        seen.append((run.files.path.name, scores))
    return entries


def _about(files: RunFiles) -> tuple[str, list[ArmScore]] | None:
    """(the arm that a run was about, its scores): what its verdict judges, else the last arm that a model answered."""
    by_arm: dict[str, list[ArmScore]] = {}
    for score in over_samples(scores_from(files.scores)):
        by_arm.setdefault(score.arm, []).append(score)
    judged = text_of(files.verdict.get("tuned"))
    answered = [arm for arm in by_arm if arm not in FREE_ARMS]
    arm = judged if judged in by_arm else answered[-1] if answered else None
    return None if arm is None else (arm, by_arm[arm])


def write_history(path: Path, folder: str, entries: Sequence[Entry]) -> None:
    """Write the page, whole or not at all. Raises `StorageError` where it cannot be written."""
    rows = [(entry, entry.to_dict(), _plot(entry)) for entry in reversed(entries)]
    top = max((row["high"] or 0.0 for _, row, _ in rows), default=0.0) or 1.0
    bars = [charts.bar(row["rate"], row["low"], row["high"], top) if row["rate"] is not None else Markup("") for _, row, _ in rows]
    page = _PAGES.render("history.html", styles=("page.css", "study.css"), folder=folder, rows=list(zip(rows, bars, strict=True)))
    write_atomic(path, page.encode("utf-8", "replace"))


def _plot(entry: Entry) -> Markup:
    d = entry.change
    if d is None:
        return Markup("")
    label = f"{entry.name} against {entry.before}: {points(difference_record(d))} points"
    return charts.difference_plot(d.mean, d.interval.low, d.interval.high, unseen=d.minimum_detectable, label=label)


def _interval(found: dict[str, Any]) -> str:
    return "–" if found["low"] is None else f"{100 * found['low']:.1f} – {100 * found['high']:.1f} %"


_PAGES = Pages("evaluate/report_page", percent=percent, points=points, interval=_interval)

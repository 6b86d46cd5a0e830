"""The report of a run: a run directory in, one self-contained HTML file out.

The page reads nothing but files of the run directory, asks the network for nothing, and says what is missing.
What it states was computed elsewhere (`evaluate.verdict`); it computes no statistics of its own and never calls a
model better without an interval. Model outputs are hostile text: Jinja escapes all of them, and the page's script
only ever makes text nodes. Left out on purpose: checkpoints, a server, comparing runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sapwood.evaluate.charts import plain, signed
from sapwood.evaluate.report_costs import costs_view
from sapwood.evaluate.report_decision import as_verdict, decision_view
from sapwood.evaluate.report_files import RunFiles, flat, mapping, read_run
from sapwood.evaluate.report_items import items_view
from sapwood.evaluate.report_learning import shown_of
from sapwood.evaluate.report_samples import samples_view
from sapwood.evaluate.report_sections import ledger_view, skill_view, training_view
from sapwood.evaluate.report_verdict import VerdictView, arms_view, verdict_view
from sapwood.pages import Pages
from sapwood.run import write_atomic

PAGE_NAME = "report.html"


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run directory, whole or not at all, and return its path.

    Reads config.yaml (the one file that must be there), verdict.json, decision.json, costs.json, scores.jsonl, items.jsonl, metrics.jsonl,
    samples.jsonl, rollouts.jsonl, preflight.json, ledger.jsonl, people.json, environment.json and the names in adapter/. Raises
    `DataError` if the folder is no run, `StorageError` if it cannot be written.
    """
    path = run_folder / PAGE_NAME
    write_atomic(path, render_page(read_run(run_folder)).encode("utf-8", "replace"))
    return path


def html_fragment(run_folder: Path) -> str:
    """Verdict (or decision) and arms as a few lines of HTML with inline styles, for a notebook's `_repr_html_`.

    No script, no style sheet, no SVG: what a notebook viewer strips is not in it. Raises `DataError` like `write_report`.
    """
    files = read_run(run_folder)
    decision = decision_view(files)
    if decision is not None:
        files = dataclasses.replace(files, verdict=as_verdict(files))
    verdict = verdict_view(files)
    if decision is not None:
        verdict = VerdictView(decision.kind, decision.word, decision.text, verdict.tuned, verdict.other, None, [])
    return PAGES.render("fragment.html", verdict=verdict, arms=arms_view(files), name=_name(files))


def render_page(files: RunFiles) -> str:
    """The whole page of a run that has been read."""
    if files.learns_by is not None:
        return PAGES.render("learning.html", styles=("page.css", "learning.css"), **shown_of(files))
    decision = decision_view(files)
    if decision is not None:
        files = dataclasses.replace(files, verdict=as_verdict(files))
    verdict, arms = verdict_view(files), arms_view(files)
    return PAGES.render(
        "page.html",
        script="page.js",
        name=_name(files),
        decision=decision,
        costs=costs_view(files.decision or files.costs),
        verdict=verdict,
        arms=arms,
        people=files.people,
        items=items_view(files, [arm.name for arm in arms.rows], verdict.tuned, verdict.other),
        training=training_view(files.metrics, files.samples, files.verdict),
        skill=skill_view(mapping(files.verdict.get("bits_per_token"))),
        samples=samples_view(files.samples),
        ledger=ledger_view(files.ledger),
        settings=flat(files.config),
        environment=[(key, value) for key, value in flat(files.environment) if key != "schema"],
        adapter=files.adapter,
        notices=files.notices,
    )


def _name(files: RunFiles) -> str:
    return files.path.resolve().name


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _bytes(count: int) -> str:
    size: float = count
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


PAGES = Pages("evaluate/report_page", signed=signed, plain=plain, percent=_percent, bytes=_bytes)
"""The pages of this room: the report, its fragment for notebooks, and runs side by side."""

"""The lower half of a report: metrics, ledger and skill records in, what the page shows of them out.

Numbers are shown as recorded. Long lists are cut for the page, and the view says by how many.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.charts import Series
from sapwood.evaluate.curves import CurveFinding, read_curves
from sapwood.evaluate.report_files import Record, mapping, number, text_of

SMOOTH_FROM = 40
"""Steps from which on the training loss also gets a running mean."""
DISTRUST = " Trust no number on this page until that is explained."
MOST_REFUSED = 500
"""Rows that the page itself lists; the rest is counted and named."""


@dataclass(frozen=True)
class TrainingView:
    """Charts and numbers of the training log. Empty markup where nothing was recorded."""

    steps: int
    loss: Markup
    rate: Markup
    speed: Markup
    smoothing: int
    """Steps of the running mean; 0 where there is none."""
    facts: list[tuple[str, str]]
    table: list[tuple[str, str, str]]
    """(step, training loss, held-out loss) where the held-out loss was measured."""
    gaps: int
    """Training steps whose loss is not a finite number."""
    findings: list[CurveFinding]
    """What the curves show, alarms first."""


@dataclass(frozen=True)
class SkillRow:
    """Bits per token of one text before and after; lower is better."""

    name: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    change: tuple[float, float, float] | None
    """After minus before, paired, where it was measured."""
    plot: Markup


@dataclass(frozen=True)
class SkillView:
    """Texts on one axis. `unreadable` names those without a before or an after."""

    rows: list[SkillRow]
    axis: Markup
    statements: list[str]
    """What the measurement itself says about its meaning, each once."""
    unreadable: list[str]


@dataclass(frozen=True)
class LedgerView:
    """Counts of the ledger. `complaint` is not empty where they do not add up."""

    total: int
    parts: list[tuple[str, str, int, float]]
    """(css class, words, rows, per cent of all rows)"""
    reasons: list[tuple[str, int]]
    refused: list[tuple[str, str, str]]
    """(file:line, reason, what to do)"""
    left_out: int
    tokens: list[tuple[str, str]]
    complaint: str


def training_view(metrics: list[Record], samples: list[Record], verdict: Record) -> TrainingView | None:
    """Curves of metrics.jsonl (records as `step_records` gives them) and what they show, or None if it holds no step."""
    train = [record for record in metrics if record.get("kind", "train") == "train"]
    evals = [record for record in metrics if record.get("kind") == "eval"]
    if not train and not evals:
        return None
    steps, losses = _column(train, "step"), _measured(train, "loss")
    window = (max(5, len(train) // 20) | 1) if len(train) >= SMOOTH_FROM else 0
    lines = [Series("training loss", "faint" if window else "ink", steps, losses)]
    if window:
        lines.append(Series("running mean", "ink", steps, charts.smoothed(losses, window)))
    lines.append(Series("held-out loss", "accent", _column(evals, "step"), _measured(evals, "loss"), dots=True))
    rates = Series("learning rate", "ink", steps, _measured(train, "lr"))
    speeds = [
        Series("row tokens", "ink", steps, _measured(train, "row_tokens_per_second")),
        Series("distinct tokens", "accent", steps, _measured(train, "unique_tokens_per_second")),
    ]
    span = (*steps, *_column(evals, "step"))
    return TrainingView(
        steps=len(train),
        loss=charts.curve(lines, height=260, label="Loss per token over training steps", x_name="step", over=span),
        rate=charts.curve([rates], height=64, label="Learning rate over training steps", x_name="step", over=span, from_zero=True),
        speed=charts.curve(speeds, height=120, label="Tokens per second over training steps", x_name="step", over=span, from_zero=True),
        smoothing=window,
        facts=_training_facts(train, evals) + _choice([record for record in metrics if record.get("kind") == "chosen"]),
        table=_loss_table(train, evals),
        gaps=sum(loss is None for loss in losses),
        findings=read_curves(metrics, samples=samples, verdict=verdict),
    )


def skill_view(bits: Record) -> SkillView:
    """Rows of the general skill check, in the order of verdict.json."""
    spans = {name: [_span(mapping(mapping(entry).get(side))) for side in ("before", "after")] for name, entry in bits.items()}
    whole = {name: (before, after) for name, (before, after) in spans.items() if before and after}
    if not whole:
        return SkillView([], Markup(""), [], list(spans))
    scale = charts.scale_over([value for pair in whole.values() for span in pair for value in span])
    rows = [
        SkillRow(name, before, after, _span(mapping(mapping(bits[name]).get("change"))), charts.span_pair(before, after, scale))
        for name, (before, after) in whole.items()
    ]
    statements = dict.fromkeys(text_of(mapping(bits[name]).get("statement")) for name in whole)
    return SkillView(rows, charts.axis(scale), list(filter(None, statements)), [name for name in spans if name not in whole])


def ledger_view(records: list[Record]) -> LedgerView | None:
    """Where every input row went, or None without a ledger. Complains where rows in are not rows out."""
    if not records:
        return None
    rows = [record for record in records if record.get("kind") != "summary"]
    summary: Record = next((record for record in reversed(records) if record.get("kind") == "summary"), {})
    counted = Counter(text_of(record.get("status")) for record in rows)
    counts = {
        name: int(number(summary.get(name)) or counted[name]) if not rows else counted[name] for name in ("trained", "held_out", "refused")
    }
    total = int(number(summary.get("rows_in")) or len(rows))
    complaint = ""
    if sum(counts.values()) != total:
        complaint = f"The ledger does not add up: {total:,} rows in, {sum(counts.values()):,} accounted for.{DISTRUST}"
    elif any((said := number(summary.get(name))) is not None and said != counts[name] for name in counts):
        complaint = f"The ledger's summary does not agree with its own rows.{DISTRUST}"
    refused = [(_place(row), text_of(row.get("reason")), text_of(row.get("fix"))) for row in rows if row.get("status") == "refused"]
    words = {"trained": "trained on", "held_out": "held out", "refused": "refused"}
    known = {"schema", "kind", "rows_in", *counts}
    return LedgerView(
        total=total,
        parts=[(name.replace("_", "-"), words[name], counts[name], 100 * counts[name] / max(1, total)) for name in counts],
        reasons=Counter(reason for _, reason, _ in refused).most_common(12),
        refused=refused[:MOST_REFUSED],
        left_out=max(0, len(refused) - MOST_REFUSED),
        tokens=[
            (key.replace("_", " "), charts.plain(value, 0))
            for key in summary
            if key not in known and (value := number(summary[key])) is not None
        ],
        complaint=complaint,
    )


def _training_facts(train: list[Record], evals: list[Record]) -> list[tuple[str, str]]:
    facts = [("Steps", f"{len(train):,}")]
    losses = [value for value in _measured(evals, "loss") if value is not None]
    if losses:
        facts.append(
            (
                "Held-out loss",
                f"{charts.plain(losses[0], 3)} → {charts.plain(losses[-1], 3)}" if len(losses) > 1 else charts.plain(losses[0], 3),
            )
        )
    for key, words, unit in (
        ("row_tokens_per_second", "Row tokens a second", ""),
        ("unique_tokens_per_second", "Distinct tokens a second", ""),
        ("saved", "Saved by sharing", " %"),
    ):
        values = sorted(value for value in _measured(train, key) if value is not None)
        if values:
            middle = values[len(values) // 2]
            facts.append((words, f"{100 * middle:.0f}{unit}" if unit else charts.plain(middle, 0)))
    seconds = [value for value in _measured(train, "seconds") if value is not None]
    if seconds:
        total = sum(seconds)
        facts.append(
            ("Time in steps", f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h")
        )
    return facts


def _choice(chosen: list[Record]) -> list[tuple[str, str]]:
    """Which state the result is, where held-out losses chose it."""
    if not chosen:
        return []
    return [("The result is the state of", f"step {text_of(chosen[-1].get('chosen'))} of {text_of(chosen[-1].get('step'))}")]


def _loss_table(train: list[Record], evals: list[Record]) -> list[tuple[str, str, str]]:
    by_step = {record.get("step"): number(record.get("loss")) for record in train}
    rows = []
    for record in evals:
        mine, held_out = by_step.get(record.get("step")), number(record.get("loss"))
        shown = [charts.plain(value, 4) if value is not None else "–" for value in (mine, held_out)]
        rows.append((text_of(record.get("step")), shown[0], shown[1]))
    return rows


def _column(records: list[Record], key: str) -> tuple[float, ...]:
    return tuple(number(record.get(key)) or 0.0 for record in records)


def _measured(records: list[Record], key: str) -> tuple[float | None, ...]:
    return tuple(number(record.get(key)) for record in records)


def _span(record: Record) -> tuple[float, float, float] | None:
    mean = number(record.get("mean"))
    if mean is None:
        return None
    low, high = number(record.get("low")), number(record.get("high"))
    return mean, mean if low is None else low, mean if high is None else high


def _place(row: Record) -> str:
    if row.get("file") is None:
        return "made in code"
    return f"{text_of(row['file'])}:{text_of(row.get('line')) or '?'}"

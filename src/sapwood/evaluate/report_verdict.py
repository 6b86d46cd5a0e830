"""The top of a report: verdict.json in, the decision in words and the arms in order out.

Tolerant of absent keys, strict about one thing: "better" is only said where the difference has an interval that
lies above zero. Left out on purpose: any statistics of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.free import FREE_ARMS
from sapwood.evaluate.report_files import Record, RunFiles, mapping, number, text_of

WORDS = {"better": "Better", "worse": "Worse", "not shown": "Not shown"}


@dataclass(frozen=True)
class Difference:
    """Tuned minus the best other arm, as shares (0.31 is 31 points), with what it rests on."""

    mean: float
    low: float
    high: float
    level: float
    digits: int
    """Decimals that the interval deserves, in points."""
    unseen: float | None
    """The minimum detectable difference: smaller true ones would usually be missed."""
    counts: list[tuple[str, int]]
    plot: Markup
    caption: str


@dataclass(frozen=True)
class VerdictView:
    """The decision as the page says it. `kind` is better, worse, not-shown or none."""

    kind: str
    word: str
    line: str
    tuned: str
    other: str | None
    difference: Difference | None
    caveats: list[str]
    facts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Arm:
    """One arm as a bar. `rate`, `low`, `high` are shares; `digits` the decimals of their per cents."""

    name: str
    rate: float
    low: float | None
    high: float | None
    count: str
    tuned: bool
    free: bool
    digits: int
    share: float
    """Of the axis, in per cent."""
    bar: Markup


@dataclass(frozen=True)
class ArmsView:
    """Arms from best to worst. `unreadable` names those without a rate; `top` is the end of the axis."""

    rows: list[Arm]
    unreadable: list[str]
    top: float


def verdict_view(files: RunFiles) -> VerdictView:
    """What verdict.json says, or that there is none."""
    verdict = files.verdict
    tuned, other = _sides(files)
    if not verdict:
        line = "This run has no verdict yet: nothing in its folder says whether tuning helped."
        return VerdictView("none", "No verdict", line, tuned, other, None, [])
    difference = _difference(mapping(verdict.get("difference")), tuned, other or "the best other arm")
    caveats = [text_of(caveat) for caveat in verdict.get("caveats") or []] if isinstance(verdict.get("caveats"), list) else []
    decision = text_of(verdict.get("decision")).strip().lower()
    line = text_of(verdict.get("line")) or "verdict.json gives no sentence."
    if decision == "better" and (difference is None or difference.low <= 0):
        found = "gives no interval for the difference" if difference is None else "its interval includes zero"
        caveats.insert(0, f"verdict.json says “better”, but {found}; without an interval above zero, better is not shown.")
        decision = "not shown"
    if decision not in WORDS:
        caveats.insert(0, f"verdict.json holds no known decision (found {decision or 'none'!r}; known: {', '.join(WORDS)}).")
        return VerdictView("none", "No verdict", line, tuned, other, difference, caveats, _facts(verdict))
    return VerdictView(decision.replace(" ", "-"), WORDS[decision], line, tuned, other, difference, caveats, _facts(verdict))


def arms_view(files: RunFiles) -> ArmsView:
    """The arms of verdict.json, best first; the tuned one first among equals."""
    arms = mapping(files.verdict.get("arms"))
    tuned, _ = _sides(files)
    rates = {name: number(mapping(arm).get("rate")) for name, arm in arms.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    ends = [number(mapping(arms[name]).get("high")) or rate for name, rate in known.items()]
    top = 1.0 if not ends or max(ends) > 0.6 else charts.scale_over([0.0, *ends, 0.05]).high
    names = sorted(known, key=lambda name: (-known[name], name != tuned))
    widths = [
        high - low
        for name in names
        if (high := number(mapping(arms[name]).get("high"))) and (low := number(mapping(arms[name]).get("low"))) is not None
    ]
    digits = 1 if widths and sorted(widths)[len(widths) // 2] < 0.04 else 0
    rows = [_arm(name, known[name], mapping(arms[name]), name == tuned, digits, top) for name in names]
    return ArmsView(rows, [name for name in rates if name not in known], top)


def _sides(files: RunFiles) -> tuple[str, str | None]:
    """Names of the tuned arm and of the one it is compared with: the verdict's, else read from the scores."""
    tuned = text_of(files.verdict.get("tuned")) or "tuned"
    if files.verdict.get("best_other"):
        return tuned, text_of(files.verdict["best_other"])
    totals: dict[str, list[float]] = {}
    for record in files.scores:
        if (value := number(record.get("value"))) is not None and record.get("arm") != tuned:
            totals.setdefault(str(record.get("arm")), []).append(value)
    return tuned, max(totals, key=lambda arm: sum(totals[arm]) / len(totals[arm]), default=None)


def _difference(record: Record, tuned: str, other: str) -> Difference | None:
    mean, low, high = (number(record.get(key)) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    level = number(record.get("level")) or 0.95
    digits = 0 if high - low >= 0.1 else 1
    unseen = number(record.get("minimum_detectable"))
    items, clusters = number(record.get("n")), number(record.get("clusters"))
    over = f" over {items:,.0f} items" if items else ""
    over += f" in {clusters:,.0f} clusters" if clusters and clusters != items else ""
    caption = f"{_capital(tuned)} minus {other}, in points, with its {100 * level:.0f} % interval{over} of one training run."
    if unseen:
        caption += f" Shaded: true differences, up to {100 * unseen:.{digits}f} points, that a comparison of this size would usually miss."
    estimate, least, most = (charts.signed(100 * value, digits) for value in (mean, low, high))
    label = f"{estimate} points, {100 * level:.0f} % interval {least} to {most}"
    counts = [(word, int(count)) for key, word in COUNTED if (count := number(record.get(key))) is not None]
    plot = charts.difference_plot(mean, low, high, unseen=unseen, label=label)
    return Difference(mean, low, high, level, digits, unseen, counts, plot, caption)


COUNTED = (("wins", "got better"), ("losses", "got worse"), ("ties", "unchanged"))


def _arm(name: str, rate: float, record: Record, tuned: bool, digits: int, top: float) -> Arm:
    low, high = number(record.get("low")), number(record.get("high"))
    if low is None or high is None:
        low = high = None
    right, asked, unscored = (number(record.get(key)) for key in ("right", "n", "unscored"))
    count = (
        f"{charts.plain(right)} of {charts.plain(asked)}"
        if right is not None and asked is not None
        else f"{asked:,.0f} items"
        if asked is not None
        else ""
    )
    count += f" · {unscored:,.0f} not scored" if unscored else ""
    free = name in FREE_ARMS
    return Arm(name, rate, low, high, count, tuned, free, digits, 100 * min(1.0, max(0.0, rate / top)), charts.bar(rate, low, high, top))


def _facts(verdict: Record) -> list[tuple[str, str]]:
    difference, facts = mapping(verdict.get("difference")), list[tuple[str, str]]()
    if verdict.get("scorer"):
        facts.append(("Scored by", text_of(verdict["scorer"])))
    if difference.get("method"):
        facts.append(("Interval by", text_of(difference["method"])))
    if (p_value := number(difference.get("p_value"))) is not None:
        facts.append(("p-value", "below 0.001" if p_value < 0.001 else f"{p_value:.3f}"))
    if difference.get("note"):
        facts.append(("Note", text_of(difference["note"])))
    return facts


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

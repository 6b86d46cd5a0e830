"""What held-out pairs or votes say of preference tuning: how often the model prefers what people preferred, with an interval.

In: evaluations of metrics.jsonl. Out: a verdict in the form of verdict.json. Before step 1 the model is its own reference, so every pair is
a tie and the rate 50 %: chance is what it is compared with, and `difference` is the rate above it.
Left out on purpose: a verdict from the loss, which falls as well where both answers become less likely.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sapwood.stats import Interval, rate_interval

CHANCE = 0.5
AFTER, OTHER = "after", "chance"


@dataclass(frozen=True)
class PreferenceVerdict:
    """The decision and what it rests on."""

    decision: Literal["better", "worse", "not shown"]
    line: str
    step: int
    rate: float | None = None
    interval: Interval | None = None
    pairs: int = 0
    before: Mapping[str, Any] | None = None
    """The record of the evaluation before step 1."""
    after: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of verdict.json."""
        found: dict[str, Any] = {"decision": self.decision, "line": self.line, "step": self.step}
        found |= {"before": _judged(self.before), "after": _judged(self.after)}
        if self.rate is None or self.interval is None:
            return {**found, "difference": None}
        low, high = self.interval.low, self.interval.high
        shifted = {"mean": self.rate - CHANCE, "low": low - CHANCE, "high": high - CHANCE, "level": self.interval.level, "n": self.pairs}
        arm = {"rate": self.rate, "low": low, "high": high, "n": self.pairs}
        return {
            **found,
            "tuned": AFTER,
            "best_other": OTHER,
            "difference": {**shifted, "method": self.interval.method},
            "arms": {AFTER: arm, OTHER: {"rate": CHANCE, "low": None, "high": None, "n": None}},
        }


def evaluations(records: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Evaluations of held-out pairs or votes, by step."""
    return {record["step"]: record for record in records if record.get("kind") == "eval" and "pairs" in record}


def preference_verdict(seen: Mapping[int, Mapping[str, Any]], steps: int, *, votes: bool) -> PreferenceVerdict:
    """The verdict of a run of `steps` steps; of the last evaluation so far where the end was not reached."""
    last = max((step for step in seen if step <= steps), default=0)
    if not seen:
        line = "Trained. Nothing was held out, so nothing is said about whether it helped."
        return PreferenceVerdict("not shown", line, steps)
    before, after = seen.get(0), seen.get(last)
    if after is None or last == 0:
        line = f"Not evaluated since the beginning of {steps} steps, so nothing is said about whether it helped."
        return PreferenceVerdict("not shown", line, 0, before=before)
    pairs, accuracy = int(after["pairs"]), float(after["accuracy"])
    interval = rate_interval(accuracy * pairs, pairs)
    what = "votes shared" if votes else "pairs preferred as people did"
    rate = f"{accuracy:.0%} [{100 * interval.low:.0f}, {100 * interval.high:.0f}] of {pairs} held-out {what}"
    decision: Literal["better", "worse", "not shown"] = "not shown"
    line = f"Not shown: {rate}, where 50 % is chance. Train longer, or hold out more pairs."
    if interval.low > CHANCE:
        decision, line = "better", f"It learned to prefer: {rate}, where 50 % is chance."
    elif interval.high < CHANCE:
        line = f"It learned the opposite: {rate}, where 50 % is chance. Look whether chosen and rejected were swapped."
        decision = "worse"
    if last < steps:
        line = f"So far, at step {last} of {steps}: {rate}, where 50 % is chance."
    return PreferenceVerdict(decision, line, last, accuracy, interval, pairs, before, after)


def _judged(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    names = ("loss", "accuracy", "accuracy_low", "accuracy_high", "pairs", "margin")
    return None if record is None else {name: record.get(name) for name in names}

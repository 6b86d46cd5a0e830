"""What held-out prompts say of reinforcement learning: greedy answers before and after, and the interval of their paired difference.

In: what the first reward made of each held-out prompt, by the step at which it was asked. Out: a verdict in the form of verdict.json,
whose arms are `before` and `after`. A run that was stopped is judged by its last evaluation, and says at which step that was.
Left out on purpose: a verdict from the sampled answers of training. Their prompts change from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sapwood.evaluate.verdict import difference_record
from sapwood.stats import Difference, mean_interval, paired_difference

BEFORE, AFTER = "before", "after"
NOTHING = "Nothing was held out, so nothing is said about whether it helped."
Values = Sequence[float | None]


@dataclass(frozen=True)
class RewardVerdict:
    """The decision and what it rests on."""

    decision: Literal["better", "worse", "not shown"]
    line: str
    step: int
    """At which `after` was asked."""
    difference: Difference | None = None
    """None where nothing could be compared."""
    bounded: bool = True
    """Whether all rewards lie in 0..1, so that means are shares."""
    arms: Mapping[str, Mapping[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of verdict.json. A difference of rewards beyond 0..1 is called `change`: it is not in points."""
        found: dict[str, Any] = {"decision": self.decision, "line": self.line, "step": self.step}
        if self.difference is None:
            return {**found, "difference": None}
        key = "difference" if self.bounded else "change"
        return {**found, "tuned": AFTER, "best_other": BEFORE, key: difference_record(self.difference), "arms": dict(self.arms or {})}


def values_by_step(records: Iterable[Mapping[str, Any]]) -> dict[int, Values]:
    """What evaluations recorded, from metrics.jsonl; records that hold no values are of another kind and left out."""
    evals = (record for record in records if record.get("kind") == "eval")
    return {record["step"]: record["values"] for record in evals if isinstance(record.get("values"), list)}


def reward_verdict(seen: Mapping[int, Values], steps: int) -> RewardVerdict:
    """The verdict of a run of `steps` steps; of the last evaluation so far where the end was not reached."""
    last = max((step for step in seen if 0 < step <= steps), default=0)
    so_far = "Trained. " if last == steps else f"So far, at step {last} of {steps}: "
    if not seen:
        return RewardVerdict("not shown", f"Trained. {NOTHING}", steps)
    if 0 not in seen or last == 0:
        return RewardVerdict(
            "not shown", f"Not evaluated since the beginning of {steps} steps, so nothing is said about whether it helped.", 0
        )
    both = [(a, b) for a, b in zip(seen[0], seen[last], strict=True) if a is not None and b is not None]
    if not both:
        line = f"{so_far}No held-out answer could be judged both before and after, so nothing is said about whether it helped."
        return RewardVerdict("not shown", line, last)
    before, after = (np.array(side, dtype=float) for side in zip(*both, strict=True))
    bounded = bool(min(before.min(), after.min()) >= 0 and max(before.max(), after.max()) <= 1)
    found = paired_difference(before, after, bounded=bounded)
    low, high = found.interval.low, found.interval.high
    words = f"{before.mean():.3f} → {after.mean():.3f} on {len(both)} held-out prompts ({found.mean:+.3f} [{low:+.3f}, {high:+.3f}])"
    if bounded:
        words = (
            f"{before.mean():.1%} → {after.mean():.1%} of {len(both)} held-out prompts "
            f"({100 * found.mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}])"
        )
    decision: Literal["better", "worse", "not shown"] = "better" if low > 0 else "worse" if high < 0 else "not shown"
    line = f"{decision.capitalize()}: {words}."
    if last < steps:
        line = f"So far, at step {last} of {steps}: {words}."
    unjudged = len(seen[0]) - len(both)
    arms = {name: _arm(side, unjudged, bounded=bounded) for name, side in ((BEFORE, before), (AFTER, after))}
    return RewardVerdict(decision, line, last, found, bounded, arms)


def _arm(values: Any, unjudged: int, *, bounded: bool) -> dict[str, Any]:
    interval = mean_interval(values) if bounded else None
    return {
        "rate": float(values.mean()),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": len(values),
        "right": int((values >= 1).sum()) if bounded and np.isin(values, (0, 1)).all() else None,
        "unscored": unjudged,
    }

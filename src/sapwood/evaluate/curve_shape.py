"""The curves of a run as arrays: what `curves` reads its patterns from.

In: records of metrics.jsonl as `step_records` gives them. Out: arrays over training steps (S) and evaluations (K), windows,
and the noise that each curve has by itself.
Left out on purpose: records without a finite loss (a run stops before such an update), and any model of a curve's form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.stats import paired_difference

Floats = NDArray[np.float64]

MOST_WINDOWS = 8
"""Windows that a training curve is cut into: the first and the last are what the run began and ended with."""
LEAST_IN_WINDOW = 2


@dataclass(frozen=True, slots=True)
class Change:
    """Of the held-out loss from one evaluation to another, with an interval where the evaluations tell one."""

    mean: float
    low: float
    high: float
    known: bool
    """Whether the interval is one: a run of an older version, or one held-out row, has none."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of training steps."""

    first: float
    """Its first step, counted from 1."""
    last: float
    loss: float
    """The mean over its steps."""
    error: float
    """The standard error of that mean."""


@dataclass(frozen=True, eq=False)
class Curves:
    """S training steps, K evaluations on P fixed parts of the held-out rows."""

    step_S: Floats
    loss_S: Floats
    norm_S: Floats
    lr_S: Floats
    epoch_S: Floats
    """How often each row has been trained by then; nan where the records do not say."""
    step_K: Floats
    held_K: Floats
    parts_KP: Floats | None

    @property
    def best(self) -> int:
        """The evaluation with the lowest held-out loss, the first of equals."""
        return int(np.argmin(self.held_K))

    def learned_by(self, step: float) -> float:
        """The share of the run's learning that lies before a step: rates summed up to it, of all rates."""
        total = float(self.lr_S.sum())
        return float(self.lr_S[self.step_S <= step].sum()) / total if total > 0 else 0.0

    def epoch_at(self, step: float) -> float:
        """How often each row had been trained by a step; nan where the records do not say."""
        before = self.epoch_S[self.step_S <= step]
        return float(before[-1]) if len(before) else 0.0 if len(self.epoch_S) and math.isfinite(self.epoch_S[0]) else math.nan

    def change(self, before: int, after: int, level: float) -> Change:
        """The held-out loss of evaluation `after` minus that of `before`, paired over the parts."""
        mean = float(self.held_K[after] - self.held_K[before])
        if self.parts_KP is None or self.parts_KP.shape[1] < 2:
            return Change(mean, -math.inf, math.inf, False)
        interval = paired_difference(self.parts_KP[before], self.parts_KP[after], bounded=False, level=level).interval
        return Change(mean, interval.low, interval.high, True)

    def windows(self) -> list[Window]:
        """The training curve in up to eight windows of equal length, the last ones of the run complete."""
        count = min(MOST_WINDOWS, len(self.loss_S) // LEAST_IN_WINDOW)
        if count < 2:
            return []
        parts = np.array_split(np.arange(len(self.loss_S)), count)
        noise = self.noise()
        return [
            Window(float(self.step_S[p[0]]), float(self.step_S[p[-1]]), float(self.loss_S[p].mean()), noise / math.sqrt(len(p)))
            for p in parts
        ]

    def noise(self) -> float:
        """Standard deviation of a step's loss about its trend."""
        return _about_trend(self.loss_S)

    def relative_noise(self) -> float:
        """The same of its logarithm: of a loss as a share of itself, which compares stretches of different height."""
        return _about_trend(np.log(np.maximum(self.loss_S, 1e-8)))


def _about_trend(value_S: Floats) -> float:
    """Standard deviation from second differences, in which there is no slope and little bend."""
    if len(value_S) < 4:
        return math.inf
    bend = value_S[2:] - 2 * value_S[1:-1] + value_S[:-2]
    late = bend[len(bend) // 4 :]  # the sharp drop at the start is no noise
    return float(np.sqrt(np.mean(late**2) / 6))


def chosen_step(records: Iterable[Mapping[str, Any]]) -> int | None:
    """The step whose state is the result, where held-out losses chose one; None where it is the last step's."""
    chosen = [record.get("chosen") for record in records if record.get("kind") == "chosen"]
    return chosen[-1] if chosen and isinstance(chosen[-1], int) else None


def curves_from(records: Iterable[Mapping[str, Any]]) -> Curves:
    """The curves of a run's metrics; steps and evaluations without a finite loss are left out."""
    rows = [record for record in records if _finite(record.get("loss")) and _finite(record.get("step"))]
    train = [record for record in rows if record.get("kind", "train") == "train"]
    evals = [record for record in rows if record.get("kind") == "eval"]
    parts = [record.get("parts") for record in evals]
    whole = bool(parts) and all(isinstance(part, list) and len(part) == len(parts[0] or []) and all(map(_finite, part)) for part in parts)
    return Curves(
        step_S=_column(train, "step"),
        loss_S=_column(train, "loss"),
        norm_S=_column(train, "grad_norm"),
        lr_S=_column(train, "lr"),
        epoch_S=_column(train, "epoch"),
        step_K=_column(evals, "step"),
        held_K=_column(evals, "loss"),
        parts_KP=np.array(parts, dtype=np.float64) if whole else None,
    )


def _column(records: list[Mapping[str, Any]], key: str) -> Floats:
    return np.array([record[key] if _finite(record.get(key)) else math.nan for record in records], dtype=np.float64)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

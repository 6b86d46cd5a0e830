"""Win rates with the advantage of length taken out: what the judge would have said of two answers of equal length.

In: outcomes of pairs (1 the second system won, 0 lost, 0.5 a tie) and how much longer its answer was. Out: a `LengthControlled` rate.

logit P(win) = θ + φ·tanh(Δ / sd(Δ)), fitted by Newton's method with a weak ridge; the rate is P at Δ = 0 (length control of
AlpacaEval 2: Dubois et al. 2024, arXiv:2404.04475 §3, for one pair of systems, without its item difficulties). The interval is
Wald's on θ with the sandwich variance, which ties do not break. It assumes that length acts through this curve alone; where every
answer of one system is longer, quality and length cannot be told apart, and `overlap` says so.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from sapwood.errors import DataError
from sapwood.stats.rates import Interval, cluster_sums, t_quantile

RIDGE = 0.1
"""Weight of φ² in the fit, a tenth of an item's worth: it keeps φ finite where length alone tells all outcomes."""
FEWEST = 10
OVERLAP = 0.1
"""Share of pairs in which the usually shorter system is the longer one, below which length and quality are not told apart."""


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """Win rate of the second system."""

    rate: float
    interval: Interval
    raw: float
    """Wins and half of the ties, over all pairs."""
    slope: float
    """φ: above 0 the judge favours the longer answer."""
    overlap: bool
    """Whether both systems are the longer one often enough for the control to mean anything."""


def length_controlled(
    outcomes: ArrayLike, longer_by: ArrayLike, level: float = 0.95, *, clusters: Sequence[Hashable] | None = None
) -> LengthControlled:
    """`longer_by`: length of the second system's answer less that of the first, in any unit. Raises `DataError` for fewer than 10 pairs.

    Where pairs come in `clusters`, scores are summed within them for the sandwich, and clusters are what the quantile counts.
    """
    won, longer = np.asarray(outcomes, dtype=np.float64), np.asarray(longer_by, dtype=np.float64)
    if len(won) < FEWEST or len(won) != len(longer):
        raise DataError(f"A length-controlled rate needs at least {FEWEST} pairs; found {len(won)} outcomes and {len(longer)} lengths.")
    if not bool(np.all((won >= 0) & (won <= 1))) or not bool(np.all(np.isfinite(longer))):
        raise DataError("Outcomes lie in 0..1 (0.5 is a tie), and lengths are finite numbers.")
    spread = float(longer.std())
    design = np.stack([np.ones(len(won)), np.tanh(longer / spread) if spread > 0 else np.zeros(len(won))], axis=1)
    ridge = np.diag([0.01, RIDGE])
    weights = np.zeros(2)
    for _ in range(50):
        expected = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ (design * (expected * (1 - expected))[:, None]) + ridge
        step = np.linalg.solve(curvature, design.T @ (won - expected) - ridge @ weights)
        weights = weights + np.clip(step, -2, 2)
        if float(np.abs(step).max()) < 1e-10:
            break
    expected = 1 / (1 + np.exp(-design @ weights))
    curvature = design.T @ (design * (expected * (1 - expected))[:, None]) + ridge
    scores = design * (won - expected)[:, None]
    scores = np.stack([cluster_sums(column, clusters)[0] for column in scores.T], axis=1)
    bread, groups = np.linalg.inv(curvature), len(scores)
    error = math.sqrt(float((bread @ (scores.T @ scores) @ bread)[0, 0]) * groups / (groups - 2)) if groups > 2 else math.inf
    half = t_quantile(level, groups - 2) * error if groups > 2 else math.inf
    low, rate, high = (float(special.expit(value)) for value in (weights[0] - half, weights[0], weights[0] + half))
    shares = float((longer > 0).mean()), float((longer < 0).mean())
    return LengthControlled(
        rate=rate,
        interval=Interval(
            low, high, level, "length-controlled logistic, sandwich" + (f" over {groups} clusters" if groups < len(won) else "")
        ),
        raw=float(won.mean()),
        slope=float(weights[1]),
        overlap=spread == 0 or min(shares) >= OVERLAP,
    )

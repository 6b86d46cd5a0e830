"""Intervals of what has no formula: medians, ratios, dollars a right answer. Whole clusters are drawn again, never items out of them.

In: a statistic of rows, and the rows' clusters. Out: an `Interval`, corrected for bias and skew (BCa). It is as good as its clusters
are many: with fewer than about 20 it is too narrow, and the interval's method says of how many it is.
Left out on purpose: a bootstrap of means, for which `paired_difference` and `mean_interval` hold at smaller sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sapwood.errors import DataError
from sapwood.stats.rates import Interval

Statistic = Callable[[NDArray[np.int64]], float]
"""Of rows, given by their numbers, one as often as it was drawn. NaN where these rows have none (a ratio over 0)."""


def cluster_bootstrap(
    statistic: Statistic, clusters: Sequence[Hashable], level: float = 0.95, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """The BCa interval of `statistic` over rows whose clusters are drawn with replacement. Source: Efron (1987), eqs. 2.3 and 6.6.

    Draws without a value count as infinite, which widens the interval and never hides them. One cluster says nothing of how clusters
    vary: the interval is then all numbers. Raises `DataError` without rows, or where the rows as they are have no value.
    """
    if not clusters:
        raise DataError("A bootstrap needs at least one row.")
    members: dict[Hashable, list[int]] = {}
    for row, name in enumerate(clusters):
        members.setdefault(name, []).append(row)
    groups = [np.array(rows, dtype=np.int64) for rows in members.values()]
    estimate = statistic(np.arange(len(clusters)))
    if not math.isfinite(estimate):
        raise DataError("A bootstrap needs a statistic that the rows as they are have; this one is not a finite number.")
    method = f"cluster bootstrap (BCa) over {len(groups)}"
    if len(groups) == 1:
        return Interval(-math.inf, math.inf, level, method)
    rng = np.random.default_rng(seed)
    drawn = np.sort([_value(statistic, np.concatenate([groups[place] for place in rng.integers(len(groups), size=len(groups))]))
                     for _ in range(draws)])  # fmt: skip
    without = np.array([_value(statistic, np.concatenate(groups[:place] + groups[place + 1 :])) for place in range(len(groups))])
    tails = special.ndtri([0.5 - level / 2, 0.5 + level / 2])
    below = (float((drawn < estimate).sum()) + 0.5 * float((drawn == estimate).sum())) / draws
    bias = float(special.ndtri(min(max(below, 1 / draws), 1 - 1 / draws)))
    skew = _skew(without)
    shares = special.ndtr(bias + (bias + tails) / (1 - skew * (bias + tails)))
    low, high = (drawn[min(draws - 1, max(0, round(float(share) * (draws - 1))))] for share in shares)
    return Interval(float(low), float(high), level, method)


def _value(statistic: Statistic, rows: NDArray[np.int64]) -> float:
    value = statistic(rows)
    return math.inf if math.isnan(value) else value


def _skew(without: NDArray[np.float64]) -> float:
    """The acceleration, from leaving out one cluster at a time; 0 where that says nothing."""
    finite = without[np.isfinite(without)]
    apart = finite.mean() - finite if len(finite) else finite
    spread = float((apart**2).sum())
    return float((apart**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

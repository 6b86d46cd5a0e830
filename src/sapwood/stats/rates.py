"""Intervals of one rate, of one mean score in 0..1, and of one ratio of sums.

In: counts, or scores with the names of their clusters. Out: an `Interval`.
Left out on purpose: the interval "mean ± 2 standard errors" for rates. At a true rate of 0.97 and 50 items it covers
the truth 79 times in 100, not 95.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from sapwood.errors import DataError

Floats = NDArray[np.float64]

EDGE = 5
"""With fewer hits or misses than this, `rate_interval` is exact: there Wilson's interval covers as little as 84 %."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that holds the truth in about `level` of all repetitions, and the method that made it."""

    low: float
    high: float
    level: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(k: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a rate of k hits in n. Coverage is right on average over all rates, less at the edges.

    Raises `DataError` unless 0 <= k <= n, n > 0 and 0 < level < 1.
    """
    _check(k, n, level)
    z, rate = normal_quantile(level), k / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, middle - half)
    high = 1.0 if k == n else min(1.0, middle + half)
    return Interval(low, high, level, "Wilson")


def clopper_pearson(k: float, n: float, level: float = 0.95) -> Interval:
    """The exact interval of Clopper and Pearson (1934): never covers less than `level`, so it is somewhat wide.

    Raises `DataError` unless 0 <= k <= n, n > 0 and 0 < level < 1.
    """
    _check(k, n, level)
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail))
    return Interval(low, high, level, "Clopper–Pearson")


def rate_interval(k: float, n: float, level: float = 0.95) -> Interval:
    """The default interval of a rate: exact with fewer than 5 hits or misses, Wilson's elsewhere.

    Wilson alone falls to 84–86 % near 0 and 1, the exact one alone is too wide in the middle. Enumerated for all rates
    and 10 to 300 items, this choice covers at least 92 %, and 95 to 98 % on average.
    """
    return clopper_pearson(k, n, level) if min(k, n - k) < EDGE else wilson(k, n, level)


def mean_interval(scores: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Interval of the mean of scores in 0..1, right or wrong ones included.

    Where items come in clusters, or scores lie between 0 and 1, the rate interval is taken at the number of independent
    right-or-wrong items that would be as uncertain (Korn and Graubard 1998, without their correction of the degrees of
    freedom), at most the number of items. Where all scores are equal, that is the number of clusters.
    Raises `DataError` for no scores, or scores outside of 0..1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) == 0 or not bool(np.all((values >= 0) & (values <= 1))):
        raise DataError(f"An interval of a mean score needs scores from 0 to 1 and at least one; found {len(values)} scores.")
    mean, count = float(values.mean()), len(values)
    if clusters is None and bool(np.all((values == 0) | (values == 1))):
        return rate_interval(float(values.sum()), count, level)
    sums_C, sizes_C = cluster_sums(values, clusters)
    number = len(sums_C)
    error = clustered_mean(sums_C, sizes_C)[1] if number > 1 else math.inf
    effective = min(float(count), mean * (1 - mean) / error**2) if error > 0 else float(number)
    effective = max(1.0, effective)  # less than one item's worth says nothing more than one item
    base = rate_interval(min(mean * effective, effective), effective, level)
    method = base.method if effective == count else f"{base.method} at {effective:.0f} effective items"
    return Interval(base.low, base.high, level, method)


def ratio_interval(
    sums: ArrayLike, counts: ArrayLike, level: float = 0.95, clusters: Sequence[Hashable] | None = None
) -> tuple[float, Interval]:
    """(ratio, interval) of sum(sums) / sum(counts), where each pair (bits and tokens of a text) is independent but for `clusters`.

    Linearised standard error with C/(C−1) and a t quantile with C−1 degrees of freedom, C pairs (Cochran 1977, §6).
    One pair alone gives an infinite interval. Raises `DataError` for no pairs or counts that are not positive.
    """
    sums_C, counts_C = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(sums_C) == 0 or len(sums_C) != len(counts_C) or not bool(np.all(counts_C > 0)):
        raise DataError(f"A ratio needs as many positive counts as sums; found {len(sums_C)} sums and {len(counts_C)} counts.")
    sums_C, counts_C = cluster_sums(sums_C, clusters)[0], cluster_sums(counts_C, clusters)[0]
    method = "t over clusters"
    if len(sums_C) == 1:
        return float(sums_C[0] / counts_C[0]), Interval(-math.inf, math.inf, level, method)
    ratio, error = clustered_mean(sums_C, counts_C)
    half = t_quantile(level, len(sums_C) - 1) * error
    return ratio, Interval(ratio - half, ratio + half, level, method)


def clustered_mean(sums_C: Floats, sizes_C: Floats) -> tuple[float, float]:
    """(mean, standard error) over all items, from each cluster's sum and size: sqrt(C/(C−1) Σ (sum_c − mean size_c)²) / n."""
    number, total = len(sums_C), float(sizes_C.sum())
    mean = float(sums_C.sum()) / total
    residual_C = sums_C - mean * sizes_C
    return mean, math.sqrt(number / (number - 1) * float(residual_C @ residual_C)) / total


def cluster_sums(values: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """(sum, size) of each cluster in order of first sight; without clusters each item is its own."""
    if clusters is None:
        return values, np.ones(len(values))
    if len(clusters) != len(values):
        raise DataError(f"There are {len(values)} scores but {len(clusters)} cluster names; give one name for each score.")
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(name, len(places)) for name in clusters], dtype=np.int64)
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def normal_quantile(level: float) -> float:
    """z such that a share `level` of a normal distribution lies within ±z."""
    return float(special.ndtri(0.5 + level / 2))


def t_quantile(level: float, freedom: float) -> float:
    """t such that a share `level` of Student's distribution lies within ±t."""
    return float(special.stdtrit(freedom, 0.5 + level / 2))


def _check(k: float, n: float, level: float) -> None:
    if not (n > 0 and 0 <= k <= n and 0 < level < 1):
        raise DataError(f"An interval of a rate needs 0 <= k <= n, n > 0 and 0 < level < 1; found k={k}, n={n}, level={level}.")

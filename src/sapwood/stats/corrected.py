"""What people would have said of all items, from a judge's word on all and people's word on some: prediction-powered inference.

In: judged values of the items that people did not see, judged and human values of those that they did. Out: a `Corrected` mean with an
interval. However biased the judge, the interval is about people's mean; a good judge makes it narrower, a useless one leaves it as
people's own. The labelled items must be a random sample of all: nothing here can notice when they are not.

θ̂ = λ·mean(f, unlabelled) + mean(y − λ·f, labelled) with λ = cov(y, f) / ((1 + m/N) var(f)), kept in 0..1 (PPI++ for the mean: Angelopoulos,
Duchi, Zrnic 2023, arXiv:2311.01453, §6; PPI: arXiv:2301.09633). The variance adds both parts; for few labels the quantile is Student's
with m − 1 degrees of freedom, and two imagined residuals of ±1 keep a labelled part that happens to agree from having no width. Where
items come in clusters, each part's deviations are summed by cluster first, m counts labelled clusters, and clusters with items in both
parts add their product.
Left out on purpose: other quantities than the mean, and unequal odds of being labelled.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sapwood.errors import DataError
from sapwood.stats.rates import Interval, t_quantile

FEWEST = 10
"""Labels below which no interval is given: the variance of so few is a guess."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """People's mean over all items, as estimated."""

    mean: float
    interval: Interval
    judge_alone: float
    """What the judge says over all items; its distance from `mean` is its bias."""
    people_alone: float
    """Mean of the labels."""
    trust: float
    """λ: 0 takes no word of the judge, 1 takes it in full."""
    labelled: int
    unlabelled: int


def corrected_mean(
    judged: ArrayLike,
    judged_labelled: ArrayLike,
    labels: ArrayLike,
    level: float = 0.95,
    *,
    clusters: Sequence[Hashable] | None = None,
    labelled_clusters: Sequence[Hashable] | None = None,
) -> Corrected:
    """PPI++ of scores in 0..1. `judged` are those of items without a label, and `clusters` theirs; both sides name clusters, or neither.

    Raises `DataError` for fewer than 10 labels, lengths that differ, no unlabelled item, or values outside of 0..1.
    """
    unlabelled_N, seen_M, label_M = (np.asarray(each, dtype=np.float64) for each in (judged, judged_labelled, labels))
    number, count = len(unlabelled_N), len(label_M)
    if len(seen_M) != count:
        raise DataError(f"There are {count} labels and {len(seen_M)} judged values of the same items; give one for each.")
    if count < FEWEST or number < 1:
        raise DataError(f"{count} labelled and {number} other items: a judge is corrected with at least {FEWEST} labels and 1 other item.")
    every = np.concatenate([unlabelled_N, seen_M, label_M])
    if not bool(np.all((every >= 0) & (every <= 1))):
        raise DataError("A judged value or a label lies outside of 0..1. Scale them first.")
    trust = _trust(seen_M, label_M, np.concatenate([unlabelled_N, seen_M]), count / number)
    residual_M = label_M - trust * seen_M
    mean = trust * float(unlabelled_N.mean()) + float(residual_M.mean())
    deviation_N = trust * (unlabelled_N - unlabelled_N.mean())
    variance, groups = _variance(trust, deviation_N, residual_M - residual_M.mean(), clusters, labelled_clusters)
    half = t_quantile(level, max(1, groups - 1)) * math.sqrt(variance)
    interval = Interval(
        max(0.0, mean - half),
        min(1.0, mean + half),
        level,
        f"PPI++ with {count} labels" + (f" in {groups} clusters" if groups < count else ""),
    )
    return Corrected(
        mean=min(1.0, max(0.0, mean)),
        interval=interval,
        judge_alone=float(np.concatenate([unlabelled_N, seen_M]).mean()),
        people_alone=float(label_M.mean()),
        trust=trust,
        labelled=count,
        unlabelled=number,
    )


def _variance(
    trust: float,
    deviation_N: NDArray[np.float64],
    residual_M: NDArray[np.float64],
    clusters: Sequence[Hashable] | None,
    labelled_clusters: Sequence[Hashable] | None,
) -> tuple[float, int]:
    """(variance of the estimate, labelled clusters), from the deviations of each item from its part's mean."""
    others = _sums(deviation_N, clusters, "item")
    labelled = _sums(residual_M, labelled_clusters, "label")
    number, groups = len(others), len(labelled)
    size = len(residual_M) / groups  # of an imagined cluster, whose residuals are all +1, or all −1
    share, padded = 1 / len(deviation_N), 1 / (len(residual_M) + 2 * size)
    of_others = number / (number - 1) if number > 1 else 0.0
    of_labelled = (groups + 2) / (groups + 1)
    first = share**2 * of_others * sum(value**2 for value in others.values()) if number > 1 else trust**2 * 0.25
    second = padded**2 * of_labelled * (sum(value**2 for value in labelled.values()) + 2 * size**2)
    together = sum(value * labelled[name] for name, value in others.items() if name in labelled)
    both = 2 * share * padded * math.sqrt(of_others * of_labelled) * together
    return max(0.0, first + second + both), groups


def _sums(values: NDArray[np.float64], clusters: Sequence[Hashable] | None, kind: str) -> dict[Hashable, float]:
    """Cluster → the sum of its values; without clusters each item is its own."""
    names: Sequence[Hashable] = [(kind, place) for place in range(len(values))] if clusters is None else clusters
    if len(names) != len(values):
        raise DataError(f"There are {len(values)} judged values but {len(names)} cluster names; give one name for each.")
    found: dict[Hashable, float] = {}
    for name, value in zip(names, values, strict=True):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def _trust(seen_M: NDArray[np.float64], label_M: NDArray[np.float64], all_judged: NDArray[np.float64], share: float) -> float:
    spread = float(all_judged.var(ddof=1))
    if spread == 0:
        return 0.0
    together = float(np.cov(seen_M, label_M)[0, 1])
    return min(1.0, max(0.0, together / ((1 + share) * spread)))

"""How far raters agree beyond chance.

In: what each rater said of each unit, gaps allowed. Out: Krippendorff's alpha for names, ranks or numbers, with an interval over units.
Left out on purpose: distances of one's own, and coefficients for two raters alone (alpha covers them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sapwood.stats.rates import Interval

Floats = NDArray[np.float64]
Scale = Literal["nominal", "ordinal", "interval"]

DRAWS = 2000
"""Resamples of the units that an interval rests on."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance gives, below 0 is worse than chance."""

    alpha: float | None
    """None where nothing can be said: no unit with two ratings, or one value alone in all of them."""
    interval: Interval | None
    units: int
    """Units with at least two ratings."""
    ratings: int
    raw: float | None
    """Share of pairs of ratings of one unit that are equal: what alpha corrects for chance."""


def krippendorff_alpha(ratings: Mapping[Any, Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha of nominal ratings: 1 is full agreement, 0 what chance gives.

    `ratings` holds for each unit what its raters said, one entry a rater who rated it. Units with fewer than two
    ratings cannot be compared and are left out. None where nothing can be said: no unit with two ratings, or one
    value alone in all of them. Source: Krippendorff (2011), "Computing Krippendorff's alpha-reliability", §C.
    """
    patterns_P, counts_P = _patterns(ratings, _values(ratings))
    return _alpha(np.tensordot(counts_P, patterns_P, axes=1), "nominal", None) if len(patterns_P) else None


def agreement_of(ratings: Mapping[Any, Sequence[Hashable]], scale: Scale = "nominal", level: float = 0.95, seed: int = 0) -> Agreement:
    """Alpha with a bootstrap interval over units (percentiles of `DRAWS` resamples; Krippendorff 2013, §12.3 resamples alike).

    On the scales `ordinal` and `interval` the ratings are numbers; distances are those of Krippendorff (2011), §E and §F.
    """
    values = _values(ratings)
    patterns_P, counts_P = _patterns(ratings, values)
    units = int(counts_P.sum())
    if units == 0:
        return Agreement(None, None, 0, 0, None)
    numbers = None if scale == "nominal" else np.array(values, dtype=np.float64)
    total_VV = np.tensordot(counts_P, patterns_P, axes=1)
    alpha = _alpha(total_VV, scale, numbers)
    raw = float(np.trace(total_VV) / total_VV.sum())
    told = round(float(total_VV.sum()))
    if alpha is None or units < 2:
        return Agreement(alpha, None, units, told, raw)
    drawn = np.random.default_rng(seed).multinomial(units, counts_P / units, size=DRAWS)
    resampled = np.tensordot(drawn.astype(np.float64), patterns_P, axes=(1, 0))
    alphas_D = _alphas(resampled, scale, numbers)
    found = alphas_D[np.isfinite(alphas_D)]
    if len(found) == 0:
        return Agreement(alpha, None, units, told, raw)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Agreement(alpha, Interval(float(low), float(high), level, f"bootstrap over {units} items"), units, told, raw)


def _values(ratings: Mapping[Any, Sequence[Hashable]]) -> list[Any]:
    """Every value that was given, numbers in order."""
    values: list[Any] = list(dict.fromkeys(value for given in ratings.values() if len(given) > 1 for value in given))
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def _patterns(ratings: Mapping[Any, Sequence[Hashable]], values: Sequence[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """(coincidences_PVV, count_P): units that were rated alike are one pattern, so that fifty thousand units cost what ten do."""
    place = {value: number for number, value in enumerate(values)}
    kinds = Counter(tuple(sorted(place[value] for value in given)) for given in ratings.values() if len(given) > 1)
    patterns = np.zeros((len(kinds), len(values), len(values)))
    for pattern_VV, kind in zip(patterns, kinds, strict=True):
        counts_V = np.bincount(kind, minlength=len(values)).astype(np.float64)
        pattern_VV += (np.outer(counts_V, counts_V) - np.diag(counts_V)) / (len(kind) - 1)
    return patterns, np.array(list(kinds.values()), dtype=np.int64)


def _alpha(coincidences_VV: Floats, scale: Scale, numbers_V: Floats | None) -> float | None:
    alpha = float(_alphas(coincidences_VV[None], scale, numbers_V)[0])
    return alpha if np.isfinite(alpha) else None


def _alphas(coincidences_DVV: Floats, scale: Scale, numbers_V: Floats | None) -> Floats:
    """Alpha of each table of coincidences; NaN where one value alone was given."""
    totals_DV = coincidences_DVV.sum(2)
    distance_DVV = _distances(scale, totals_DV, numbers_V)
    by_chance_D = np.einsum("dv,dvw,dw->d", totals_DV, distance_DVV, totals_DV)
    seen_D = (coincidences_DVV * distance_DVV).sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(by_chance_D > 0, 1 - (totals_DV.sum(1) - 1) * seen_D / by_chance_D, np.nan))


def _distances(scale: Scale, totals_DV: Floats, numbers_V: Floats | None) -> Floats:
    if scale == "nominal" or numbers_V is None:
        return np.broadcast_to(1 - np.eye(totals_DV.shape[1]), (*totals_DV.shape, totals_DV.shape[1]))
    # ranks: how many ratings lie between two values, half of both ends
    places_DV = np.cumsum(totals_DV, axis=1) - totals_DV / 2 if scale == "ordinal" else np.broadcast_to(numbers_V, totals_DV.shape)
    return np.asarray((places_DV[:, :, None] - places_DV[:, None, :]) ** 2)

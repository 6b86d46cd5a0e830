"""Before and after a study: how many items it takes, how many more, and whether something was lost.

In: a difference that was measured, or a difference to look for with what varies. Out: numbers of items, and one of three answers.
Left out on purpose: power after the fact for the effect that was seen, which says nothing that its interval does not.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy import special

from sapwood.errors import DataError
from sapwood.stats.paired import Difference
from sapwood.stats.rates import normal_quantile

Answer = Literal["held", "lost", "open"]

POWER_OF_A_DIFFERENCE = 0.8
"""With which `Difference.minimum_detectable` is found."""


def not_worse(difference: Difference, margin: float) -> Answer:
    """Non-inferiority: `held` where the interval of b − a lies above −margin, `lost` where below, else `open`.

    `held` is said wrongly in at most (1 − level) / 2 of all studies, and so is `lost`. Raises `DataError` for a negative margin.
    """
    if margin < 0:
        raise DataError(f"A margin is how much may be lost: give 0 or more, found {margin}.")
    if difference.interval.low > -margin:
        return "held"
    return "lost" if difference.interval.high < -margin else "open"


def more_items(difference: Difference, wanted: float = 0.0, power: float = 0.8) -> int | None:
    """About how many more such items would show that b − a is above `wanted`, were the true difference the one measured here.

    The standard error falls as 1/√n, clusters growing along. 0 where these items are enough; None where the measured difference is not
    above what is wanted: then more items show that it is not.
    """
    apart = difference.mean - wanted
    if apart <= 0:
        return None
    level = difference.interval.level
    error = difference.minimum_detectable / (normal_quantile(level) + float(special.ndtri(POWER_OF_A_DIFFERENCE)))
    needed = difference.n * ((normal_quantile(level) + float(special.ndtri(power))) * error / apart) ** 2
    return max(0, math.ceil(needed - difference.n))


def items_for(
    effect: float,
    *,
    between_items: float,
    within: float = 0.0,
    samples: int = 1,
    cluster_size: float = 1.0,
    likeness: float = 0.0,
    power: float = 0.8,
    level: float = 0.95,
) -> int:
    """Items that show a true `effect`: (z + z)² · (ω² + (σ²_a + σ²_b) / K) / δ², times the design effect 1 + (m − 1) · ICC.

    `between_items` is ω², the variance over items of the true difference; `within` the sum of both arms' variances of one sample;
    `likeness` the share of ω² that items of one cluster share. Source: Miller (2024), "Adding error bars to evals", eqs. 9 and 10, and
    Kish (1965) for clusters. Raises `DataError` for what cannot be.
    """
    if effect == 0 or between_items < 0 or within < 0 or samples < 1 or cluster_size < 1 or not 0 <= likeness <= 1:
        raise DataError(
            "Items are counted for an effect other than 0, variances of at least 0, at least one sample and one item a cluster, and a "
            f"likeness from 0 to 1; found effect={effect}, between_items={between_items}, within={within}, samples={samples}, "
            f"cluster_size={cluster_size}, likeness={likeness}."
        )
    z = normal_quantile(level) + float(special.ndtri(power))
    variance = between_items + within / samples
    return math.ceil((z / effect) ** 2 * variance * (1 + (cluster_size - 1) * likeness))

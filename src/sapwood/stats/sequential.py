"""The effect of a live experiment, with an interval that holds however often, and whenever, somebody looks.

In: units in the order in which their outcomes settled: which of two arms, the chance they had of it, the outcome in 0..1. Out: an
estimate of the mean difference with a confidence sequence, and the evidence against "no difference" after each unit.

Each unit becomes one number whose expectation is the effect, whatever the shares were and however they moved (ramps): with chance π of
the treatment, outcome y and a centre η fixed before the unit,

    ξ =  (y − η) / π        treated          E[ξ | what was before] = mean outcome treated − mean outcome under control
    ξ = −(y − η) / (1 − π)  control          (Horvitz–Thompson, centred: η near both means takes away nearly all of what the weights add)

Then it is betted against the claim that the effect is at most m: the capital ∏(1 + λwᵢ(ξᵢ − m)), w = 4π(1 − π), is a nonnegative
martingale if the claim is true, so it ever reaches 1/α with a chance of at most α (Ville's inequality). Waudby-Smith and Ramdas (2024),
"Estimating means of bounded random variables by betting", JRSS-B 86, eq. (19) and (21)-(23); the mean of capitals over a grid of λ stands
for one well chosen λ (their grid Kelly); w bets less on units that say less, for the variance of ξ goes with 1/(π(1 − π)). The claims
that no bet has refuted are the interval: exact at any n, no normal approximation, no variance known. Chances must be true, outcomes
bounded, and the order may not depend on the arm. Left out on purpose: covariates, ratios, quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from sapwood.errors import DataError
from sapwood.stats.rates import Floats

OCTAVES = np.arange(-1.0, -14.5, -0.5)
"""log2 of the bets λ: from half of what one has to what suits millions of units."""
SPREAD = 1.5
"""Octaves around the bet that suits the planned number of units over which most of the stakes lie."""
EVEN = 0.1
"""Share of the stakes that lies evenly on all bets: never hopeless far from what was planned."""
BOLDEST = 0.75
"""A bet risks at most this share of what would ruin it."""


@dataclass(frozen=True, slots=True)
class Effect:
    """The mean difference, treated − control, after `n` units. `low` and `high` hold together with those of every other n."""

    n: int
    mean: float
    low: float
    high: float
    level: float

    @property
    def shown(self) -> int:
        """1 where it lies above 0, −1 below, 0 where the interval holds 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True, slots=True)
class Units:
    """Units of two arms in the order in which they settled. Arrays of one length N; made by `units_of`."""

    xi_N: Floats
    """One number a unit, its expectation the effect."""
    low_N: Floats
    """The least that it could have been, known before it came."""
    high_N: Floats
    weight_N: Floats
    """What a unit tells, 4π(1 − π): 1 at a half, little where one arm is rare."""
    stakes_J: Floats
    """What lies on each bet of `OCTAVES`; sums to 1."""

    def reversed(self) -> Units:
        """The two arms changed over."""
        return Units(-self.xi_N, -self.high_N, -self.low_N, self.weight_N, self.stakes_J)

    @property
    def mean(self) -> float:
        """The effect, as all units together have it."""
        return float(np.clip((self.weight_N * self.xi_N).sum() / self.weight_N.sum(), -1, 1))


def units_of(treated: ArrayLike, chance: ArrayLike, outcome: ArrayLike, *, planned: int) -> Units:
    """Units ready to be betted on. `chance` of the treatment is each unit's own; the interval is narrowest near `planned` units.

    Raises `DataError` for unequal lengths, chances outside of 0..1, and outcomes outside of 0..1.
    """
    treated_N, pi_N, y_N = np.asarray(treated, dtype=bool), np.asarray(chance, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if not treated_N.shape == pi_N.shape == y_N.shape or treated_N.ndim != 1:
        raise DataError(f"Arms, chances and outcomes differ in length: {treated_N.shape}, {pi_N.shape}, {y_N.shape}.")
    if not bool(((pi_N > 0) & (pi_N < 1)).all()):
        raise DataError("A unit's chance of the treatment lies strictly between 0 and 1; leave out units that had none.")
    if not bool(((y_N >= 0) & (y_N <= 1)).all()):
        raise DataError("Outcomes lie outside of 0..1; scale them by the bounds of their metric.")
    eta_N = _centres(treated_N, pi_N, y_N)
    xi_N = np.where(treated_N, (y_N - eta_N) / pi_N, -(y_N - eta_N) / (1 - pi_N))
    low_N = -np.maximum(eta_N / pi_N, (1 - eta_N) / (1 - pi_N))
    high_N = np.maximum((1 - eta_N) / pi_N, eta_N / (1 - pi_N))
    return Units(xi_N, low_N, high_N, 4 * pi_N * (1 - pi_N), _stakes(planned, float(pi_N[-1]) if len(pi_N) else 0.5))


def evidence(units: Units, alternative: float = 0.0) -> tuple[Floats, Floats]:
    """Log capital after each unit of those who bet that the effect is above, and below, `alternative` (shape N each).

    Either exceeds log(1/α) at any time with a chance of at most α where it is not so. An anytime-valid p-value is exp(−max).
    """
    return _log_capital(units, alternative), _log_capital(units.reversed(), -alternative)


def effect_at(units: Units, n: int, alpha: float) -> Effect:
    """Estimate and interval after the first `n` units. Raises `DataError` for an alpha that is no chance."""
    if not 0 < alpha < 1:
        raise DataError(f"alpha is {alpha}; give a chance between 0 and 1, such as 0.05.")
    if n == 0:
        return Effect(0, 0.0, -1.0, 1.0, 1 - alpha)
    first = Units(units.xi_N[:n], units.low_N[:n], units.high_N[:n], units.weight_N[:n], units.stakes_J)
    low, high = _refuted_below(first, alpha / 2), -_refuted_below(first.reversed(), alpha / 2)
    return Effect(n, min(max(first.mean, low), high), low, high, 1 - alpha)


def effect_over_time(units: Units, alpha: float, points: Sequence[int]) -> list[Effect]:
    """`effect_at` after each of `points` units."""
    return [effect_at(units, n, alpha) for n in points]


def half_width(n: float, variance: float, alpha: float, planned: int, share: float = 0.5) -> float:
    """About how far the interval reaches to either side after `n` units whose ξ have this `variance`.

    log(1 + x) ≈ x − x²/2, so a bet λ gains nλδ − nλ²(variance + δ²)/2 in expectation; the δ at which the mean of capitals is 2/α.
    """
    lambdas_J, log_stakes_J = 2.0**OCTAVES * 4 * share * (1 - share), np.log(_stakes(planned, share))

    def gains(delta: float) -> bool:
        gains_J = log_stakes_J + n * (lambdas_J * delta - lambdas_J**2 * (variance + delta**2) / 2)
        return float(np.logaddexp.reduce(gains_J)) >= math.log(2 / alpha)

    return _bisect(gains, 0.0, 1.0)


def units_for(delta: float, variance: float, alpha: float, planned: int, share: float = 0.5, power: float = 0.5) -> int:
    """About how many units show an effect of `delta`, with this `power` at the latest then. 0 < delta <= 1."""
    if not 0 < delta <= 1:
        raise DataError(f"An effect of {delta} cannot be planned for; give one above 0 and up to 1.")
    z = float(special.ndtri(power))

    def shown(log2_n: float) -> bool:
        n = 2.0**log2_n
        return half_width(n, variance, alpha, planned, share) + z * math.sqrt(variance / n) <= delta

    return math.ceil(math.exp2(_bisect(shown, 0.0, 40.0)))


def detectable(n: int, variance: float, alpha: float, planned: int, share: float = 0.5, power: float = 0.8) -> float:
    """About the smallest effect that `n` units show with this `power`."""
    return min(1.0, half_width(n, variance, alpha, planned, share) + float(special.ndtri(power)) * math.sqrt(variance / n))


def variance_of(rate: float, share: float = 0.5) -> float:
    """Variance of ξ where outcomes are 0 or 1 with this `rate` in both arms, and `share` is the chance of the treatment."""
    return rate * (1 - rate) / (share * (1 - share))


def _centres(treated_N: NDArray[np.bool_], pi_N: Floats, y_N: Floats) -> Floats:
    """η of each unit, from units before it only: new after 1, 2, 4, 8, … of them, so that equal outcomes stay equal numbers."""
    eta_N = np.full(len(y_N), 0.5)
    start = 1
    while start < len(y_N):
        rows, before = slice(start, 2 * start), treated_N[:start]
        mean_treated, mean_control = ((y_N[:start][arm].sum() + 0.5) / (arm.sum() + 1) for arm in (before, ~before))
        eta_N[rows] = (1 - pi_N[rows]) * mean_treated + pi_N[rows] * mean_control  # the centre of least variance
        start *= 2
    return eta_N


def _stakes(planned: int, share: float) -> Floats:
    """What lies on each bet. The best one at n units with σ is sqrt(2 log(2/α) / n) / (wσ); σ of a coin's outcomes, α of 0.05."""
    suits = math.log2(math.sqrt(2 * math.log(40) / max(planned, 1)) / (2 * math.sqrt(share * (1 - share))))
    near_J = np.exp(-0.5 * ((OCTAVES - np.clip(suits, OCTAVES[-1], OCTAVES[0])) / SPREAD) ** 2)
    stakes_J: Floats = (1 - EVEN) * near_J / near_J.sum() + EVEN / len(OCTAVES)
    return stakes_J


def _bets(weight_N: Floats, low_N: Floats) -> Floats:
    """λw of each bet and unit (J, N): never so large that a claim from −1 to 1 could ruin it."""
    return np.minimum((2.0**OCTAVES)[:, None] * weight_N[None, :], (BOLDEST / (1 - low_N))[None, :])


def _log_capital(units: Units, m: float) -> Floats:
    gains_JN = np.log1p(_bets(units.weight_N, units.low_N) * (units.xi_N - m)[None, :]).cumsum(axis=1)
    gains_JN += np.log(units.stakes_J)[:, None]
    top_N = gains_JN.max(axis=0, initial=-np.inf)
    log_N: Floats = top_N + np.log(np.exp(gains_JN - top_N[None, :]).sum(axis=0))
    return log_N


def _refuted_below(units: Units, alpha: float) -> float:
    """The largest m up to which "the effect is at most m" is refuted; −1 where none is. Capital falls as m rises, so there is one."""
    (xi_U, low_U, weight_U), count_U = np.unique(np.stack([units.xi_N, units.low_N, units.weight_N]), axis=1, return_counts=True)
    lambdas_JU, log_stakes_J, mean = _bets(weight_U, low_U), np.log(units.stakes_J), units.mean

    def over(m: float) -> float:
        gains_J = np.log1p(lambdas_JU * (xi_U - m)[None, :]) @ count_U
        return float(np.logaddexp.reduce(gains_J + log_stakes_J)) - math.log(1 / alpha)

    reach = 3 * float(units.xi_N.std()) / math.sqrt(len(units.xi_N)) + 1e-3
    low, high = max(-1.0, mean - reach), mean
    while over(high) >= 0:  # bets that were capped lean elsewhere than the mean: rarely, and by little
        if high >= 1:
            return 1.0
        low, high = high, min(1.0, high + reach)
    while over(low) < 0:
        if low <= -1:
            return -1.0
        reach *= 2
        low, high = max(-1.0, low - reach), low
    return _falling_root(over, low, high)


def _falling_root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0 between `low` (above it) and `high` (below), to 1e-7: regula falsi, as Illinois mended it."""
    f_low, f_high, side = f(low), f(high), 0
    while high - low > 1e-7:
        middle = min(max((low * f_high - high * f_low) / (f_high - f_low), low + 4e-8), high - 4e-8)
        value = f(middle)
        if value > 0:
            low, f_low = middle, value
            f_high, side = (f_high / 2 if side > 0 else f_high), 1
        else:
            high, f_high = middle, value
            f_low, side = (f_low / 2 if side < 0 else f_low), -1
    return low


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least value from which on it `holds`, to 1e-6; `low` where it always does, `high` where never."""
    if holds(low):
        return low
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

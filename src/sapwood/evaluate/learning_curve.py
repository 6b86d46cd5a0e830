"""What more rows would give: scores of pilot trainings on the same items in, a learning curve with its uncertainty out.

The error after training on n rows is taken to be

    error(n) = floor + (top − floor) · (1 + n / scale) ** −exponent        0 ≤ floor ≤ top ≤ 1

a power law with a floor that no number of rows gets below and a ceiling that it starts from (Hestness et al. 2017,
"Deep learning scaling is predictable, empirically"; the shift by `scale` is that of Viering and Loog 2022, "The shape of
learning curves"). A few points do not fix four numbers, so one fitted line would be far too sure of itself. Instead each of
`DRAWS` repetitions weighs the items anew (Bayesian bootstrap over clusters, the same weights for all points and for the arm
that is compared with), moves every point by the noise of a training run, draws floor, top, scale and exponent from the
priors below, and takes the curve nearest to both. What the pilot tells is in the points, what it cannot tell is in the
priors, and the spread of the repetitions is the interval: of one training run on n rows, asked items like these.

How often such an interval holds the truth is measured on simulated curves of other shapes than this one, in
tests/evaluate/test_learning_curve.py; docs/decide.md has the table.
Left out on purpose: rows that differ in quality, and curves of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sapwood.errors import DataError

Floats = NDArray[np.float64]

LEVEL = 0.9
DRAWS = 2000

EXPONENT, EXPONENT_SPREAD = math.log(0.6), 0.9
"""Log of the exponent: those of language tasks lie between 0.1 and 2, mostly near a half."""
SCALE, SCALE_SPREAD = math.log(60.0), 1.5
"""Log of the rows at which learning sets in."""
SUDDEN, SUDDEN_EXPONENT, SUDDEN_SCALE = 0.35, math.log(4.0), math.log(600.0)
"""Share of the repetitions that believe in a curve which lies flat, falls all at once, and lies flat again; log exponent and scale."""
FLOOR, FLOOR_SPREAD = 0.6, 0.6
"""Of the error at the largest pilot size."""
TOP, TOP_SPREAD = 0.9, 0.25
RUN_NOISE, RUN_NOISE_WORTH = 0.035, 4.0
"""Standard deviation of a rate from one training run to the next, and how many observations this belief is worth."""
IMAGINED = 0.3
"""Weight of each of four imagined items (right or wrong in the pilot, right or wrong before): no rate is known for sure."""

_EXPONENTS = np.geomspace(0.08, 12.0, 14)
_SCALES = np.geomspace(2.0, 6000.0, 12)
MOST_ROWS = 1e7
"""Numbers of rows beyond this are called out of reach."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The middle and the ends of what the repetitions say."""

    middle: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """{middle, low, high}; None stands for out of reach."""
        return {
            name: value if math.isfinite(value) else None
            for name, value in (("middle", self.middle), ("low", self.low), ("high", self.high))
        }


@dataclass(frozen=True, slots=True)
class Needed:
    """How many rows a wished rate needs. Infinity is out of reach, or beyond `MOST_ROWS`."""

    rate: float
    rows: Estimate
    reached: float
    """Share of the repetitions in which any number of rows reaches the rate."""


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Repetitions of the curve; each array has one entry a repetition."""

    rows_P: NDArray[np.int64]
    """Rows of each pilot training."""
    rates_P: Floats
    """Its rate on the items."""
    items: int
    """Items that every point and the other arm were scored on."""
    noise: float
    """Standard deviation of a point around the curve, as taken."""
    floor_R: Floats
    top_R: Floats
    scale_R: Floats
    exponent_R: Floats
    noise_R: Floats
    """How one more training run would differ from the curve."""
    base_R: Floats
    """Rate of the arm that is compared with, on items weighed in the same way."""
    level: float = LEVEL

    def rate_at(self, rows: float) -> Estimate:
        """The rate that one training on so many rows would reach."""
        return self._of(np.clip(self._rates(rows) + self.noise_R, 0, 1))

    def gain_at(self, rows: float) -> Estimate:
        """`rate_at` minus the rate of the arm that is compared with, on the same items."""
        return self._of(np.clip(self._rates(rows) + self.noise_R, 0, 1) - self.base_R)

    def chance(self, rows: float, *, gain: float) -> float:
        """Share of the repetitions in which training on so many rows gains at least `gain`."""
        return float(np.mean(np.clip(self._rates(rows) + self.noise_R, 0, 1) - self.base_R >= gain))

    def rows_for(self, rate: float) -> Needed:
        """How many rows reach `rate` on average over training runs."""
        spare_R = 1 - rate - self.floor_R
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            factor_R = np.where(spare_R > 0, (self.top_R - self.floor_R) / spare_R, np.inf)
            rows_R = self.scale_R * (np.maximum(factor_R, 1.0) ** (1 / self.exponent_R) - 1)
        rows_R = np.where(np.isfinite(rows_R) & (rows_R <= MOST_ROWS), np.ceil(rows_R), np.inf)
        return Needed(rate, self._of(rows_R), float(np.mean(np.isfinite(rows_R))))

    def best(self) -> Estimate:
        """The rate that endless rows would approach."""
        return self._of(1 - self.floor_R)

    def _rates(self, rows: float) -> Floats:
        falling_R: Floats = (1 + rows / self.scale_R) ** -self.exponent_R
        rates_R: Floats = 1 - self.floor_R - (self.top_R - self.floor_R) * falling_R
        return rates_R

    def _of(self, values_R: Floats) -> Estimate:
        tail = (1 - self.level) / 2
        low, middle, high = np.quantile(values_R, [tail, 0.5, 1 - tail], method="nearest")  # infinities must not be mixed
        return Estimate(float(middle), float(low), float(high))


def learning_curve(
    rows: Sequence[int],
    scores_PI: ArrayLike,
    base_I: ArrayLike | None = None,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> LearningCurve:
    """The curve through pilot trainings on `rows[p]` rows each, whose scores (0..1) on item i are `scores_PI[p, i]`.

    `base_I` are the scores of the arm that tuning is compared with, 0 where not given; `clusters` names items that are
    not independent. The same `seed` gives the same curve. Raises `DataError` for fewer than two sizes, or scores that
    are missing or outside of 0..1: leave out items that some point could not be scored on.
    """
    rows_P, values_PI = np.asarray(rows, dtype=np.int64), np.asarray(scores_PI, dtype=np.float64)
    base = np.zeros(values_PI.shape[-1]) if base_I is None else np.asarray(base_I, dtype=np.float64)
    _check(rows_P, values_PI, base)
    random = np.random.default_rng(seed)
    weights_RI, imagined_R4 = _item_weights(values_PI.shape[1], clusters, draws, random)
    points_RP = weights_RI @ values_PI.T + imagined_R4[:, [0, 1]].sum(1, keepdims=True)
    base_R = weights_RI @ base + imagined_R4[:, [0, 2]].sum(1)

    rates_P = values_PI.mean(1)
    worst = max(0.02, 1 - float(rates_P[rows_P == rows_P.max()].mean()))
    middle = _fit(rows_P, 1 - rates_P[None], _Priors.middle(worst), RUN_NOISE)
    residual_P = 1 - rates_P - _error(rows_P, *middle)[0]
    freedom = RUN_NOISE_WORTH + max(1, len(rows_P) - 2)
    spread = RUN_NOISE_WORTH * RUN_NOISE**2 + float(residual_P @ residual_P)
    noise = math.sqrt(spread / freedom)
    noise_R = np.sqrt(spread / random.chisquare(freedom, draws))

    points_RP += noise_R[:, None] * random.standard_normal(points_RP.shape)
    fitted = _fit(rows_P, 1 - points_RP, _Priors.drawn(worst, draws, random), noise)
    return LearningCurve(rows_P, rates_P, values_PI.shape[1], noise, *fitted, noise_R * random.standard_normal(draws), base_R, level)


def _item_weights(items: int, clusters: Sequence[Hashable] | None, draws: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """(weights of items, weights of the four imagined items: both right, the pilot alone, the other arm alone, none); sums of 1."""
    places: dict[Hashable, int] = {}
    index_I = np.array([places.setdefault(name, len(places)) for name in (range(items) if clusters is None else clusters)])
    if len(index_I) != items:
        raise DataError(f"There are {items} items but {len(index_I)} cluster names; give one name for each item.")
    of_clusters_RC = random.standard_gamma(1.0, (draws, len(places)))
    imagined_R4 = random.standard_gamma(IMAGINED, (draws, 4)) * items / len(places)
    weights_RI = of_clusters_RC[:, index_I]
    total_R1 = weights_RI.sum(1, keepdims=True) + imagined_R4.sum(1, keepdims=True)
    return weights_RI / total_R1, imagined_R4 / total_R1


@dataclass(frozen=True, eq=False)
class _Priors:
    """What is believed before the pilot, one entry a repetition; `spread` belongs to the floor."""

    floor_R: Floats
    top_R: Floats
    log_scale_R: Floats
    log_exponent_R: Floats
    spread: float

    @classmethod
    def middle(cls, worst: float) -> _Priors:
        floor, top, scale, exponent = (np.array([value]) for value in (FLOOR * worst, TOP, SCALE, EXPONENT))
        return cls(floor, top, scale, exponent, FLOOR_SPREAD * worst)

    @classmethod
    def drawn(cls, worst: float, draws: int, random: np.random.Generator) -> _Priors:
        floor = worst * (FLOOR + FLOOR_SPREAD * random.standard_normal(draws))
        top = TOP + TOP_SPREAD * random.standard_normal(draws)
        sudden = random.random(draws) < SUDDEN
        scale = np.where(sudden, SUDDEN_SCALE, SCALE) + SCALE_SPREAD * random.standard_normal(draws)
        exponent = np.where(sudden, SUDDEN_EXPONENT, EXPONENT) + EXPONENT_SPREAD * random.standard_normal(draws)
        return cls(floor, top, scale, exponent, FLOOR_SPREAD * worst)


def _fit(rows_P: NDArray[np.int64], errors_RP: Floats, priors: _Priors, noise: float) -> tuple[Floats, Floats, Floats, Floats]:
    """(floor, top, scale, exponent) of the curve nearest to the points and the priors, for each repetition.

    For each (scale, exponent) of a grid the error is linear in floor and top, so the best pair is a small quadratic problem
    inside the triangle 0 ≤ floor ≤ top ≤ 1: its free minimum where that lies inside, else the least on the three edges.
    """
    scale_G, exponent_G = (grid.ravel() for grid in np.meshgrid(_SCALES, _EXPONENTS))
    fall_GP = (1 + rows_P[None] / scale_G[:, None]) ** -exponent_G[:, None]
    weight = 1 / noise**2
    # objective = aa floor² + 2 ab floor top + bb top² − 2 a floor − 2 b top + a part that is the same for the whole grid
    aa_G = weight * ((1 - fall_GP) ** 2).sum(1) + 1 / priors.spread**2
    ab_G = weight * ((1 - fall_GP) * fall_GP).sum(1)
    bb_G = weight * (fall_GP**2).sum(1) + 1 / TOP_SPREAD**2
    b_RG = weight * errors_RP @ fall_GP.T
    a_RG = weight * errors_RP.sum(1, keepdims=True) - b_RG + (priors.floor_R / priors.spread**2)[:, None]
    b_RG += (priors.top_R / TOP_SPREAD**2)[:, None]

    def cost(floor: Floats, top: Floats) -> Floats:
        value: Floats = aa_G * floor**2 + 2 * ab_G * floor * top + bb_G * top**2 - 2 * a_RG * floor - 2 * b_RG * top
        return value

    determinant_G = aa_G * bb_G - ab_G**2
    floor_RG, top_RG = (bb_G * a_RG - ab_G * b_RG) / determinant_G, (aa_G * b_RG - ab_G * a_RG) / determinant_G
    inside = (floor_RG >= 0) & (floor_RG <= top_RG) & (top_RG <= 1)
    least_RG = np.where(inside, cost(floor_RG, top_RG), np.inf)
    zero, one = np.zeros_like(floor_RG), np.ones_like(floor_RG)
    level = np.clip((a_RG + b_RG) / (aa_G + 2 * ab_G + bb_G), 0, 1)  # nothing is learned: floor = top
    for floor, top in ((zero, np.clip(b_RG / bb_G, 0, 1)), (np.clip((a_RG - ab_G) / aa_G, 0, 1), one), (level, level)):
        found = cost(floor, top)
        better = ~inside & (found < least_RG)
        floor_RG, top_RG = np.where(better, floor, floor_RG), np.where(better, top, top_RG)
        least_RG = np.where(better, found, least_RG)
    least_RG += ((np.log(scale_G) - priors.log_scale_R[:, None]) / SCALE_SPREAD) ** 2
    least_RG += ((np.log(exponent_G) - priors.log_exponent_R[:, None]) / EXPONENT_SPREAD) ** 2
    best_R = least_RG.argmin(1)
    every = np.arange(len(best_R))
    return floor_RG[every, best_R], top_RG[every, best_R], scale_G[best_R], exponent_G[best_R]


def _error(rows_P: NDArray[np.int64], floor_R: Floats, top_R: Floats, scale_R: Floats, exponent_R: Floats) -> Floats:
    fall_RP: Floats = (1 + rows_P[None] / scale_R[:, None]) ** -exponent_R[:, None]
    return floor_R[:, None] + (top_R - floor_R)[:, None] * fall_RP


def _check(rows_P: NDArray[np.int64], values_PI: Floats, base_I: Floats) -> None:
    if values_PI.ndim != 2 or values_PI.shape[0] != len(rows_P) or values_PI.shape[1] == 0 or base_I.shape != values_PI.shape[1:]:
        raise DataError(
            f"A learning curve needs one row of scores for each of its {len(rows_P)} points and one score for each item; "
            f"found scores of shape {values_PI.shape} and {len(base_I)} to compare with."
        )
    if len(set(rows_P.tolist())) < 2 or rows_P.min() < 1:
        raise DataError(f"A learning curve needs pilot trainings of at least two sizes, each of 1 row or more; found {rows_P.tolist()}.")
    both = np.concatenate([values_PI.ravel(), base_I])
    if not bool(np.all((both >= 0) & (both <= 1))):  # nan is refused too
        raise DataError("A learning curve needs scores from 0 to 1; leave out the items that could not be scored and say how many.")

"""Adjusted p-values, planning, non-inferiority, the variance split and the cluster bootstrap: published tables, references, simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sapwood.errors import DataError
from sapwood.stats import (
    Difference,
    benjamini_hochberg,
    cluster_bootstrap,
    holm,
    items_for,
    items_needed,
    more_items,
    not_worse,
    paired_difference,
    variance_split,
)

THROMBOLYSIS = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
"""Benjamini and Hochberg (1995), section 4: fifteen comparisons of two treatments."""


def test_the_published_example() -> None:
    assert sum(p <= 0.05 for p in benjamini_hochberg(THROMBOLYSIS)) == 4, "the four smallest, says the paper"
    assert sum(p <= 0.05 for p in holm(THROMBOLYSIS)) == 3, "as 0.05 / 15 for each does, says the paper"


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(p_values)
def test_adjusted_as_scipy_does(values: list[float]) -> None:
    assert benjamini_hochberg(values) == pytest.approx(stats.false_discovery_control(values), abs=1e-12)


@given(p_values, st.floats(0.001, 0.2))
def test_holm_is_the_step_down_procedure(values: list[float], level: float) -> None:
    rejected, order = set[int](), sorted(range(len(values)), key=lambda place: values[place])
    for step, place in enumerate(order):
        if values[place] * (len(values) - step) > level:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(holm(values)) if p <= level} == rejected
    assert all(adjusted >= p for adjusted, p in zip(holm(values), values, strict=True))
    assert all(bh <= h + 1e-12 for bh, h in zip(benjamini_hochberg(values), holm(values), strict=True))


def test_odd_p_values() -> None:
    assert holm([]) == benjamini_hochberg([]) == []
    for bad in ([1.2], [-0.1], [float("nan")]):
        with pytest.raises(DataError, match="from 0 to 1"):
            holm(bad)


def pairs(wins: int, losses: int, n: int) -> Difference:
    rest = n - wins - losses
    return paired_difference([0.0] * wins + [1.0] * losses + [1.0] * rest, [1.0] * wins + [0.0] * losses + [1.0] * rest)


def test_three_answers_about_a_loss() -> None:
    assert not_worse(pairs(5, 5, 1000), 0.03) == "held"
    assert not_worse(pairs(0, 200, 1000), 0.03) == "lost"
    assert not_worse(pairs(5, 5, 60), 0.03) == "open"
    assert not_worse(pairs(30, 0, 60), 0.0) == "held"
    with pytest.raises(DataError, match="give 0 or more"):
        not_worse(pairs(1, 1, 60), -0.1)


def test_about_n_more_items_are_about_enough() -> None:
    """A study of n + more items shows the difference about four times in five, were the truth what was measured."""
    measured = pairs(30, 18, 200)
    more = more_items(measured)
    assert more is not None
    n, rng, shown = 200 + more, np.random.default_rng(5), 0
    for _ in range(400):
        wins, losses, _ = rng.multinomial(n, [0.15, 0.09, 0.76])
        shown += pairs(int(wins), int(losses), n).interval.low > 0
    assert 0.74 <= shown / 400 <= 0.87
    assert more_items(pairs(90, 10, 200)) == 0
    assert more_items(pairs(10, 20, 200)) is None
    assert more_items(measured, wanted=0.06) is None
    assert more_items(measured, wanted=0.02) > more  # type: ignore[operator]
    assert more_items(measured, power=0.9) > more  # type: ignore[operator]


def test_items_for_an_effect() -> None:
    assert items_for(0.05, between_items=0.2) == items_needed(0.05, 0.2), "the binary case is the same formula"
    assert items_for(0.05, between_items=0.1, within=0.2) > items_for(0.05, between_items=0.1, within=0.2, samples=4)
    assert items_for(0.05, between_items=0.1, cluster_size=5, likeness=0.5) == pytest.approx(
        3 * items_for(0.05, between_items=0.1), abs=3
    ), "1 + 4 · 0.5"
    for odd in ({"between_items": -1}, {"between_items": 1, "samples": 0}, {"between_items": 1, "likeness": 2}):
        with pytest.raises(DataError):
            items_for(0.05, **odd)  # type: ignore[arg-type]


GAUGE = """21 20 24 23 20 21 27 27 19 18 23 21 22 21 19 17 24 23 25 23 21 20 18 19 23 25 24 24 29 30 26 26 20 20 19 21 25 26 19 19
20 20 24 24 19 21 28 26 19 18 24 21 22 24 18 20 25 23 26 25 20 20 17 19 25 25 23 25 30 28 25 26 19 20 19 19 25 24 18 17
19 21 23 24 20 22 27 28 18 21 23 22 22 20 19 18 24 24 24 25 21 20 18 19 25 25 24 25 31 30 25 27 20 20 21 23 25 25 19 17"""
"""Montgomery, "Design and analysis of experiments", the measurement systems study: 3 operators, 20 parts, twice each."""


def test_the_published_split_of_variance() -> None:
    found = variance_split(np.array([line.split() for line in GAUGE.splitlines()], dtype=float).reshape(3, 20, 2))
    assert found.item == pytest.approx(10.28, abs=0.005)
    assert found.seed == pytest.approx(0.0149, abs=5e-4)
    assert found.sampling == pytest.approx(0.99, abs=0.005)
    assert found.item_and_seed == 0, "−0.14 in the book, which is less than nothing"
    assert found.cut == ("item_and_seed",)
    assert found.of_mean["item"] == pytest.approx(10.28 / 20, abs=1e-3)
    assert "more items" in found.advice


def test_components_are_found_again() -> None:
    rng, truth = np.random.default_rng(0), {"item": 4.0, "seed": 1.0, "item_and_seed": 0.5, "sampling": 2.0}
    found = {name: list[float]() for name in truth}
    for _ in range(300):
        y = rng.normal(0, 2.0, (1, 30, 1)) + rng.normal(0, 1.0, (5, 1, 1)) + rng.normal(0, 0.5**0.5, (5, 30, 1))
        split = variance_split(y + rng.normal(0, 2**0.5, (5, 30, 4)))
        for name, values in found.items():
            values.append(getattr(split, name))
    for name, value in truth.items():
        assert np.mean(found[name]) == pytest.approx(value, rel=0.1), name


def test_what_one_seed_and_one_sample_cannot_tell() -> None:
    y = np.random.default_rng(1).normal(size=(1, 20, 3))
    assert (variance_split(y).seed, variance_split(y).item_and_seed) == (None, None)
    assert "one seed was trained" in variance_split(y).advice
    assert variance_split(y[:, :, :1]).sampling is None
    assert variance_split(np.ones((1, 4, 1))).advice.startswith("Nothing varies")
    for odd in (np.ones((2, 1, 1)), np.ones((3, 4)), np.full((1, 3, 1), np.nan)):
        with pytest.raises(DataError, match="shape"):
            variance_split(odd)


def test_the_bootstrap_covers_a_median_and_a_ratio() -> None:
    """40 clusters of 3: what varies between clusters must widen the interval."""
    rng, clusters = np.random.default_rng(3), np.repeat(range(40), 3).tolist()
    held = {"median": 0, "ratio": 0}
    repeats = 150
    for _ in range(repeats):
        values = (rng.exponential(1.0, (40, 1)) + rng.exponential(0.5, (40, 3))).ravel()
        right = rng.random(120) < 0.5
        held["median"] += 1.236 in cluster_bootstrap(lambda rows, v=values: float(np.median(v[rows])), clusters, draws=300)
        held["ratio"] += 3.0 in cluster_bootstrap(
            lambda rows, v=values, r=right: float(v[rows].sum() / r[rows].sum()) if r[rows].any() else math.nan, clusters, draws=300
        )
    assert all(count / repeats >= 0.89 for count in held.values()), held
    alone = cluster_bootstrap(lambda rows: float(np.median(values[rows])), list(range(120)), draws=300)
    together = cluster_bootstrap(lambda rows: float(np.median(values[rows])), clusters, draws=300)
    assert together.high - together.low > alone.high - alone.low


def test_the_bootstrap_against_scipys() -> None:
    values = np.random.default_rng(4).gamma(2.0, size=60)
    mine = cluster_bootstrap(lambda rows: float(values[rows].mean()), list(range(60)), draws=4000)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=4000, rng=np.random.default_rng(9)).confidence_interval
    width = theirs.high - theirs.low
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_what_cannot_be_drawn_again() -> None:
    def median(rows: NDArray[np.int64]) -> float:
        return float(np.median(rows))

    assert cluster_bootstrap(median, ["a"] * 5).high == math.inf
    for clusters, statistic in (([], median), (["a", "b"], lambda rows: math.nan)):
        with pytest.raises(DataError):
            cluster_bootstrap(statistic, clusters)

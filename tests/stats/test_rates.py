"""Intervals of rates and ratios: published values, scipy's, and coverage counted over every outcome."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sapwood.errors import DataError
from sapwood.stats import Interval, clopper_pearson, mean_interval, rate_interval, ratio_interval, wilson


def coverage(intervals: list[Interval], rate: float) -> float:
    """Exact: the sum of the probabilities of the outcomes whose interval holds the rate."""
    n = len(intervals) - 1
    holds = np.array([rate in interval for interval in intervals])
    return float(stats.binom.pmf(np.arange(n + 1), n, rate)[holds].sum())


@pytest.mark.parametrize(  # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I
    ("k", "n", "by_wilson", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_published_values(k: int, n: int, by_wilson: tuple[float, float], exact: tuple[float, float]) -> None:
    for interval, expected in ((wilson(k, n), by_wilson), (clopper_pearson(k, n), exact)):
        assert (interval.low, interval.high) == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_equal_to_scipy(n: int, data: st.DataObject, level: float) -> None:
    k = data.draw(st.integers(0, n))
    for interval, method in ((wilson(k, n, level), "wilson"), (clopper_pearson(k, n, level), "exact")):
        reference = stats.binomtest(k, n).proportion_ci(level, method)
        assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_coverage_at_fifty_items_and_a_rate_of_97_percent() -> None:
    assert coverage([wilson(k, 50) for k in range(51)], 0.97) == pytest.approx(0.937, abs=5e-4)
    assert coverage([clopper_pearson(k, 50) for k in range(51)], 0.97) == pytest.approx(0.983, abs=5e-4)


@pytest.mark.parametrize("n", [10, 20, 30, 50, 100, 200])
def test_the_default_covers_at_every_rate(n: int) -> None:
    intervals = [rate_interval(k, n) for k in range(n + 1)]
    covered = [coverage(intervals, rate) for rate in np.linspace(0.002, 0.998, 250)]
    assert min(covered) >= 0.92
    assert np.mean(covered) >= 0.95


def test_the_default_is_exact_at_the_edges_and_wilson_between() -> None:
    assert rate_interval(4, 50) == clopper_pearson(4, 50)
    assert rate_interval(46, 50) == clopper_pearson(46, 50)
    assert rate_interval(5, 50) == wilson(5, 50)


def test_a_mean_of_items_alone_is_a_rate() -> None:
    assert mean_interval([1, 0, 1, 1, 0, 0, 1, 1]) == rate_interval(5, 8)
    singles = mean_interval([1.0] * 30 + [0.0] * 20, clusters=list(range(50)))
    assert (singles.low, singles.high) == pytest.approx((wilson(30, 50).low, wilson(30, 50).high), abs=0.004)


def test_copies_of_items_add_nothing() -> None:
    values = [1.0] * 12 + [0.0] * 8
    once, five_times = mean_interval(values, list(range(20))), mean_interval(np.repeat(values, 5), np.repeat(range(20), 5).tolist())
    assert five_times.low == pytest.approx(once.low, abs=1e-9)
    assert five_times.high == pytest.approx(once.high, abs=1e-9)


def test_equal_scores_rest_on_the_number_of_clusters() -> None:
    interval = mean_interval([1.0] * 50, clusters=[n // 5 for n in range(50)])
    assert interval.low == clopper_pearson(10, 10).low
    assert interval.high == 1.0
    whole = mean_interval([0.0, 1.0], clusters=["same", "same"])
    assert whole.high - whole.low > 0.9


def test_clustered_means_are_covered() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(600):
        shared = rng.random(30) < 0.6
        own = rng.random((30, 4)) < 0.6
        values = np.where(rng.random((30, 4)) < 0.6, shared[:, None], own).astype(float)
        hits += 0.6 in mean_interval(values.ravel(), np.repeat(range(30), 4).tolist())
    assert 0.92 <= hits / 600 <= 0.98


def test_ratio_covers_and_weights_by_tokens() -> None:
    ratio, _ = ratio_interval([10.0, 100.0], [10, 50])
    assert ratio == pytest.approx(110 / 60)
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(600):
        tokens = rng.integers(5, 60, 25)
        bits = tokens * rng.normal(2.0, 0.4, 25)
        hits += 2.0 in ratio_interval(bits, tokens)[1]
    assert 0.92 <= hits / 600 <= 0.98
    assert ratio_interval([3.0], [2])[1] == Interval(-math.inf, math.inf, 0.95, "t over clusters")


def test_equal_sizes_give_the_ordinary_t_interval() -> None:
    sample = np.random.default_rng(1).normal(size=20)
    reference = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    _, interval = ratio_interval(sample, np.ones(20))
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(DataError, match="0 <= k <= n"):
        rate_interval(k, n)


@pytest.mark.parametrize("scores", [[], [0.5, 1.2], [-0.1], [float("nan")]])
def test_impossible_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(DataError, match="scores from 0 to 1"):
        mean_interval(scores)
    with pytest.raises(DataError, match="cluster names"):
        mean_interval([0, 1], clusters=["one"])
    with pytest.raises(DataError, match="positive counts"):
        ratio_interval([1.0], [0])

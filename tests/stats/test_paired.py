"""The paired difference: references, coverage over every outcome, and false alarms in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from sapwood.errors import DataError
from sapwood.stats import items_needed, minimum_detectable, paired_difference
from sapwood.stats.paired import mcnemar_midp


def pairs(wins: int, losses: int, n: int) -> tuple[list[float], list[float]]:
    ties = n - wins - losses
    return [0.0] * wins + [1.0] * losses + [1.0] * ties, [1.0] * wins + [0.0] * losses + [1.0] * ties


def outcomes(n: int, most: int) -> list[tuple[int, int]]:
    """Every (wins, losses) with at most `most` of either."""
    return [(w, x) for w in range(min(n, most) + 1) for x in range(min(n - w, most) + 1)]


@pytest.mark.parametrize("n", [20, 50, 100])
def test_coverage_over_every_outcome(n: int) -> None:
    cases = outcomes(n, 40)
    intervals = [paired_difference(*pairs(w, x, n)).interval for w, x in cases]
    low, high = np.array([i.low for i in intervals]), np.array([i.high for i in intervals])
    won, lost = np.array(cases).T
    ways = special.gammaln(n + 1) - special.gammaln(won + 1) - special.gammaln(lost + 1) - special.gammaln(n - won - lost + 1)
    for p in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        for q in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
            chance = np.exp(ways + won * math.log(p) + lost * math.log(q) + (n - won - lost) * math.log1p(-p - q))
            assert chance.sum() > 0.999, "the outcomes left out must not matter"
            truth = p - q
            covered = float(chance[(low <= truth) & (truth <= high)].sum())
            assert covered >= 0.94, (n, p, q, covered)
            if p == q:
                assert float(chance[low > 0].sum()) <= 0.025, "called better by chance"


@pytest.mark.parametrize(("rate", "copied"), [(0.1, 0.0), (0.1, 0.6), (0.3, 0.6), (0.02, 0.9)])
def test_clusters_raise_no_false_alarms(rate: float, copied: float) -> None:
    rng = np.random.default_rng(11)
    clusters = np.repeat(range(30), 5).tolist()
    alarms = 0
    for _ in range(1000):
        shared, own = (rng.choice([1, -1, 0], p=[rate, rate, 1 - 2 * rate], size=shape) for shape in ((30, 1), (30, 5)))
        change = np.where(rng.random((30, 5)) < copied, shared, own).ravel()
        result = paired_difference((change < 0).astype(float), (change > 0).astype(float), clusters)
        alarms += not (result.interval.low <= 0 <= result.interval.high)
    assert alarms / 1000 <= 0.06


def test_ignoring_clusters_would_raise_them() -> None:
    """Why clusters matter: the same data taken as items alone."""
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(300):
        change = np.repeat(rng.choice([1, -1, 0], p=[0.3, 0.3, 0.4], size=30), 5)
        result = paired_difference((change < 0).astype(float), (change > 0).astype(float))
        alarms += not (result.interval.low <= 0 <= result.interval.high)
    assert alarms / 300 > 0.2


def test_items_alone_give_bonett_and_prices_interval() -> None:
    result = paired_difference(*pairs(7, 1, 21))
    rate, n = (8 - 2) / 23, 23
    half = stats.t.ppf(0.975, 20) * math.sqrt(((8 + 2) / n - rate**2) / n)
    # the formula divides by n; the clustered standard error by n − 1
    half *= math.sqrt(n / (n - 1))
    assert (result.interval.low, result.interval.high) == pytest.approx((rate - half, rate + half), rel=1e-9)
    assert (result.wins, result.losses, result.ties, result.mean) == (7, 1, 13, pytest.approx(6 / 21))


def test_unbounded_measures_get_the_ordinary_paired_t() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=30) * 7, rng.normal(size=30) * 7 + 2
    result, reference = paired_difference(a, b, bounded=False), stats.ttest_rel(b, a)
    bounds = reference.confidence_interval(0.95)
    assert (result.interval.low, result.interval.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
    assert result.p_value == pytest.approx(reference.pvalue, rel=1e-9)


def test_midp_published_and_by_definition() -> None:
    # Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1 against 7
    assert mcnemar_midp(1, 7) == pytest.approx(0.039, abs=5e-4)
    for w, x in ((0, 6), (4, 4), (3, 9)):
        exact = stats.binomtest(min(w, x), w + x).pvalue
        assert mcnemar_midp(w, x) == pytest.approx(exact - stats.binom.pmf(min(w, x), w + x, 0.5), abs=1e-12) or w == x
    assert mcnemar_midp(0, 0) == 1.0


scores = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(st.lists(st.tuples(scores, scores, st.integers(0, 6)), min_size=1, max_size=60))
def test_properties(rows: list[tuple[float, float, int]]) -> None:
    a, b, clusters = map(list, zip(*rows, strict=True))
    there, back = paired_difference(a, b, clusters), paired_difference(b, a, clusters)
    assert there.mean == pytest.approx(-back.mean)
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.low <= there.mean + 1e-12
    assert there.mean - 1e-12 <= there.interval.high
    assert there.interval.high > there.interval.low, "never a width of zero"
    assert there.wins + there.losses + there.ties == there.n == len(rows)
    assert there.clusters == len(set(clusters))
    assert 0 <= there.p_value <= 1
    shuffled = paired_difference(a[::-1], b[::-1], clusters[::-1])
    assert shuffled.interval.low == pytest.approx(there.interval.low)


def test_nothing_changed_still_has_a_width_that_shrinks_with_items() -> None:
    few, many = paired_difference([1] * 30, [1] * 30), paired_difference([1] * 300, [1] * 300)
    assert few.interval.high > 0.05
    assert 0 < many.interval.high < 0.02
    assert "same amount" in few.note
    assert few.p_value == 1.0


def test_few_clusters_and_one_cluster_are_noted() -> None:
    assert "only 2 independent clusters" in paired_difference([0, 0, 1, 1], [1, 1, 1, 0], ["a", "a", "b", "b"]).note
    alone = paired_difference([0, 0], [1, 1], ["a", "a"])
    assert (alone.interval.low, alone.interval.high, alone.p_value) == (-1, 1, 1)
    assert paired_difference(*pairs(7, 1, 21)).note == ""


@pytest.mark.parametrize(("n", "share", "points"), [(100, 0.1, 8.9), (200, 0.2, 8.9), (500, 0.3, 6.9), (2000, 0.1, 2.0)])
def test_smallest_difference_that_shows(n: int, share: float, points: float) -> None:
    assert 100 * minimum_detectable(n, share) == pytest.approx(points, abs=0.06)
    assert items_needed(minimum_detectable(n, share), share) in (n, n + 1)


def test_a_difference_of_the_detectable_size_is_seen_four_times_in_five() -> None:
    rng, n, seen = np.random.default_rng(2), 200, 0
    effect = minimum_detectable(n, 0.2)
    for _ in range(600):
        w, x, _ = rng.multinomial(n, [0.1 + effect / 2, 0.1 - effect / 2, 0.8])
        result = paired_difference(*pairs(w, x, n))
        seen += result.interval.low > 0
    assert 0.74 <= seen / 600 <= 0.88
    assert result.minimum_detectable == pytest.approx(effect, rel=0.3)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1, 0], [1]), ([float("nan")], [1]), ([2], [1])])
def test_bad_input_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(DataError):
        paired_difference(a, b)
    with pytest.raises(DataError, match="cannot be"):
        items_needed(0.3, 0.2)
    with pytest.raises(DataError, match="n > 0"):
        minimum_detectable(0, 0.2)
    with pytest.raises(DataError, match="level"):
        paired_difference([1], [1], level=95)

"""Judge-corrected means and length-controlled rates: known answers, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.errors import DataError
from sapwood.stats import corrected_mean, length_controlled


def test_limits_of_the_correction() -> None:
    labels = np.tile([0.0, 1.0], 50)
    perfect = corrected_mean(np.tile([0.0, 1.0], 500), labels, labels)
    useless = corrected_mean(np.full(1000, 0.3), np.full(100, 0.3), labels)
    assert perfect.mean == pytest.approx(0.5)
    assert perfect.trust == pytest.approx(1 / 1.1, abs=0.02)
    assert (useless.mean, useless.trust) == (0.5, 0.0)
    assert perfect.interval.high - perfect.interval.low < 0.5 * (useless.interval.high - useless.interval.low)
    same = corrected_mean(np.ones(100), np.ones(20), np.ones(20))
    assert same.interval.low < 0.99, "labels that happen to agree still leave a width"


def test_a_biased_judge_does_not_move_the_truth() -> None:
    rng = np.random.default_rng(1)
    human = (rng.random(4000) < 0.3).astype(float)
    judge = np.maximum(human, rng.random(4000) < 0.5)  # calls half of the wrong ones right
    found = corrected_mean(judge[400:], judge[:400], human[:400])
    assert found.judge_alone > 0.6
    assert found.interval.low < 0.3 < found.interval.high


@pytest.mark.parametrize("labels", [20, 100])
@pytest.mark.parametrize(("hits", "rejects"), [(0.9, 0.7), (0.95, 0.9), (0.5, 0.5)])
def test_coverage_is_at_least_93_percent(labels: int, hits: float, rejects: float) -> None:
    rng = np.random.default_rng(labels)
    for rate in (0.5, 0.7, 0.9, 0.97):
        covered, runs = 0, 500
        for _ in range(runs):
            human = rng.random(1000 + labels) < rate
            judge = np.where(human, rng.random(len(human)) < hits, rng.random(len(human)) >= rejects).astype(float)
            interval = corrected_mean(judge[labels:], judge[:labels], human[:labels].astype(float)).interval
            covered += interval.low <= rate <= interval.high
        slack = 2 * (0.93 * 0.07 / runs) ** 0.5  # of the simulation itself
        assert covered / runs >= 0.93 - slack, (rate, covered / runs)


def test_the_correction_is_narrower_than_labels_alone() -> None:
    """A judge right in 95 and 90 of 100 takes about a third off; as found by an independent simulation, .179 to .105."""
    rng = np.random.default_rng(3)
    widths, alone = [], []
    for _ in range(100):
        human = rng.random(1100) < 0.7
        judge = np.where(human, rng.random(1100) < 0.95, rng.random(1100) >= 0.9).astype(float)
        own = human[:100].astype(float)
        interval = corrected_mean(judge[100:], judge[:100], own).interval
        widths.append(interval.high - interval.low)
        alone.append(2 * 1.96 * (own.var() / 100) ** 0.5)
    assert np.mean(widths) < 0.75 * np.mean(alone)


def test_what_cannot_be_corrected() -> None:
    for judged, seen, labels, why in (
        ([1.0], [1.0] * 9, [1.0] * 9, "at least 10 labels"),
        ([], [1.0] * 10, [1.0] * 10, "1 other item"),
        ([1.0], [1.0] * 10, [1.0] * 11, "give one for each"),
        ([2.0], [1.0] * 10, [1.0] * 10, "outside of 0..1"),
    ):
        with pytest.raises(DataError, match=why):
            corrected_mean(judged, seen, labels)


def simulated(rng: np.random.Generator, count: int, theta: float, slope: float) -> tuple[np.ndarray, np.ndarray]:
    longer = rng.normal(150, 200, count)
    chance = 1 / (1 + np.exp(-(theta + slope * np.tanh(longer / longer.std()))))
    return (rng.random(count) < chance).astype(float), longer


def test_length_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    equal = length_controlled(*simulated(rng, 2000, 0.0, 2.0))
    assert equal.raw > 0.6
    assert equal.interval.low < 0.5 < equal.interval.high
    assert equal.slope > 1.5
    better = length_controlled(*simulated(rng, 2000, 1.0, 0.0))
    assert better.rate == pytest.approx(better.raw, abs=0.03)
    assert equal.overlap


@pytest.mark.parametrize("theta", [0.0, 1.5])
def test_coverage_of_the_length_controlled_rate(theta: float) -> None:
    rng, covered = np.random.default_rng(5), 0
    for _ in range(400):
        interval = length_controlled(*simulated(rng, 80, theta, 1.0)).interval
        covered += interval.low <= 1 / (1 + np.exp(-theta)) <= interval.high
    assert covered / 400 >= 0.93 - 0.026


def test_length_control_at_its_edges() -> None:
    always = length_controlled(np.ones(40), np.full(40, 100.0))
    assert always.overlap, "no differences in length: there is nothing to control"
    assert 0.8 < always.rate < 1
    one_sided = length_controlled(np.tile([0.0, 1.0], 20), np.linspace(10, 100, 40))
    assert not one_sided.overlap, "one system is always the longer one"
    swapped = length_controlled(1 - np.tile([0.0, 1.0, 1.0], 20), -np.tile([5.0, -3.0, 2.0], 20))
    straight = length_controlled(np.tile([0.0, 1.0, 1.0], 20), np.tile([5.0, -3.0, 2.0], 20))
    assert swapped.rate == pytest.approx(1 - straight.rate)
    with pytest.raises(DataError, match="at least 10"):
        length_controlled([1.0], [2.0])
    with pytest.raises(DataError, match=r"lie in 0\.\.1"):
        length_controlled(np.full(10, 2.0), np.ones(10))


def clustered(rng: np.random.Generator, groups: int, size: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(truth, cluster) of items whose clusters are nearly of one mind."""
    mind = rng.random(groups) < rate
    alike = rng.random((groups, size)) < 0.8
    truth = np.where(alike, mind[:, None], rng.random((groups, size)) < rate)
    return truth.ravel().astype(float), np.repeat(np.arange(groups), size)


def test_coverage_of_the_correction_over_clusters() -> None:
    rng, covered, alone, runs = np.random.default_rng(7), 0, 0, 300
    for _ in range(runs):
        human, cluster = clustered(rng, 100, 8, 0.6)
        judge = np.where(human == 1, rng.random(len(human)) < 0.9, rng.random(len(human)) < 0.3).astype(float)
        labelled = cluster < 30 if rng.random() < 0.5 else rng.random(len(human)) < 0.3  # whole clusters, or a part of each
        given = judge[~labelled], judge[labelled], human[labelled]
        names = {"clusters": list(cluster[~labelled]), "labelled_clusters": list(cluster[labelled])}
        covered += 0.6 in corrected_mean(*given, **names).interval
        alone += 0.6 in corrected_mean(*given).interval
    assert covered / runs >= 0.93 - 0.03
    assert alone / runs < 0.88, "as if each item were its own: too narrow"


def test_clusters_of_one_change_nothing() -> None:
    rng = np.random.default_rng(2)
    judge, human = (rng.random(200) < 0.5).astype(float), (rng.random(50) < 0.5).astype(float)
    plain = corrected_mean(judge[50:], judge[:50], human)
    named = corrected_mean(judge[50:], judge[:50], human, clusters=list(range(150)), labelled_clusters=[f"l{n}" for n in range(50)])
    assert (named.interval.low, named.interval.high) == pytest.approx((plain.interval.low, plain.interval.high))
    one = corrected_mean(judge[50:], judge[:50], human, clusters=["a"] * 150, labelled_clusters=["b"] * 50)
    assert (one.interval.low, one.interval.high) == (0, 1), "one cluster shows nothing"
    with pytest.raises(DataError, match="give one name for each"):
        corrected_mean(judge[50:], judge[:50], human, clusters=[1], labelled_clusters=[1])
    won, longer = simulated(rng, 60, 0.5, 0.5)
    assert length_controlled(won, longer, clusters=list(range(60))).interval.low == pytest.approx(
        length_controlled(won, longer).interval.low
    )
    assert length_controlled(won, longer, clusters=[n % 2 for n in range(60)]).interval.high == 1


def test_coverage_of_the_length_controlled_rate_over_clusters() -> None:
    rng, covered, alone, runs = np.random.default_rng(11), 0, 0, 300
    for _ in range(runs):
        won, cluster = clustered(rng, 40, 6, 0.5)
        longer = rng.normal(0, 100, len(won))
        covered += 0.5 in length_controlled(won, longer, clusters=list(cluster)).interval
        alone += 0.5 in length_controlled(won, longer).interval
    assert covered / runs >= 0.93 - 0.03
    assert alone / runs < 0.85

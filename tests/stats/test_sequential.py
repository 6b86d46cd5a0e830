"""Intervals that may be looked at: the capital's expectation enumerated exactly, false alarms and coverage under peeking simulated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import DataError
from sapwood.stats import detectable, effect_at, effect_over_time, evidence, units_for, units_of, variance_of
from sapwood.stats.sequential import BOLDEST, OCTAVES, half_width

ALARM = math.log(2 / 0.05)


@pytest.mark.parametrize("chances", [(0.5,) * 5, (0.02, 0.1, 0.1, 0.5, 0.9)])
def test_the_capitals_expectation_is_one(chances: tuple[float, ...]) -> None:
    """Over every course that five units can take: a martingale at the true effect, at least 1 on the side that is right."""
    treated_rate, control_rate, planned = 0.3, 0.55, 4
    truth = treated_rate - control_rate
    expected = {m: np.zeros(2) for m in (truth, truth - 0.1, truth + 0.1)}
    for course in itertools.product(((True, 1.0), (True, 0.0), (False, 1.0), (False, 0.0)), repeat=len(chances)):
        chance = 1.0
        for (treated, outcome), pi in zip(course, chances, strict=True):
            rate = treated_rate if treated else control_rate
            chance *= (pi if treated else 1 - pi) * (rate if outcome else 1 - rate)
        units = units_of([arm for arm, _ in course], chances, [outcome for _, outcome in course], planned=planned)
        for m in expected:
            expected[m] += chance * np.exp([side[-1] for side in evidence(units, m)])
    assert expected[truth] == pytest.approx([1, 1], abs=1e-9)
    assert expected[truth - 0.1][0] > 1 > expected[truth - 0.1][1]
    assert expected[truth + 0.1][1] > 1 > expected[truth + 0.1][0]


def peeked(rates: np.ndarray, chances: np.ndarray, times: int, seed: int, planned: int = 1000) -> tuple[float, float]:
    """(share of A/A experiments that are ever called different, the same by a z test at each unit)"""
    rng = np.random.default_rng(seed)
    alarms, naive = 0, 0
    for _ in range(times):
        outcome, treated = (rng.random(len(rates)) < rates).astype(float), rng.random(len(rates)) < chances
        above, below = evidence(units_of(treated, chances, outcome, planned=planned))
        alarms += max(above.max(), below.max()) >= ALARM
        naive += _z_test_ever(treated, outcome)
    return alarms / times, naive / times


def _z_test_ever(treated: np.ndarray, outcome: np.ndarray) -> bool:
    n1, n0 = treated.cumsum(), (~treated).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        p1, p0 = (outcome * treated).cumsum() / n1, (outcome * ~treated).cumsum() / n0
        z = (p1 - p0) / np.sqrt(p1 * (1 - p1) / n1 + p0 * (1 - p0) / n0)
    return bool((np.abs(z[100:]) > 1.96).any())


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02])
def test_looking_after_every_unit_raises_no_false_alarms(rate: float) -> None:
    alarms, naive = peeked(np.full(1000, rate), np.full(1000, 0.5), 200, seed=3)
    assert alarms <= 0.05
    assert naive > 0.15, "a plain test would: what is tested can fail"


def test_ramps_and_drifting_outcomes_raise_none_either() -> None:
    """A naive difference of means takes the drift for an effect where shares move with it; this does not."""
    chances = np.repeat([0.02, 0.1, 0.5], [400, 400, 400])
    assert peeked(np.linspace(0.2, 0.8, 1200), chances, 200, seed=4)[0] <= 0.05


def test_the_interval_covers_at_all_times_at_once() -> None:
    rng = np.random.default_rng(5)
    missed = 0
    points = [5, 20, 60, 150, 400, 800]
    for _ in range(150):
        treated, chance = rng.random(800) < 0.3, np.full(800, 0.3)
        outcome = np.where(treated, rng.beta(4, 3, 800), rng.beta(3, 4, 800))
        missed += any(not e.low <= 1 / 7 <= e.high for e in effect_over_time(units_of(treated, chance, outcome, planned=800), 0.05, points))
    assert missed / 150 <= 0.05


def test_the_interval_is_what_no_bet_has_refuted() -> None:
    rng = np.random.default_rng(6)
    treated = rng.random(500) < 0.4
    units = units_of(treated, np.full(500, 0.4), (rng.random(500) < np.where(treated, 0.7, 0.5)).astype(float), planned=500)
    found = effect_at(units, 500, 0.05)
    assert evidence(units, found.low)[0][-1] == pytest.approx(ALARM, abs=1e-3)
    assert evidence(units, found.high)[1][-1] == pytest.approx(ALARM, abs=1e-3)
    assert found.low < found.mean < found.high
    assert found.shown == 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.sampled_from([0.05, 0.5, 0.9])), max_size=60))
def test_changing_the_arms_over_mirrors_everything(rows: list[tuple[bool, float, float]]) -> None:
    treated, outcome, chance = (np.array([row[place] for row in rows]) for place in range(3))
    one = effect_at(units_of(treated, chance, outcome, planned=50), len(rows), 0.05)
    other = effect_at(units_of(~treated.astype(bool), 1 - chance, outcome, planned=50), len(rows), 0.05)
    assert -1 <= one.low <= one.mean <= one.high <= 1
    assert (other.mean, other.low, other.high) == pytest.approx((-one.mean, -one.high, -one.low), abs=2e-5)


def test_no_bet_can_be_ruined() -> None:
    rng = np.random.default_rng(7)
    chance = rng.uniform(0.001, 0.999, 300)
    units = units_of(rng.random(300) < chance, chance, rng.integers(0, 2, 300), planned=300)
    for m in (-1.0, 0.0, 1.0):
        assert all(np.isfinite(side).all() for side in evidence(units, m))
    assert BOLDEST < 1
    assert OCTAVES[0] == -1


@pytest.mark.parametrize(("rate", "n"), [(0.5, 500), (0.5, 4000), (0.1, 4000), (0.05, 20000)])
def test_planned_widths_are_those_that_come(rate: float, n: int) -> None:
    rng = np.random.default_rng(8)
    units = units_of(rng.random(n) < 0.5, np.full(n, 0.5), (rng.random(n) < rate).astype(float), planned=n)
    found = effect_at(units, n, 0.05)
    assert (found.high - found.low) / 2 == pytest.approx(half_width(n, variance_of(rate), 0.05, n), rel=0.08)


def test_planned_units_show_the_planned_effect() -> None:
    delta, variance = 0.1, variance_of(0.5)
    n = units_for(delta, variance, 0.05, planned=1000, power=0.8)
    assert detectable(n, variance, 0.05, planned=1000, power=0.8) == pytest.approx(delta, abs=1e-3)
    rng = np.random.default_rng(9)
    shown = 0
    for _ in range(120):
        treated = rng.random(n) < 0.5
        outcome = (rng.random(n) < np.where(treated, 0.55, 0.45)).astype(float)
        shown += evidence(units_of(treated, np.full(n, 0.5), outcome, planned=1000))[0].max() >= ALARM
    assert 0.75 <= shown / 120 <= 0.97


def test_nothing_yet_says_nothing() -> None:
    found = effect_at(units_of([], [], [], planned=100), 0, 0.05)
    assert (found.n, found.low, found.high, found.shown) == (0, -1, 1, 0)


@pytest.mark.parametrize(
    ("treated", "chance", "outcome", "words"),
    [([True], [0.5, 0.5], [1], "differ in length"), ([True], [1.0], [1], "strictly between"), ([True], [0.5], [2], "outside of 0..1")],
)
def test_what_cannot_be_compared_is_refused(treated: list[bool], chance: list[float], outcome: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        units_of(treated, chance, outcome, planned=10)

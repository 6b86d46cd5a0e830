"""The check of a split: its expectation enumerated exactly, false alarms under looking, and faults that it must find."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sapwood.errors import DataError
from sapwood.stats import split_evidence

ALARM = math.log(1000)


def test_the_evidences_expectation_is_one_at_every_moment() -> None:
    """Over every course of six units through a ramp with three arms."""
    chances = np.array([[0.8, 0.1, 0.1]] * 3 + [[0.5, 0.3, 0.2]] * 3)
    expected = np.zeros(6)
    for course in itertools.product(range(3), repeat=6):
        chance = math.prod(chances[place, arm] for place, arm in enumerate(course))
        expected += chance * np.exp(split_evidence(list(course), chances))
    assert expected == pytest.approx(np.ones(6), abs=1e-9)


def first_alarm(share: float, n: int, seed: int) -> float:
    found = np.flatnonzero(split_evidence((np.random.default_rng(seed).random(n) < share).astype(int), [0.5, 0.5]) >= ALARM)
    return float(found[0] + 1) if len(found) else math.inf


def test_a_right_split_raises_no_alarm_and_a_wrong_one_does() -> None:
    assert all(first_alarm(0.5, 5000, seed) == math.inf for seed in range(100))
    assert np.median([first_alarm(0.55, 10_000, seed) for seed in range(10)]) < 3000


def test_one_point_too_many_is_found() -> None:
    assert np.median([first_alarm(0.51, 150_000, seed) for seed in range(5)]) < 100_000


def test_what_cannot_happen_is_proof() -> None:
    found = split_evidence([0, 1, 0], [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])
    assert np.isinf(found).tolist() == [False, True, True]


@pytest.mark.parametrize(("arms", "chances"), [([0, 1], [[0.5, 0.5]]), ([2], [0.5, 0.5]), ([0], [0.5, 0.6])])
def test_what_is_no_split_is_refused(arms: list[int], chances: list[float]) -> None:
    with pytest.raises(DataError):
        split_evidence(arms, chances)

"""Places of units: uniform over a million, one place and one key for one name, nothing of the place in the key."""

from __future__ import annotations

import numpy as np
from scipy import stats

from ab.trial import PLAN, plan_with
from sapwood.ab.assign import unit_of

ALPHA = 1e-4
"""A fixed set of names gives a fixed answer: this says how odd it may be."""


def places(salt: str, n: int) -> np.ndarray:
    plan = plan_with(salt=salt)
    return np.array([unit_of(plan, f"user-{number}").place for number in range(n)])


def test_a_million_units_are_uniform() -> None:
    found = places("", 1_000_000)
    for bins in (2, 10, 1000):
        counts = np.histogram(found, bins, (0, 1))[0]
        assert stats.chisquare(counts).pvalue > ALPHA, bins


def test_two_experiments_share_nothing() -> None:
    one, other = places("a", 100_000), places("b", 100_000)
    table = np.histogram2d(one, other, 10, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(table.ravel()).pvalue > ALPHA


def test_a_unit_is_one_unit_and_its_key_says_nothing_of_its_place() -> None:
    units = [unit_of(PLAN, f"user-{number}") for number in range(20_000)]
    assert units == [unit_of(PLAN, f"user-{number}") for number in range(20_000)]
    assert len({unit.key for unit in units}) == len(units)
    from_keys = np.array([int(unit.key[:8], 16) / 2**32 for unit in units])
    assert abs(np.corrcoef(from_keys, [unit.place for unit in units])[0, 1]) < 0.03
    assert unit_of(PLAN, "\ud800") != unit_of(PLAN, "")

"""Strengths from choices: against the closed form, a numeric optimum, and at their nominal coverage on raters of known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from sapwood.errors import DataError
from sapwood.stats import agreement_of, strengths_of


def many(dice: np.random.Generator, gaps: np.ndarray, tie: float) -> np.ndarray:
    """One choice for each gap."""
    weights = np.stack([np.exp(gaps / 2), np.full(len(gaps), math.exp(tie)), np.exp(-gaps / 2)], axis=1)
    drawn = dice.random(len(gaps)) * weights.sum(1)
    return np.where(drawn < weights[:, 0], 1.0, np.where(drawn < weights[:, 0] + weights[:, 1], 0.5, 0.0))


def test_two_without_ties_are_the_log_odds() -> None:
    found = strengths_of(["a"] * 100, ["b"] * 100, [1] * 73 + [0] * 27, range(100), anchor="b")
    assert found.strength["a"] == pytest.approx(math.log(73 / 27), abs=1e-8)
    half = (found.interval["a"].high - found.interval["a"].low) / 2
    assert half == pytest.approx(1.984 * math.sqrt(1 / 73 + 1 / 27), rel=0.03)
    assert found.tie is None


def test_it_stands_at_the_top_of_the_likelihood() -> None:
    dice = np.random.default_rng(3)
    truth = {"a": 0.8, "b": 0.0, "c": -0.5}
    pairs = [tuple(dice.permutation(list(truth))[:2]) for _ in range(500)]
    length = dice.normal(size=500)
    outcomes = many(dice, np.array([truth[x] - truth[y] for x, y in pairs]) + 0.4 * length, -0.3)
    found = strengths_of([x for x, _ in pairs], [y for _, y in pairs], outcomes, range(500), anchor="b", controls={"length": length})

    def loss(parameters: np.ndarray) -> float:
        strength = {"a": parameters[0], "b": 0.0, "c": parameters[1]}
        gap = np.array([strength[x] - strength[y] for x, y in pairs]) + parameters[2] * length
        total = np.log(np.exp(gap / 2) + np.exp(-gap / 2) + np.exp(parameters[3]))
        return float(-np.sum(np.where(outcomes == 0.5, parameters[3], (outcomes - 0.5) * gap) - total))

    best = minimize(loss, np.zeros(4), method="BFGS")
    assert [found.strength["a"], found.strength["c"], found.slopes["length"], found.tie] == pytest.approx(best.x, abs=2e-4)


def test_intervals_cover_at_their_level_with_raters_of_one_item_together() -> None:
    dice = np.random.default_rng(6)
    plain = controlled = 0
    repeats, items, raters = 500, 70, 3
    names = (["a"] * (items * raters), ["b"] * (items * raters))
    clusters = [vote // raters for vote in range(items * raters)]
    for _ in range(repeats):
        left = dice.choice([-1.0, 1.0], size=items * raters)
        outcomes = many(dice, 0.7 + 0.5 * left, -0.4)
        found = strengths_of(*names, outcomes, clusters, anchor="b", controls={"left": left})
        plain += 0.7 in found.interval["a"]
        controlled += 0.5 in found.slope_intervals["left"]
    assert 0.93 <= plain / repeats <= 0.98
    assert 0.93 <= controlled / repeats <= 0.98


def test_items_of_their_own_mind_make_the_robust_interval_wider_and_right() -> None:
    """Where each item leans its own way, votes on it go together: what is averaged is the marginal strength."""
    dice = np.random.default_rng(8)
    big = many(dice, 0.6 + dice.normal(0, 1.2, 200_000), -0.4)
    truth = strengths_of(["a"] * len(big), ["b"] * len(big), big, range(len(big)), anchor="b").strength["a"]
    covered = alone = 0
    names = (["a"] * 300, ["b"] * 300)
    for _ in range(200):
        outcomes = many(dice, np.repeat(0.6 + dice.normal(0, 1.2, 60), 5), -0.4)
        covered += truth in strengths_of(*names, outcomes, [vote // 5 for vote in range(300)], anchor="b").interval["a"]
        alone += truth in strengths_of(*names, outcomes, range(300), anchor="b").interval["a"]
    assert covered >= 0.91 * 200
    assert alone < covered, "votes of one item are no independent votes"


def test_who_was_never_beaten_has_no_finite_strength() -> None:
    found = strengths_of(["a"] * 9, ["b"] * 9, [1] * 9, range(9), anchor="b")
    assert found.strength == {}
    assert "never beaten" in found.note
    apart = strengths_of(["a", "c"] * 9, ["b", "d"] * 9, [1, 0, 0, 1] * 4 + [1, 0], range(18), anchor="b")
    assert "never beaten" in apart.note
    for outcome, anchor in (([2.0], "b"), ([1.0], "z")):
        with pytest.raises(DataError):
            strengths_of(["a"], ["b"], outcome, [1], anchor=anchor)


def test_ordinal_and_interval_alpha_against_the_published_example() -> None:
    """Krippendorff (2011), §C to §F: four observers, twelve units."""
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    ratings = {unit: [int(row[unit]) for row in rows if row[unit] != "."] for unit in range(12)}
    assert agreement_of(ratings).alpha == pytest.approx(0.743, abs=5e-4)
    assert agreement_of(ratings, "ordinal").alpha == pytest.approx(0.815, abs=1e-3)
    assert agreement_of(ratings, "interval").alpha == pytest.approx(0.849, abs=1e-3)


def test_the_interval_of_alpha_covers_on_raters_whose_truth_is_known() -> None:
    def rated(dice: np.random.Generator, units: int) -> dict[int, list[int]]:
        truth = dice.integers(0, 3, units)
        noise = dice.random((units, 3)) < 0.25
        return {unit: [int(dice.integers(0, 3)) if wrong else int(truth[unit]) for wrong in noise[unit]] for unit in range(units)}

    truth = agreement_of(rated(np.random.default_rng(0), 60_000)).alpha
    assert truth == pytest.approx(0.75**2, abs=0.01)  # two raters agree beyond chance where both know
    inside = 0
    for seed in range(150):
        interval = agreement_of(rated(np.random.default_rng(seed + 1), 80)).interval
        inside += interval is not None and truth in interval
    assert inside >= 0.90 * 150


def test_many_units_cost_little_and_change_nothing() -> None:
    few = {unit: ["a", "a", "b"] if unit % 3 else ["b", "b"] for unit in range(30)}
    many = {(unit, copy): values for unit, values in few.items() for copy in range(1000)}
    assert agreement_of(many).alpha == pytest.approx(agreement_of(few).alpha, abs=0.02)
    assert agreement_of(many).units == 30_000
    assert agreement_of({}).alpha is None
    assert agreement_of({1: ["a", "a"], 2: ["a", "a"]}).alpha is None

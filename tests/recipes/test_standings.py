"""The winner of a sweep: chosen by some rows, judged by others, and the number given for it has no bias."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sapwood.evaluate import ArmScore
from sapwood.recipes.standings import Point, standings


def point(name: str, parts: np.ndarray, right: np.ndarray) -> Point:
    scores = tuple(ArmScore("tuned", f"i{n}", None, float(value), None, "", "", "stop", 1, 1, 0.0) for n, value in enumerate(right))
    return Point(name, Path(name), {"seed": name}, float(parts.mean()), tuple(parts), scores)


def equal_points(rng: np.random.Generator, count: int = 6, items: int = 20) -> list[Point]:
    """Points that are alike: on each row a loss around 1, on each item right half of the time, one item as hard for all."""
    hard = rng.normal(0, 0.3, 16)
    return [point(f"p{n}", 1 + hard + rng.normal(0, 0.3, 16), (rng.random(items) < 0.5).astype(float)) for n in range(count)]


def test_the_winners_score_is_unbiased_where_the_best_of_its_loss_is_not() -> None:
    rng = np.random.default_rng(0)
    repeats = 300
    tables = [standings(equal_points(rng)).table for _ in range(repeats)]
    rates = [line.rate.rate for table in tables if (line := table[0]).rate is not None and line.rate.rate is not None]
    error = 0.5 / np.sqrt(20 * repeats)
    assert abs(np.mean(rates) - 0.5) < 4 * error, "chosen by other rows: no bias beyond noise"
    flattered = 1 - np.mean([table[0].point.loss for table in tables])
    assert flattered > 0.05, "the loss that chose is lower than the truth, and is said to be"
    best = [max(line.rate.rate for line in table if line.rate is not None and line.rate.rate is not None) for table in tables]
    assert np.mean(best) - 0.5 > 20 * error, "what choosing by the score itself would have claimed"


def test_equal_points_are_seldom_told_apart() -> None:
    """Six points alike: the whole table says nothing false in nineteen of twenty sweeps, for losses and for scores."""
    rng = np.random.default_rng(1)
    repeats = 200
    wrong = sum(any(line.apart for line in standings(equal_points(rng)).table[1:]) for _ in range(repeats))
    assert wrong / repeats < 0.15, "5 % for losses and 5 % for scores, and the noise of 200 sweeps"


def test_what_is_different_is_told_apart_and_said() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 0.3, 16)
    good = point("good", 1 + hard, np.ones(40))
    alike = point("alike", 1.001 + hard + np.tile([0.05, -0.05], 8), np.ones(40))
    bad = point("bad", 2 + hard + rng.normal(0, 0.01, 16), np.zeros(40))
    found = standings([bad, alike, good])
    assert [line.point.name for line in found.table] == ["good", "alike", "bad"]
    assert [line.apart for line in found.table] == [False, False, True]
    said = " ".join(found.sentences)
    assert "Not told apart from it by loss or score: alike." in said
    assert "40 items that chose nothing" in said
    assert "The best of 3 looks better than it is" in said


def test_one_point_and_points_without_scores() -> None:
    alone = standings([Point("a", Path("a"), {}, 1.0, (), ())])
    assert alone.winner.name == "a"
    assert len(alone.sentences) == 1
    two = standings([Point("a", Path("a"), {}, 1.0, (1.0,), ()), Point("b", Path("b"), {}, 0.5, (0.5,), ())])
    assert two.winner.name == "b"
    assert two.table[1].loss_difference is None
    assert "Not told apart" in two.sentences[1]

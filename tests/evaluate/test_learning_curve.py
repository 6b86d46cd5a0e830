"""The learning curve: its interval holds the truth on simulated pilots, its numbers agree with each other, bad input is refused.

`python tests/evaluate/test_learning_curve.py` prints the table of docs/decide.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from sapwood.errors import DataError
from sapwood.evaluate.learning_curve import LearningCurve, learning_curve

Truth = Callable[[float], float]
SIZES = (50, 100, 200, 400)


def truths(random: np.random.Generator) -> dict[str, Truth]:
    """Rates by rows, of shapes that the fitted family holds (power, flat) and that it does not (exponential, sigmoid, logarithm)."""
    floor, top = random.uniform(0, 0.4), random.uniform(0.6, 1)
    exponent, scale = random.uniform(0.2, 1.2), math.exp(random.uniform(math.log(5), math.log(200)))
    soon, middle, width = (math.exp(random.uniform(math.log(a), math.log(b))) for a, b in ((40, 600), (60, 800), (0.5, 1.2)))
    start, slope, level = random.uniform(0.05, 0.5), random.uniform(0.02, 0.08), random.uniform(0.02, 0.95)
    return {
        "power": lambda n: 1 - floor - (top - floor) * (1 + n / scale) ** -exponent,
        "exponential": lambda n: 1 - floor - (top - floor) * math.exp(-n / soon),
        "sigmoid": lambda n: 1 - floor - (0.98 - floor) * special.expit(-(math.log(n / middle)) / width),
        "logarithm": lambda n: min(0.97, start + slope * math.log2(n / 50)),
        "flat": lambda n: level,
    }


def answers(rate: float, ease_I: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Right or wrong on items of which some are easier than others, for all trainings alike."""
    own_I = random.standard_normal(len(ease_I))
    return (math.sqrt(0.5) * (ease_I + own_I) < special.ndtri(min(max(rate, 1e-9), 1 - 1e-9))).astype(float)


def simulated(
    truth: Truth,
    base: float,
    items: int,
    trainings: int,
    random: np.random.Generator,
    noise: float,
    *,
    sizes: tuple[int, ...] = SIZES,
    draws: int = 200,
) -> LearningCurve:
    ease_I = random.standard_normal(items)
    rows = [size for size in sizes for _ in range(trainings)]
    scores = [answers(truth(size) + noise * random.standard_normal(), ease_I, random) for size in rows]
    return learning_curve(rows, scores, answers(base, ease_I, random), draws=draws, seed=int(random.integers(1 << 30)))


@dataclass
class Coverage:
    """How often the interval of a further training run's rate held it, and its mean width, by shape; and that of its gain, by shape."""

    rate: dict[str, float]
    width: dict[str, float]
    gain: dict[str, float]


def coverage(items: int, trainings: int, ahead: int, pilots: int, *, sizes: tuple[int, ...] = SIZES, draws: int = 200) -> Coverage:
    """Over `pilots` simulated pilots of each shape; the further training is on `ahead` times the largest pilot's rows."""
    found: dict[str, list[tuple[bool, float, bool]]] = {}
    for seed in range(pilots):
        random = np.random.default_rng(seed)
        for name, truth in truths(random).items():
            base, rows = random.uniform(0.02, 0.8), ahead * sizes[-1]
            curve = simulated(truth, base, items, trainings, random, noise=0.03, sizes=sizes, draws=draws)
            reached = min(1.0, max(0.0, truth(rows) + 0.03 * random.standard_normal()))
            rate, gain = curve.rate_at(rows), curve.gain_at(rows)
            held = rate.low <= reached <= rate.high, rate.high - rate.low, gain.low <= reached - base <= gain.high
            found.setdefault(name, []).append(held)
    parts = [{name: float(np.mean([one[part] for one in all_of])) for name, all_of in found.items()} for part in range(3)]
    return Coverage(*parts)


@pytest.mark.parametrize(("items", "trainings", "ahead"), [(100, 1, 1), (100, 2, 10), (200, 2, 4), (50, 1, 4)])
def test_the_interval_holds_the_truth_nine_times_in_ten(items: int, trainings: int, ahead: int) -> None:
    found = coverage(items, trainings, ahead, pilots=14)
    assert np.mean(list(found.rate.values())) > 0.85, found
    assert np.mean(list(found.gain.values())) > 0.83, found
    assert min(found.rate.values()) >= 0.7, "no shape is hopeless"
    assert max(found.width.values()) < 0.6, "nor is the interval everything"


def test_the_interval_is_not_wide_for_nothing() -> None:
    """More items, and less far ahead, say more; the middle lies near the truth."""
    random = np.random.default_rng(0)
    truth = truths(random)["power"]
    widths, misses = {}, []
    for items, ahead in ((50, 4), (400, 4), (400, 1)):
        found = [simulated(truth, 0.2, items, 2, np.random.default_rng(seed), 0.02).rate_at(400 * ahead) for seed in range(8)]
        widths[items, ahead] = np.mean([one.high - one.low for one in found])
        misses += [abs(one.middle - truth(400 * ahead)) for one in found]
    assert widths[50, 4] > widths[400, 4] > widths[400, 1]
    assert widths[400, 1] < 0.2
    assert np.mean(misses) < 0.06


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_rate_and_rows_agree(seed: int, wish: float) -> None:
    random = np.random.default_rng(seed)
    curve = simulated(truths(random)["power"], 0.3, 40, 1, random, 0.03)
    rates = [curve.rate_at(rows).middle for rows in (50, 400, 3200, 10**6)]
    assert rates == sorted(rates), "more rows never lower what is expected"
    needed = curve.rows_for(wish)
    assert needed.rows.low <= needed.rows.middle <= needed.rows.high
    assert 0 <= needed.reached <= 1
    harder = curve.rows_for(min(1.0, wish + 0.05))
    assert harder.rows.middle >= needed.rows.middle
    assert harder.reached <= needed.reached
    if math.isfinite(needed.rows.high) and needed.rows.middle > 40:  # rounded up: of fewer rows, many repetitions agree
        average = np.sort(1 - curve.floor_R - (curve.top_R - curve.floor_R) * (1 + needed.rows.middle / curve.scale_R) ** -curve.exponent_R)
        assert np.mean(average >= wish - 1e-9) == pytest.approx(0.5, abs=0.05), "at the middle half of the repetitions are there"


def test_every_answer_right_or_wrong_is_not_known_for_sure() -> None:
    for value in (0.0, 1.0):
        curve = learning_curve(SIZES, np.full((4, 30), value), np.full(30, value), draws=500)
        rate = curve.rate_at(400)
        assert rate.high - rate.low > 0.02
        assert curve.rows_for(1.0).reached < 1 or value == 1.0


def test_clusters_widen_and_the_same_seed_repeats() -> None:
    random = np.random.default_rng(3)
    of_cluster = (random.random(12) < 0.5).astype(float)
    scores = np.tile(np.repeat(of_cluster, 10), (4, 1))
    names = [f"c{n // 10}" for n in range(120)]
    alone, together = learning_curve(SIZES, scores), learning_curve(SIZES, scores, clusters=names)
    wide, narrow = together.rate_at(400), alone.rate_at(400)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    assert learning_curve(SIZES, scores).rate_at(400) == narrow
    assert learning_curve(SIZES, scores, seed=1).rate_at(400) != narrow


def test_pairing_narrows_the_gain() -> None:
    """Where the other arm is right on the same items, most of the items' luck cancels."""
    random = np.random.default_rng(5)
    base = (random.random(80) < 0.5).astype(float)
    scores = np.tile(base, (4, 1))
    scores[:, :4] = 1.0
    gain = learning_curve(SIZES, scores, base).gain_at(400)
    other = learning_curve(SIZES, scores, random.permutation(base)).gain_at(400)
    assert gain.high - gain.low < other.high - other.low


@pytest.mark.parametrize(
    ("rows", "scores", "base", "clusters"),
    [
        ([50], np.ones((1, 4)), None, None),
        ([50, 50], np.ones((2, 4)), None, None),
        ([50, 100], np.ones((3, 4)), None, None),
        ([50, 100], np.full((2, 4), math.nan), None, None),
        ([50, 100], np.full((2, 4), 1.5), None, None),
        ([50, 100], np.ones((2, 0)), None, None),
        ([50, 100], np.ones((2, 4)), np.ones(3), None),
        ([50, 100], np.ones((2, 4)), None, ["a"]),
        ([0, 100], np.ones((2, 4)), None, None),
    ],
)
def test_what_makes_no_curve_is_refused(rows: list[int], scores: np.ndarray, base: np.ndarray | None, clusters: list[str] | None) -> None:
    with pytest.raises(DataError):
        learning_curve(rows, scores, base, clusters)


if __name__ == "__main__":
    print("| items | sizes | trainings each | rows ahead | rate | gain | power | exponential | sigmoid | logarithm | flat | width |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for items, sizes, trainings, ahead in (
        (100, SIZES, 1, 1),
        (100, SIZES, 1, 4),
        (100, SIZES, 1, 10),
        (100, SIZES, 2, 4),
        (200, SIZES, 2, 4),
        (50, SIZES, 1, 4),
        (100, (50, 200, 400), 1, 4),
        (100, (50, 400), 1, 4),
    ):
        found = coverage(items, trainings, ahead, 100, sizes=sizes, draws=500)
        rate, gain, width = (float(np.mean(list(part.values()))) for part in (found.rate, found.gain, found.width))
        cells = [str(items), " ".join(map(str, sizes)), str(trainings), f"{ahead} ×", f"{rate:.0%}", f"{gain:.0%}"]
        print(f"| {' | '.join([*cells, *(f'{value:.0%}' for value in found.rate.values()), f'{100 * width:.0f}'])} |", flush=True)

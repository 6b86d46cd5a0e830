"""A B A B …, medians, and ratios of what ran next to each other."""

from __future__ import annotations

import statistics

import pytest
from bench.rounds import alternate, least, ratio, summary
from hypothesis import given
from hypothesis import strategies as st

SECONDS = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=9)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True), st.integers(1, 5))
def test_each_runs_once_a_round_in_the_order_given(names: list[str], rounds: int) -> None:
    ran: list[str] = []
    told: list[tuple[int, str]] = []

    def worker(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    times = alternate({name: lambda name=name: worker(name) for name in names}, rounds, lambda n, name, _: told.append((n, name)))
    assert ran == names * rounds
    assert told == [(n, name) for n in range(rounds) for name in names]
    assert [seconds for row in zip(*times.values(), strict=True) for seconds in row] == [float(n + 1) for n in range(len(ran))]


@given(SECONDS, st.floats(0.1, 10.0))
def test_a_slow_round_slows_both_and_leaves_the_ratio(ours: list[float], factor: float) -> None:
    assert ratio([seconds * factor for seconds in ours], ours) == pytest.approx(factor)


def test_the_ratio_is_the_median_of_rounds_not_of_medians() -> None:
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 8.0]) == 2.0
    assert statistics.median([2.0, 30.0, 8.0]) / statistics.median([1.0, 10.0, 8.0]) == 1.0


def test_a_peer_is_measured_by_its_best_setting_of_each_round() -> None:
    times = {"ours": [1.0, 1.0], "default": [4.0, 2.0], "two processes": [3.0, 5.0]}
    assert least(times, ["default", "two processes"]) == [3.0, 2.0]


@given(SECONDS)
def test_summary_holds_every_round(seconds: list[float]) -> None:
    found = summary(seconds, 1000)
    assert found["least_seconds"] <= found["median_seconds"] <= found["most_seconds"]
    assert found["per_second"] * found["median_seconds"] == pytest.approx(1000)
    assert found["seconds"] == seconds


def test_half_a_comparison_is_none() -> None:
    def fails() -> float:
        raise RuntimeError("one contestant failed")

    with pytest.raises(RuntimeError, match="one contestant"):
        alternate({"a": lambda: 1.0, "b": fails}, 3)

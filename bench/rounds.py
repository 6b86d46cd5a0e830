"""Side by side: A B A B …, so that whatever else the machine does meets all contestants alike; then medians and ratios.

A ratio is the median of each round's ratio, never a ratio of medians: the two halves of a round ran next to each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sapwood.errors import ConfigError

Times = dict[str, list[float]]
"""Seconds of each contestant, one number a round."""


def at_least(least: int, **counts: int) -> None:
    """Raise `ConfigError` for a number of rows, tokens or rounds below `least`."""
    for name, value in counts.items():
        if value < least:
            raise ConfigError(f"{name} is {value}; give a whole number from {least} on.")


def alternate(work: Mapping[str, Callable[[], float]], rounds: int, after: Callable[[int, str, float], None] | None = None) -> Times:
    """Run each contestant once a round, in the order given, `rounds` times. `work` returns its seconds, so it holds the clock.

    `after(round, name, seconds)` is told of each. An error of one ends all: half a comparison is none.
    """
    times: Times = {name: [] for name in work}
    for number in range(rounds):
        for name, run in work.items():
            seconds = run()
            times[name].append(seconds)
            if after is not None:
                after(number, name, seconds)
    return times


def least(times: Times, names: Sequence[str]) -> list[float]:
    """In each round the fastest of `names`: a peer with several settings is measured by its best."""
    return [min(row) for row in zip(*(times[name] for name in names), strict=True)]


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as fast the second is: the median over rounds of its seconds into the first's."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def summary(seconds: Sequence[float], work: float) -> dict[str, Any]:
    """Median, spread and speed of one contestant; `work` is what a round holds (rows, tokens)."""
    middle = statistics.median(seconds)
    return {
        "median_seconds": middle,
        "least_seconds": min(seconds),
        "most_seconds": max(seconds),
        "per_second": work / middle,
        "seconds": list(seconds),
    }

"""What answers cost: prices and what was measured in; dollars a thousand queries, dollars a right answer, break-even out.

A hosted model is paid by the token, one's own machine by the hour. Own answers cost the seconds that they took here, asked in
batches; another machine has other seconds, and its price belongs to it. Left out on purpose: prices of any provider (they
change, and the user knows his own), discounts for cached prompts, and the price of people's time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sapwood.config import load_yaml
from sapwood.errors import ConfigError
from sapwood.evaluate.experiment import ArmScore
from sapwood.evaluate.verdict import arm_result
from sapwood.requirements import Prices
from sapwood.stats import Interval


def prices_from(file: Path | None, flags: Prices) -> Prices:
    """Prices of a small YAML file (`hosted_in: 3.0` …), with those given as flags over them. Raises `ConfigError`."""
    prices = flags
    if file is not None:
        given = {field.name: getattr(flags, field.name) for field in fields(flags) if getattr(flags, field.name) != field.default}
        prices = replace(load_yaml(Prices, file), **given)
    if (prices.hosted_in is None) != (prices.hosted_out is None):
        raise ConfigError("A hosted model has two prices: give both hosted_in and hosted_out, in dollars a million tokens.")
    return prices


@dataclass(frozen=True, slots=True)
class ArmCost:
    """One way to answer. Money is None where a price is not known."""

    arm: str
    rate: float | None
    interval: Interval | None
    tokens_in: float
    """Mean tokens of a prompt."""
    tokens_out: float
    seconds: float | None
    """Of this machine, a query; None for a hosted model."""
    a_thousand: float | None
    """Dollars a thousand queries."""
    right: float | None
    """Dollars a right answer: `a_thousand` / 1000 / rate. Infinite where nothing is right."""
    right_range: tuple[float, float] | None
    """With the ends of the rate's interval."""

    def to_dict(self) -> dict[str, Any]:
        """For machines: dollars, tokens and seconds; infinite costs are None."""
        ends = None if self.right_range is None else [_finite(value) for value in self.right_range]
        return {
            "rate": self.rate,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "seconds": self.seconds,
            "dollars_a_thousand": self.a_thousand,
            "dollars_a_right_answer": _finite(self.right),
            "dollars_a_right_answer_range": ends,
        }


def own_cost(arm: str, scores: Sequence[ArmScore], prices: Prices) -> ArmCost:
    """An arm that was asked on this machine. Raises nothing for an arm without scores that count: its rate is None."""
    result, count = arm_result(scores), max(1, len(scores))
    seconds = sum(score.seconds for score in scores) / count
    dollars = None if prices.machine_hour is None else 1000 * seconds / 3600 * prices.machine_hour
    tokens_in, tokens_out = (sum(getattr(score, name) for score in scores) / count for name in ("tokens_in", "tokens_out"))
    return _arm_cost(arm, result.rate, result.interval, tokens_in, tokens_out, seconds, dollars)


def hosted_cost(arm: str, rate: float | None, interval: Interval | None, tokens_in: float, tokens_out: float, prices: Prices) -> ArmCost:
    """A hosted model that reads and writes so many tokens a query."""
    dollars = None
    if prices.hosted_in is not None and prices.hosted_out is not None:
        dollars = (tokens_in * prices.hosted_in + tokens_out * prices.hosted_out) / 1000  # a thousand queries, prices a million
    return _arm_cost(arm, rate, interval, tokens_in, tokens_out, None, dollars)


def with_rate(cost: ArmCost, rate: float, interval: Interval) -> ArmCost:
    """The same queries at the same price, right so often."""
    return _arm_cost(cost.arm, rate, interval, cost.tokens_in, cost.tokens_out, cost.seconds, cost.a_thousand)


def _arm_cost(
    arm: str,
    rate: float | None,
    interval: Interval | None,
    tokens_in: float,
    tokens_out: float,
    seconds: float | None,
    dollars: float | None,
) -> ArmCost:
    right = _over(dollars, rate)
    ends = None
    if dollars is not None and interval is not None:
        cheapest, dearest = _over(dollars, interval.high), _over(dollars, interval.low)
        assert cheapest is not None
        assert dearest is not None
        ends = (cheapest, dearest)
    return ArmCost(arm, rate, interval, tokens_in, tokens_out, seconds, dollars, right, ends)


def _over(dollars: float | None, rate: float | None) -> float | None:
    if dollars is None or rate is None:
        return None
    return dollars / 1000 / rate if rate > 0 else math.inf


@dataclass(frozen=True, slots=True)
class BreakEven:
    """How many queries it takes until a tuned model of one's own has paid for itself."""

    once: float
    """Dollars: setup and the training run."""
    saved: float
    """Dollars a thousand queries, against what is replaced; below 0 where the tuned model costs more."""
    queries: float
    """Infinite where nothing is saved."""
    months: float | None
    """At the queries to expect; None where none are named."""

    def to_dict(self) -> dict[str, Any]:
        """For machines; None where it never comes."""
        months = None if self.months is None else _finite(self.months)
        return {"dollars_once": self.once, "saved_a_thousand": self.saved, "queries": _finite(self.queries), "months": months}


def break_even(tuned: ArmCost, replaced: ArmCost, training_seconds: float, prices: Prices) -> BreakEven | None:
    """Once ÷ saved: None where the price of either side is not known."""
    if tuned.a_thousand is None or replaced.a_thousand is None or prices.machine_hour is None:
        return None
    once = prices.setup + training_seconds / 3600 * prices.machine_hour
    saved = replaced.a_thousand - tuned.a_thousand
    queries = 1000 * once / saved if saved > 0 else math.inf
    months = None
    if prices.queries_a_month:
        months = queries / prices.queries_a_month
    return BreakEven(once, saved, queries, months)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

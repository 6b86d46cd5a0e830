"""Experiments of tests: a plan, a clock that stands still until it is told, and units that come and give outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sapwood.ab.assign import override_of, unit_of
from sapwood.ab.plan import Arm, Metric, Plan
from sapwood.ab.records import Book, begin

PLAN = Plan(
    name="short",
    model="assistant",
    arms=(Arm(name="long"), Arm(name="short", share=0.5, system="Be short.")),
    metrics=(Metric(name="resolved"), Metric(name="seconds", high=20, better="lower", clip=True, margin=2)),
    primary="resolved",
    guardrails=("seconds",),
    effect=0.05,
    window="0s",
    units=1000,
)


def plan_with(**knobs: Any) -> Plan:
    """The plan, but for these."""
    return replace(PLAN, **knobs)


class Clock:
    """Says what it was told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Trial:
    """An experiment under way."""

    plan: Plan
    book: Book
    clock: Clock
    asked: int = 0

    def ask(self, name: str) -> int:
        """A unit asks once; the arm that answers."""
        self.asked += 1
        return self.book.expose(unit_of(self.plan, name), override_of(self.plan, name), f"{self.asked}").answers

    def say(self, name: str, **outcomes: float) -> None:
        """An outcome of a unit."""
        self.book.outcome(outcomes, unit=unit_of(self.plan, name))

    def judge(self, exposure: int, **outcomes: float) -> None:
        """An outcome of an answer."""
        self.book.outcome(outcomes, exposure=str(exposure))

    def crowd(self, n: int, rates: tuple[float, ...], seed: int = 0, prefix: str = "u", seconds: tuple[float, ...] = ()) -> None:
        """Units that come one after another, and resolve with the rate of their arm."""
        rng = np.random.default_rng(seed)
        for number in range(n):
            self.clock.now += 1
            arm = self.ask(f"{prefix}{number}")
            values = {"resolved": float(rng.random() < rates[arm])}
            if seconds:
                values["seconds"] = min(20.0, float(rng.exponential(seconds[arm])))
            self.say(f"{prefix}{number}", **values)


def trial(plan: Plan, place: Any, clock: Clock | None = None) -> Trial:
    """Begin, or go on with, an experiment."""
    clock = clock or Clock()
    return Trial(plan, begin(plan, place, clock=clock), clock)

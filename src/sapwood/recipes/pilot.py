"""The pilot of a decision: small trainings on nested subsets of the rows, each asked the same held-out items.

In: examples, arms, a time. Out: one record a training in `pilot.jsonl` and its answers in `scores.jsonl`. All trainings take
the same number of steps, so that the curve is one of rows and not of steps; the ends of the curve come first, further seeds
(other rows, another start) last, so that whenever the time is up there is a curve. A pilot that was stopped goes on where it was.
Left out on purpose: keeping the pilots' adapters; they are made to be measured.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sapwood.chat import Chat
from sapwood.errors import ConfigError, storage
from sapwood.generate import Engine
from sapwood.model import Dtype, learn_tokens, load_model
from sapwood.recipes.arms import Arms
from sapwood.records import Example
from sapwood.run import open_run
from sapwood.train import SftConfig, StepReport, sft

FEWEST_STEPS = 16
"""A training of fewer steps says nothing of what rows would give."""
FEWEST_POINTS = 3
"""Steps are cut, down to `FEWEST_STEPS`, until the time holds this many trainings."""
TIMED_STEPS = 2
"""Steps of the first training after which its time is known."""
WORTH_A_POINT = 1.4
"""A last pilot on all rows is made where they are this many times those of the one before."""


@dataclass(frozen=True, kw_only=True)
class PilotConfig:
    """The pilot's learning curve."""

    sizes: tuple[int, ...] = (50, 100, 200, 400)
    """Rows of the pilot trainings; those that there are not enough rows for are left out."""
    steps: int = 60
    """Steps of each of them, the same for all; fewer where the time is short."""
    trainings: int = 2
    """Trainings of each size, with other rows and another start, as far as the time allows."""

    def __post_init__(self) -> None:
        if len(set(self.sizes)) < 2 or min(self.sizes) < 1:
            raise ConfigError(f"sizes is {self.sizes}; give at least two numbers of rows, such as 50 100 200 400.")
        if self.steps < FEWEST_STEPS:
            raise ConfigError(f"steps is {self.steps}; a pilot training takes at least {FEWEST_STEPS}.")
        if self.trainings < 1:
            raise ConfigError(f"trainings is {self.trainings}; give at least 1.")


@dataclass(frozen=True, slots=True)
class Point:
    """One pilot training that is done."""

    rows: int
    seed: int
    steps: int
    step_seconds: float
    """Mean of its steps."""
    seconds: float
    """Of loading, training and answering, in the sitting that ended it."""

    @property
    def arm(self) -> str:
        """Its name among the arms."""
        return _arm_name(self.rows, self.seed)


def _arm_name(rows: int, seed: int) -> str:
    """Such as "tuned on 400 rows", and "tuned on 400 rows, again" for the second."""
    return f"tuned on {rows} rows" + ("" if seed == 0 else ", again" if seed == 1 else f", {seed + 1}")


def sizes_for(sizes: Sequence[int], rows: int) -> list[int]:
    """The sizes that there are rows for, and all rows where that adds a point worth having."""
    possible = sorted({size for size in sizes if size <= rows})
    if possible and len(possible) < len(set(sizes)) and rows >= WORTH_A_POINT * possible[-1]:
        possible.append(rows)
    return possible


def fewest_rows(sizes: Sequence[int]) -> int:
    """Rows below which there is no second size, and so no curve."""
    first, second = sorted(set(sizes))[:2]
    return min(second, math.ceil(WORTH_A_POINT * first))


def in_order(sizes: Sequence[int], trainings: int) -> list[tuple[int, int]]:
    """(rows, seed) of every training: ends first, then from the larger to the smaller, and once more for each further seed."""
    ordered = sorted(sizes)
    ends = [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered
    return [(rows, seed) for seed in range(trainings) for rows in [*ends, *reversed(ordered[1:-1])]]


def affordable(seconds: float, step: float, other: float, steps: int, points: int) -> tuple[int, float]:
    """(steps of each training so that `points` of them fit into the time, seconds that so many really take).

    `step` are seconds a step, `other` those of a training besides its steps. Never below `FEWEST_STEPS`, so that it may not fit.
    """
    fitting = int((seconds / points - other) / step)
    steps = max(FEWEST_STEPS, min(steps, fitting))
    return steps, points * (steps * step + other)


class _OtherStepsError(Exception):
    """The first steps took so long that another number of steps is right, or None where there is no time for a curve."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(steps)
        self.steps = steps


@dataclass
class Pilot:
    """What all of its trainings share."""

    config: PilotConfig
    train: SftConfig
    folder: Path
    dtype: Dtype
    chat: Chat
    examples: Sequence[Example]
    arms: Arms
    seed: int
    deadline: float
    """On `clock`."""
    answering: float
    """Seconds that all items are expected to take, from the plain prompt's."""
    clock: Callable[[], float] = time.monotonic
    missing_seconds: float | None = None
    """What the pilot would have taken, where there was no time for two points."""

    def run(self) -> list[Point]:
        """Train and ask as long as there is time; every point that is done, earlier sittings' included."""
        run, screen = self.arms.run, self.arms.screen
        sizes = sizes_for(self.config.sizes, len(self.examples))
        wanted = in_order(sizes, self.config.trainings)
        steps = self._steps_of_before()
        fields = Point.__dataclass_fields__
        done = [Point(**{name: record[name] for name in fields}) for record in run.read("pilot")]
        known = {(point.rows, point.seed) for point in done}
        for rows, seed in (entry for entry in wanted if entry not in known):
            left = self.deadline - self.clock()
            needed = max((point.seconds for point in done), default=0.0)
            if done and left < needed:
                self._say_stopped(done, wanted, needed)
                break
            if steps is None:
                point = self._first(rows, seed, min(FEWEST_POINTS, len(sizes)))
                if point is None:
                    break
                steps = point.steps
            else:
                point = self._point(rows, seed, steps, lambda step, seconds: None)
            run.append("pilot", {name: getattr(point, name) for name in fields})
            done.append(point)
        if done and len({point.rows for point in done}) < 2:
            self.missing_seconds = 2 * done[0].seconds
        screen.say(f"{len(done)} of {len(wanted)} pilot trainings are done.")
        return done

    def _steps_of_before(self) -> int | None:
        path = self.arms.run.path / "pilot.json"
        if not path.is_file():
            shutil.rmtree(self.arms.run.path / "pilot", ignore_errors=True)
            return None
        with storage(path, "read"):
            return int(orjson.loads(path.read_bytes())["steps"])

    def _first(self, rows: int, seed: int, points: int) -> Point | None:
        """The first training, which shows how long a step takes, and so how many steps there is time for. None where for none."""
        steps, began, timed = self.config.steps, self.clock(), list[float]()

        def check(step: int, seconds: float) -> None:
            timed.append(seconds)
            if step != TIMED_STEPS:
                return
            taken, mean = self.clock() - began, max(sum(timed) / len(timed), 1e-6)
            start, whole = max(0.0, taken - sum(timed)), self.deadline - began
            fitting, needed = affordable(whole, mean, start + self.answering, steps, points)
            if needed > whole and affordable(whole, mean, start + self.answering, steps, 2)[1] > whole:
                self.missing_seconds = needed
                raise _OtherStepsError(None)
            if fitting < steps:
                raise _OtherStepsError(fitting)
            self._settle(steps)

        try:
            return self._point(rows, seed, steps, check)
        except _OtherStepsError as other:
            shutil.rmtree(self._place(rows, seed), ignore_errors=True)
            if other.steps is None:
                return None
            fitting = other.steps
        self.arms.screen.say(f"{fitting} steps a training instead of {steps}, so that there is time for {points} of them.")
        self._settle(fitting)
        return self._point(rows, seed, fitting, lambda step, seconds: None)

    def _settle(self, steps: int) -> None:
        self.arms.run.write_json("pilot", {"steps": steps})

    def _place(self, rows: int, seed: int) -> Path:
        return self.arms.run.path / "pilot" / f"{rows}-{seed}"

    def _point(self, rows: int, seed: int, steps: int, check: Callable[[int, float], None]) -> Point:
        """Train on `rows` rows and ask every item."""
        began, screen, seconds = self.clock(), self.arms.screen, list[float]()
        order = np.random.default_rng([self.seed, seed]).permutation(len(self.examples))[:rows]
        config = replace(self.train, max_steps=steps, seed=self.train.seed + seed, eval_every=steps)
        model = load_model(self.folder, self.dtype)
        learn_tokens(model, self.chat.new_tokens.values(), self.chat.known_tokens.values())
        with open_run(self._place(rows, seed)) as run, screen.progress(_arm_name(rows, seed)) as advance:

            def report(step: StepReport) -> None:
                seconds.append(step.seconds)
                advance(step.step, step.num_steps, f"loss {step.loss:.3f}")
                check(step.step, step.seconds)

            result = sft(model, [self.examples[int(place)] for place in order], [], config, run, report=report)
        mean = sum(seconds) / len(seconds) if seconds else 0.0
        self.arms.one(_arm_name(rows, seed), Engine(result.model, self.chat))
        shutil.rmtree(self._place(rows, seed), ignore_errors=True)
        return Point(rows, seed, steps, mean, self.clock() - began)

    def _say_stopped(self, done: list[Point], wanted: list[Any], needed: float) -> None:
        more = (len(wanted) - len(done)) * needed / 60
        self.arms.screen.say(f"The time is up; the other pilot trainings take about {more:.0f} minutes (--minutes, and the run directory).")

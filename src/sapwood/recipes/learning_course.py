"""The course of learning from rewards or preferences so far: records in, the figures that a person wants to see out.

In: records of the run's metrics as they come, so that a resumed run shows its whole curve. Out: curves, words, alarms. Nothing here draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.evaluate.grpo_signs import WINDOW, Sign, signs
from sapwood.evaluate.learning_figures import ACCURACY, PREFERENCE_FIGURES, REWARD_FIGURES, SOLVED, Figure, about_the_loss, seconds_by_phase
from sapwood.evaluate.preference_signs import preference_signs
from sapwood.recipes.course import RECENT, Followed, Record, up_to


@dataclass(frozen=True)
class Subject:
    """What is looked at: of rewards, or of preferences."""

    figures: tuple[Figure, ...]
    look: Callable[[Sequence[Mapping[str, Any]]], list[Sign]]
    """From records of steps and evaluations to alarms."""
    held_out: tuple[str, Figure]
    """Key of an evaluation's record, and the figure whose form it has."""
    loss: Callable[[Mapping[str, Any]], str] = lambda _: ""
    """What a step's loss means, where it says nothing by itself."""


REWARDS = Subject(
    REWARD_FIGURES, lambda records: signs([one for one in records if one["kind"] == "train"]), ("reward", SOLVED), about_the_loss
)
PREFERENCES = Subject(PREFERENCE_FIGURES, preference_signs, ("accuracy", ACCURACY))


class LearningCourse(Followed):
    """What is known of a learning from rewards or preferences."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = subject
        self._steps: dict[int, Record] = {}
        self._evals: dict[int, Record] = {}
        self.version = 0
        """Changes whenever something else is to be shown."""

    def take(self, records: Sequence[Record]) -> None:
        """Records as they were written; one that is written again counts as the last says."""
        self.version += bool(records)
        for record in records:
            (self._evals if record["kind"] == "eval" else self._steps)[record["step"]] = record

    def _forget_behind(self, step: int) -> None:
        self.version += 1
        self._steps, self._evals = up_to(step, self._steps), up_to(step, self._evals)

    @property
    def steps(self) -> list[Record]:
        """Records of the steps, in order."""
        known = self._steps  # drawn by another thread, while a sitting may begin
        return [known[step] for step in sorted(known)]

    @property
    def figures(self) -> list[Figure]:
        """Those that this run shows: one that may be absent is left out while it is."""
        steps = self.steps
        return [one for one in self.subject.figures if not one.optional or any(one.of(record) > 0 for record in steps)]

    def values(self, figure: Figure) -> list[float]:
        """Of each step; NaN where nothing was measured."""
        return [figure.of(record) for record in self.steps]

    def alarms(self) -> list[Sign]:
        """What is to be seen now, the gravest first."""
        return self.subject.look(sorted([*self._steps.values(), *self._evals.values()], key=lambda one: (one["step"], one["kind"])))

    def held_out(self) -> str:
        """The first and the last evaluation on held-out prompts or pairs; empty where there is none."""
        key, figure = self.subject.held_out
        found = [(step, figure_of(record, key)) for step, record in sorted(self._evals.items())]
        known = [(step, value) for step, value in found if math.isfinite(value)]
        if not known:
            return ""
        came = f"{figure.words(known[0][1])} → " if len(known) > 1 else ""
        step = known[-1][0]
        return f"{came}{figure.words(known[-1][1])} {f'at step {step}' if step else 'before training'}"

    def loss(self) -> str:
        """What the loss of the last step means."""
        steps = self.steps
        return self.subject.loss(steps[-1]) if steps else ""

    def phases(self, *, recent: bool) -> dict[str, float]:
        """Words of each phase → its seconds, of the latest steps or of all."""
        return seconds_by_phase(self.steps[-RECENT:] if recent else self.steps)


def figure_of(record: Mapping[str, Any], key: str) -> float:
    """A finite number in a record, else NaN."""
    return Figure(key, key, "number", "").of(record)


def first_and_last(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last steps; of one half each where there are few."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan, math.nan
    size = max(1, min(WINDOW, len(finite) // 2))
    return sum(finite[:size]) / size, sum(finite[-size:]) / size

"""The course of a training so far: records in, the numbers that a person wants to see out, as words.

Nothing here draws: the panel, the lines of a log and the summary take their words from one place.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]
V = TypeVar("V")

LINES = 10
"""Lines of a log at least: one every tenth of the run."""
TOKENS_A_LINE = 50_000
"""Unique tokens behind which a log has a line, whatever the share: about a minute on few processor cores, and the same at each run."""
MOST_LINES = 500
RECENT = 20
"""Steps over which speed is measured."""
POINTS = 400
"""Of a curve, at most."""
GIB = 2**30


class Pace:
    """How far a training is, and how long it takes still. Steps are counted from 1."""

    def __init__(self) -> None:
        self.step, self.planned = 0, 0
        self._first: int | None = None
        self._began = 0.0

    def stepped(self, step: int, planned: int, seconds: float) -> bool:
        """A step is finished; True for the first one of this sitting."""
        first = self.began_behind(step - 1, seconds)
        self.step, self.planned = step, planned
        return first

    def began_behind(self, step: int, seconds: float = 0.0) -> bool:
        """This sitting works on what follows `step`, since some seconds; True where that was not known before."""
        if self._first is not None:
            return False
        self._first, self._began = step, time.monotonic() - seconds
        return True

    def words(self) -> str:
        """How far, how long, and how long still; empty before it is known."""
        if not self.planned:
            return ""
        left = self.seconds_left()
        return f"step {self.step} of {self.planned}  {self.step / self.planned:.0%}  {clock(self.elapsed())}" + (
            f", {clock(left)} left" if left is not None else ""
        )

    def elapsed(self) -> float:
        """Seconds of this sitting's steps."""
        return time.monotonic() - self._began if self._first is not None else 0.0

    def seconds_left(self) -> float | None:
        """By the mean of this sitting; None before its first step and behind the last one."""
        done = self.step - (self._first or 0)
        return self.elapsed() / done * (self.planned - self.step) if done > 0 and self.planned > self.step else None


class Followed(ABC):
    """A training that is followed step by step. Steps are counted from 1; those behind the present one are of a sitting that was lost."""

    def __init__(self) -> None:
        self.pace = Pace()

    def stepped(self, step: int, planned: int, seconds: float) -> None:
        """A step of this sitting is finished."""
        if self.pace.stepped(step, planned, seconds):
            self._forget_behind(step - 1)

    def evaluated(self, step: int) -> None:
        """The model is evaluated in front of step `step` + 1, or was."""
        if self.pace.began_behind(step):
            self._forget_behind(step)
        self.pace.step = step

    @abstractmethod
    def _forget_behind(self, step: int) -> None:
        """A sitting begins: what an earlier one recorded of later steps is made anew."""


def up_to(step: int, known: Mapping[int, V]) -> dict[int, V]:
    """What is known of no later step, as a dictionary of its own: the old one may be drawn by another thread meanwhile."""
    return {at: value for at, value in known.items() if at <= step}


class Course(Followed):
    """What is known of a fine-tuning."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self._last: Record = {}
        self._recent: list[Record] = []
        self._said_step, self._tokens = 0, 0

    @property
    def step(self) -> int:
        """The last one that was finished."""
        return self.pace.step

    @property
    def planned(self) -> int:
        """Steps in all; 0 before it is known."""
        return self.pace.planned

    def take(self, records: list[Record]) -> None:
        """Records as they were written; one that is written again counts as the last says."""
        for record in records:
            loss = record["loss"]
            if record["kind"] == "eval":
                self.held_out[record["step"]] = math.nan if loss is None else loss
                continue
            self.losses[record["step"]] = math.nan if loss is None else loss
            self._last = record
            self._recent = [*self._recent, record][-RECENT:]
            self._tokens += record.get("unique_tokens", 0)

    def _forget_behind(self, step: int) -> None:
        self._said_step, self._tokens, self._recent = step, 0, []
        self.losses, self.held_out = up_to(step, self.losses), up_to(step, self.held_out)

    def is_worth_a_line(self) -> bool:
        """Whether a log gets a line now: by steps and tokens, never by the clock."""
        tenth = -(-self.planned // LINES)
        least = -(-self.planned // MOST_LINES)
        due = self.step % tenth == 0 or self.step == self.planned
        if due or (self._tokens >= TOKENS_A_LINE and self.step - self._said_step >= least):
            self._said_step, self._tokens = self.step, 0
            return True
        return False

    def curve(self) -> list[tuple[float, float]]:
        """(step, the mean loss of it and of its neighbours): each loss is measured before its step. What is not finite is left out.

        A long run is thinned to some hundred points: this is drawn twice a second, beside the training.
        """
        step_S, loss_S = self._finite()
        size = -(-len(loss_S) // POINTS) or 1
        starts = np.arange(0, len(loss_S), size)
        counts = np.diff([*starts, len(loss_S)])
        means = (np.add.reduceat(loss_S, starts) / counts).tolist() if len(starts) else []
        half = max(1, len(means) // 40)
        near = [means[max(0, place - half) : place + half + 1] for place in range(len(means))]
        return [(float(step) - 1, sum(part) / len(part)) for step, part in zip(step_S[starts + (counts - 1) // 2], near, strict=True)]

    def smoothed(self) -> float:
        """The mean loss of the last twentieth of the steps, of five at least."""
        _, loss_S = self._finite()
        tail = loss_S[-max(5, len(loss_S) // 20) :]
        return float(tail.mean()) if len(tail) else math.nan

    def _finite(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        step_S, loss_S = np.fromiter(self.losses.keys(), np.int64), np.fromiter(self.losses.values(), np.float64)
        order = np.argsort(step_S, kind="stable")
        order = order[np.isfinite(loss_S[order])]
        return step_S[order], loss_S[order]

    def facts(self, memory: int, point: str) -> list[list[str]]:
        """Lines of the panel, each in parts of falling weight."""
        last = self._last
        held_out = [loss for _, loss in sorted(self.held_out.items())]
        loss = [f"loss {last['loss']:.3f}" if last.get("loss") is not None else "loss not finite", f"smoothed {self.smoothed():.3f}"]
        if held_out:
            came = f"{held_out[0]:.3f} → " if len(held_out) > 1 else ""
            loss.append(f"{point} held out {came}{held_out[-1]:.3f}")
        rate = [f"learning rate {last['lr']:.2e}", f"gradient {last['grad_norm']:.3f}"]
        if "epoch" in last:
            rate.append(f"epoch {last['epoch']:.2f}")
        return [loss, rate, self._speed(), self._memory(memory)]

    def line(self, memory: int) -> str:
        """One line of a log."""
        left = self.pace.seconds_left()
        parts = [f"step {self.step} of {self.planned} ({self.step / self.planned:.0%})", f"loss {self.smoothed():.3f}"]
        parts += [f"lr {self._last['lr']:.2e}", f"gradient {self._last['grad_norm']:.3f}", *self._speed()[:1]]
        parts += [*self._memory(memory)[:1], f"{clock(left)} left" if left else f"{clock(self.pace.elapsed())} in all"]
        return "  ".join(parts)

    def _speed(self) -> list[str]:
        seconds = sum(record["seconds"] for record in self._recent)
        row, unique = (sum(record[key] for record in self._recent) for key in ("row_tokens", "unique_tokens"))
        if not seconds or not row:
            return ["no step of this sitting yet"]
        saved = 1 - unique / row
        return [
            f"{row / seconds:,.0f} tokens/s",
            *([f"{unique / seconds:,.0f} unique", f"{saved:.0%} saved by sharing"] if saved > 0.005 else []),
        ]

    def _memory(self, now: int) -> list[str]:
        peak = self._last.get("peak_bytes")
        return [f"{now / GIB:.1f} GiB in use", *([f"{peak / GIB:.1f} GiB at most"] if peak else [])]


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

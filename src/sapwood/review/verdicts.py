"""What can be said of a pair and of a single answer, the key for each, and what it means as a number.

A rater speaks of left and right; everything that is counted is in terms of a and b. `lean` turns one into the other: 1 is a (or good),
0 is b (or bad), 0.5 between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sapwood.review.votes import Verdict


class Mark(StrEnum):
    """What a rater says of a single answer."""

    GOOD = "good"
    USABLE = "usable"
    BAD = "bad"
    CANNOT_JUDGE = "cannot_judge"


@dataclass(frozen=True, slots=True)
class Choice:
    """A verdict as it stands on its button."""

    value: str
    key: str
    words: str
    short: str


PAIR = (
    Choice(Verdict.A, "1", "Left is better", "Left"),
    Choice(Verdict.SLIGHTLY_A, "2", "Left is slightly better", "Left, slightly"),
    Choice(Verdict.TIE, "3", "Tie: no difference that matters", "Tie"),
    Choice(Verdict.SLIGHTLY_B, "4", "Right is slightly better", "Right, slightly"),
    Choice(Verdict.B, "5", "Right is better", "Right"),
    Choice(Verdict.BOTH_GOOD, "6", "Both are good", "Both good"),
    Choice(Verdict.BOTH_BAD, "7", "Both are bad", "Both bad"),
    Choice(Verdict.CANNOT_JUDGE, "0", "I cannot judge this", "Cannot judge"),
)
SINGLE = (
    Choice(Mark.GOOD, "1", "Good: send it as it is", "Good"),
    Choice(Mark.USABLE, "2", "Usable: right, but to be mended", "Usable"),
    Choice(Mark.BAD, "3", "Bad: not to be sent", "Bad"),
    Choice(Mark.CANNOT_JUDGE, "0", "I cannot judge this", "Cannot judge"),
)
_LEFT = {Verdict.A: 1.0, Verdict.SLIGHTLY_A: 0.75, Verdict.SLIGHTLY_B: 0.25, Verdict.B: 0.0}
_MARKS = {Mark.GOOD: 1.0, Mark.USABLE: 0.5, Mark.BAD: 0.0}
_EVEN = (Verdict.TIE, Verdict.BOTH_GOOD, Verdict.BOTH_BAD)


def choices_of(kind: str) -> tuple[Choice, ...]:
    """The verdicts for pairs or for single answers, in order of their buttons."""
    return PAIR if kind == "pair" else SINGLE


def verdicts_of(kind: str) -> frozenset[str]:
    """Their values."""
    return frozenset(choice.value for choice in choices_of(kind))


def lean(verdict: str, left: str) -> float | None:
    """1 for a (or a good answer), 0 for b (or a bad one), 0.5 for neither, quarters for slightly; None where nobody could judge."""
    if verdict in _MARKS:
        return _MARKS[Mark(verdict)]
    if verdict in _EVEN:
        return 0.5
    if verdict not in _LEFT:
        return None
    value = _LEFT[Verdict(verdict)]
    return value if left == "a" else 1 - value


def swapped(verdict: str, left: str) -> str:
    """A verdict of sides in terms of a and b (or back): the same where a stands left."""
    other = {Verdict.A: Verdict.B, Verdict.B: Verdict.A, Verdict.SLIGHTLY_A: Verdict.SLIGHTLY_B, Verdict.SLIGHTLY_B: Verdict.SLIGHTLY_A}
    return str(other.get(Verdict(verdict), verdict)) if left == "b" and verdict in set(Verdict) else verdict


def outcome(value: float) -> float:
    """A lean as a win, a tie, or a loss of a."""
    return 1.0 if value > 0.5 else 0.0 if value < 0.5 else 0.5


def disagreement(leans: Sequence[float]) -> float:
    """The widest gap between two raters of one case, 0..1."""
    return max(leans) - min(leans) if leans else 0.0


def from_machine(scores: Mapping[str, float], arm_a: str, arm_b: str | None) -> float | None:
    """What a scorer or judge said of a case, as a lean; None where it said nothing of one of its answers."""
    if arm_b is None:
        return scores.get(arm_a)
    if arm_a not in scores or arm_b not in scores:
        return None
    return outcome(0.5 + (scores[arm_a] - scores[arm_b]) / 2)

"""How each rater judges: known answers got right, agreement with the others, pace, sides, and whether any of it drifts.

In: standing votes. Out: a `Rater` each, with what gives reason to look. A reason is a question to a person, never a verdict: it says what
was seen. Left out on purpose: weighting votes by these numbers, which would hide what raters disagree about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from scipy import special

from sapwood.review.results import Cast
from sapwood.review.verdicts import outcome
from sapwood.stats import Interval, clopper_pearson, rate_interval

GOOD_ENOUGH = 0.8
"""Share of known answers that a careful rater gets right at least."""
SURE = 0.01
"""How rarely chance alone may make a rater look odd."""
SURE_CARELESS = 0.05
"""The same for known answers, which say more: a rater who sees nine of ten is suspected less than once in a hundred."""
FEWEST = 10
"""Votes before sides and habits are looked at."""
HALF = 15
"""Votes in each half before drift is looked for."""


@dataclass(frozen=True, slots=True)
class Rater:
    """One rater in one batch."""

    person: int
    votes: int
    seconds: float
    """Median of an item."""
    known: int
    known_right: int
    known_interval: Interval | None
    agreed: float | None
    """Share of the other raters' votes on the same cases that said the same."""
    agreed_interval: Interval | None
    earlier: float | None
    later: float | None
    """The same share over the first and the second half of their votes."""
    left: float | None
    """Share of their wins that went to the left."""
    reasons: tuple[str, ...]


def raters_of(cast: Sequence[Cast], known: Sequence[Cast], right: Mapping[int, str]) -> list[Rater]:
    """Everybody who voted, by number of votes; `right` is the known answer of a case, in terms of a and b."""
    by_case: dict[int, list[Cast]] = {}
    for vote in cast:
        if vote.lean is not None:
            by_case.setdefault(vote.case, []).append(vote)
    mine: dict[int, list[Cast]] = {}
    for vote in (*cast, *known):
        mine.setdefault(vote.person, []).append(vote)
    return sorted((_rater(person, given, by_case, right) for person, given in mine.items()), key=lambda rater: -rater.votes)


def _rater(person: int, given: Sequence[Cast], by_case: Mapping[int, Sequence[Cast]], right: Mapping[int, str]) -> Rater:
    checks = [is_right(vote, right[vote.case]) for vote in given if vote.case in right]
    others = [vote for vote in given if vote.case not in right]
    agreed = [share for vote in others if (share := _agreed(vote, by_case.get(vote.case, ()))) is not None]
    half = len(agreed) // 2
    wins = [(vote.lean > 0.5) == (vote.left == "a") for vote in others if vote.lean is not None and vote.lean != 0.5 and vote.arm_b]
    told = Rater(
        person=person,
        votes=len(given),
        seconds=median(vote.ms for vote in given) / 1000,
        known=len(checks),
        known_right=sum(checks),
        known_interval=clopper_pearson(sum(checks), len(checks)) if checks else None,
        agreed=mean(agreed) if agreed else None,
        agreed_interval=rate_interval(sum(agreed), len(agreed)) if agreed else None,
        earlier=mean(agreed[:half]) if half else None,
        later=mean(agreed[half:]) if half else None,
        left=mean(wins) if wins else None,
        reasons=(),
    )
    reasons = (_careless(told), _drifts(agreed), _one_sided(wins), _same_again(others))
    return Rater(**{name: getattr(told, name) for name in Rater.__dataclass_fields__} | {"reasons": tuple(filter(None, reasons))})


def is_right(vote: Cast, answer: str) -> bool:
    """Whether a vote says what is known: the better side (slightly will do), or the very mark of a single answer."""
    if answer in ("a", "b"):
        return vote.lean is not None and outcome(vote.lean) == (1.0 if answer == "a" else 0.0)
    return vote.verdict == answer


def _agreed(vote: Cast, all_votes: Sequence[Cast]) -> float | None:
    """The share of the others on this case who said the same; None where nobody else did, or this one could not judge."""
    if vote.lean is None:
        return None
    rest = [outcome(other.lean) == outcome(vote.lean) for other in all_votes if other.person != vote.person and other.lean is not None]
    return sum(rest) / len(rest) if rest else None


def _careless(rater: Rater) -> str:
    """Fewer known answers right than a rater who is just good enough would get but once in twenty times."""
    if rater.known == 0:
        return ""
    by_chance = float(special.bdtr(rater.known_right, rater.known, GOOD_ENOUGH))  # P(so few or fewer)
    return f"{rater.known_right} of {rater.known} known answers right" if by_chance < SURE_CARELESS else ""


def _drifts(agreed: Sequence[float]) -> str:
    """Agreement with the others changed between the first and the second half, by a test on two means."""
    half = len(agreed) // 2
    if half < HALF:
        return ""
    first, second = agreed[:half], agreed[half:]
    spread = sum((value - mean(first)) ** 2 for value in first) / half + sum((value - mean(second)) ** 2 for value in second) / len(second)
    change = mean(second) - mean(first)
    if spread == 0 or abs(change) / math.sqrt(spread / half) < -float(special.ndtri(SURE / 2)):
        return ""
    return f"agreement with others went from {mean(first):.0%} to {mean(second):.0%}"


def _one_sided(wins: Sequence[bool]) -> str:
    """One side wins far more often than sides that were dealt by a coin can."""
    if len(wins) < FEWEST:
        return ""
    most = max(sum(wins), len(wins) - sum(wins))
    by_chance = 2 * float(special.bdtrc(most - 1, len(wins), 0.5))  # P(so many or more), on either side
    return f"{most} of {len(wins)} wins went to the {'left' if sum(wins) == most else 'right'}" if by_chance < SURE else ""


def _same_again(votes: Sequence[Cast]) -> str:
    """The very same verdict, in terms of sides, nearly always."""
    if len(votes) < FEWEST:
        return ""
    said = [vote.verdict for vote in votes]
    most = max(set(said), key=said.count)
    return f"“{most.replace('_', ' ')}” on {said.count(most)} of {len(said)} cases" if said.count(most) > 0.9 * len(said) else ""

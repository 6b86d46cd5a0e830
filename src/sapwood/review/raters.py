"""How each rater judges: known answers got right, agreement with the others, pace, sides, and whether any of it drifts.

In: standing votes. Out: a `Rater` each, with what gives reason to look. A reason is a question to a person, never a verdict: it says what
was seen. Left out on purpose: weighting votes by these numbers, which would hide what raters disagree about.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
from scipy import special

from sapwood.review.results import Cast
from sapwood.review.verdicts import outcome
from sapwood.stats import Interval, clopper_pearson, rate_interval

GOOD_ENOUGH = 0.8
"""Share of known answers that a careful rater gets right at least."""
SURE = 0.003
"""How rarely chance alone may make a rater look odd at one look. A page that is looked at all along multiplies that by about seven."""
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
    drifts = _drifts({person: [vote for vote in given if vote.case not in right] for person, given in mine.items()}, by_case)
    told = (_rater(person, given, by_case, right, drifts.get(person, "")) for person, given in mine.items())
    return sorted(told, key=lambda rater: -rater.votes)


def _rater(person: int, given: Sequence[Cast], by_case: Mapping[int, Sequence[Cast]], right: Mapping[int, str], drift: str) -> Rater:
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
    reasons = (_careless(told), drift, _one_sided(wins), _same_again(others, by_case))
    return Rater(**{name: getattr(told, name) for name in Rater.__dataclass_fields__} | {"reasons": tuple(filter(None, reasons))})


def is_right(vote: Cast, answer: str) -> bool:
    """Whether a vote says what is known: the better side (slightly will do), or the very mark of a single answer."""
    if answer in ("a", "b"):
        return vote.lean is not None and outcome(vote.lean) == (1.0 if answer == "a" else 0.0)
    return vote.verdict == answer


def _agreed(vote: Cast, all_votes: Sequence[Cast], without: Container[int] = ()) -> float | None:
    """The share of the others on this case who said the same; None where nobody else did, or this one could not judge."""
    if vote.lean is None:
        return None
    others = (other for other in all_votes if other.person != vote.person and other.person not in without)
    rest = [outcome(other.lean) == outcome(vote.lean) for other in others if other.lean is not None]
    return sum(rest) / len(rest) if rest else None


def _careless(rater: Rater) -> str:
    """Fewer known answers right than a rater who is just good enough would get but once in twenty times."""
    if rater.known == 0:
        return ""
    by_chance = float(special.bdtr(rater.known_right, rater.known, GOOD_ENOUGH))  # P(so few or fewer)
    return f"{rater.known_right} of {rater.known} known answers right" if by_chance < SURE_CARELESS else ""


def _drifts(mine: Mapping[int, Sequence[Cast]], by_case: Mapping[int, Sequence[Cast]]) -> dict[int, str]:
    """Whose agreement with the others changed between their first and their second half, by a test on two means.

    The clearest change is taken first and that rater left out of what the rest are compared with: else everybody who shares cases with
    one who tires would be blamed as well. Of two alone nobody can say which it was, and both are told so.
    """
    found: dict[int, str] = {}
    while True:
        agreed = {
            person: [share for vote in votes if (share := _agreed(vote, by_case.get(vote.case, ()), found)) is not None]
            for person, votes in mine.items()
            if person not in found
        }
        clearest = max(agreed, key=lambda person: _change(agreed[person]), default=None)
        if clearest is None or _change(agreed[clearest]) < -float(special.ndtri(SURE / 2)):
            return found
        alone = sum(map(bool, agreed.values())) == 2
        for person in [person for person in agreed if agreed[person]] if alone else [clearest]:
            half = len(agreed[person]) // 2
            went = f"went from {mean(agreed[person][:half]):.0%} to {mean(agreed[person][half:]):.0%}"
            found[person] = (
                f"agreement with the one other rater {went}: one of the two changed" if alone else f"agreement with others {went}"
            )


def _change(agreed: Sequence[float]) -> float:
    """By how many standard errors the second half's mean is off the first's; 0 where there are too few votes.

    One vote that agreed and one that did not are added to each half (Agresti and Caffo 2000): a half that is all alike has a spread, too.
    """
    half = len(agreed) // 2
    if half < HALF:
        return 0.0
    first, second = np.asarray([*agreed[:half], 0.0, 1.0]), np.asarray([*agreed[half:], 0.0, 1.0])
    return float(abs(second.mean() - first.mean()) / math.sqrt(first.var() / len(first) + second.var() / len(second)))


def _one_sided(wins: Sequence[bool]) -> str:
    """One side wins far more often than sides that were dealt by a coin can."""
    if len(wins) < FEWEST:
        return ""
    most = max(sum(wins), len(wins) - sum(wins))
    by_chance = 2 * float(special.bdtrc(most - 1, len(wins), 0.5))  # P(so many or more), on either side
    return f"{most} of {len(wins)} wins went to the {'left' if sum(wins) == most else 'right'}" if by_chance < SURE else ""


def _same_again(votes: Sequence[Cast], by_case: Mapping[int, Sequence[Cast]]) -> str:
    """The very same verdict, in terms of sides, nearly always, and more often than the others give it on the same cases.

    Where most answers are good, “good” is what everybody says. Without others a verdict that never changes is worth a look by itself.
    """
    if len(votes) < FEWEST:
        return ""
    said = [vote.verdict for vote in votes]
    most = max(sorted(set(said)), key=said.count)
    count = said.count(most)
    others = [other.verdict == most for vote in votes for other in by_case.get(vote.case, ()) if other.person != vote.person]
    usual = (sum(others) + 1) / (len(others) + 2)
    by_chance = float(special.bdtrc(count - 1, len(votes), usual))  # P(so often or more)
    return f"“{most.replace('_', ' ')}” on {count} of {len(said)} cases" if count > 0.9 * len(said) and by_chance < SURE else ""

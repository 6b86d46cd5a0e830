"""Votes on blind pairs: recorded for good, corrected only by newer ones, counted in terms of arms.

In: `Vote` records in terms of sides, and the `Pair`s that know which arm stood where. Out: a `WinRate`, agreement.
A vote is never changed: a correction is a new vote that names the one it supersedes.
Left out on purpose: rankings of more than two arms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sapwood.errors import DataError
from sapwood.review.pairs import Pair
from sapwood.stats import Interval, krippendorff_alpha, mean_interval


class Verdict(StrEnum):
    """What a rater says. `a` is the left answer, `b` the right one."""

    A = "a"
    SLIGHTLY_A = "slightly_a"
    TIE = "tie"
    SLIGHTLY_B = "slightly_b"
    B = "b"
    BOTH_GOOD = "both_good"
    BOTH_BAD = "both_bad"
    CANNOT_JUDGE = "cannot_judge"
    """Counted, but neither a win nor a tie."""


_LEFT = {Verdict.A: 1.0, Verdict.SLIGHTLY_A: 1.0, Verdict.B: 0.0, Verdict.SLIGHTLY_B: 0.0}


@dataclass(frozen=True, slots=True)
class Vote:
    """One verdict of one rater on one pair, a record of `votes.jsonl`."""

    id: str
    pair: str
    verdict: Verdict
    comment: str = ""
    supersedes: str | None = None
    """Id of the vote that this one corrects."""

    def record(self) -> dict[str, Any]:
        """The record of `votes.jsonl`."""
        return dataclasses.asdict(self)


def correct(votes: Sequence[Vote], pair: str, verdict: Verdict, comment: str = "") -> Vote:
    """The next vote on `pair`: its first, or a correction of the one that stands in `votes`."""
    before = [vote for vote in votes if vote.pair == pair]
    stands = next((vote.id for vote in standing(before)), None)
    return Vote(f"{pair}.{len(before) + 1}", pair, verdict, comment, stands)


def standing(votes: Iterable[Vote]) -> list[Vote]:
    """The votes that no other supersedes, in order.

    Raises `DataError` for an id used twice, a correction of an unknown vote or another pair's, or two standing votes on a pair.
    """
    by_id: dict[str, Vote] = {}
    for vote in votes:
        if vote.id in by_id:
            raise DataError(f"votes.jsonl: the vote {vote.id} is there twice. Delete one of the two.")
        if vote.supersedes is not None and (vote.supersedes not in by_id or by_id[vote.supersedes].pair != vote.pair):
            raise DataError(f"votes.jsonl: the vote {vote.id} corrects {vote.supersedes}, which is no earlier vote on its pair. Delete it.")
        by_id[vote.id] = vote
    gone = {vote.supersedes for vote in by_id.values()}
    left = [vote for vote in by_id.values() if vote.id not in gone]
    if len({vote.pair for vote in left}) < len(left):
        raise DataError("votes.jsonl: a pair has two votes and neither corrects the other. Delete one of the two.")
    return left


def votes_from(records: Iterable[Mapping[str, Any]]) -> list[Vote]:
    """Votes of a run's `votes.jsonl`, in order. Raises `DataError` for a verdict that is not one."""
    votes = []
    for number, record in enumerate(records, 1):
        try:
            verdict = Verdict(record["verdict"])
        except ValueError:
            raise DataError(
                f"votes.jsonl: record {number} has the verdict {record['verdict']!r}; allowed: {', '.join(Verdict)}. Mend or delete it."
            ) from None
        votes.append(Vote(record["id"], record["pair"], verdict, record.get("comment", ""), record.get("supersedes")))
    return votes


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often an arm was preferred, ties as halves, with an interval over items or their clusters (all raters of one together)."""

    arm: str
    rate: float | None
    """None where no vote could be counted."""
    interval: Interval | None
    wins: int
    losses: int
    ties: int
    not_judged: int
    items: int


def win_rate(votes: Iterable[Vote], pairs: Iterable[Pair], arm: str) -> WinRate:
    """Count the standing votes on pairs of `arm`; tie, both good and both bad are halves.

    Raises `DataError` for votes on unknown pairs, or if no pair holds the arm.
    """
    keys = {pair.id: pair for pair in pairs}
    if not any(arm in (pair.left_arm, pair.right_arm) for pair in keys.values()):
        raise DataError(f"No pair holds the arm {arm!r}; name one of the arms that were paired.")
    values: list[float] = []
    clusters: list[tuple[str, str]] = []
    items: set[str] = set()
    not_judged = 0
    for vote in standing(votes):
        pair = _pair(keys, vote)
        if arm not in (pair.left_arm, pair.right_arm):
            continue
        if vote.verdict is Verdict.CANNOT_JUDGE:
            not_judged += 1
            continue
        left = _LEFT.get(vote.verdict, 0.5)
        values.append(left if pair.left_arm == arm else 1 - left)
        clusters.append(("item", pair.item) if pair.cluster is None else ("cluster", pair.cluster))
        items.add(pair.item)
    if not values:
        return WinRate(arm, None, None, 0, 0, 0, not_judged, 0)
    interval = mean_interval(values, clusters)
    counts = {value: values.count(value) for value in (1.0, 0.0, 0.5)}
    return WinRate(arm, sum(values) / len(values), interval, counts[1.0], counts[0.0], counts[0.5], not_judged, len(items))


def agreement(votes: Iterable[Vote], pairs: Iterable[Pair]) -> float | None:
    """Krippendorff's alpha between raters of the same item: the first arm by name, a tie, or the second. None if none overlap."""
    keys = {pair.id: pair for pair in pairs}
    ratings: dict[Any, list[str]] = {}
    for vote in standing(votes):
        pair = _pair(keys, vote)
        if vote.verdict is Verdict.CANNOT_JUDGE:
            continue
        left = _LEFT.get(vote.verdict, 0.5)
        winner = {1.0: pair.left_arm, 0.0: pair.right_arm, 0.5: ""}[left]
        ratings.setdefault((pair.item, *sorted((pair.left_arm, pair.right_arm))), []).append(winner)
    return krippendorff_alpha(ratings)


def _pair(keys: Mapping[str, Pair], vote: Vote) -> Pair:
    if vote.pair not in keys:
        raise DataError(
            f"votes.jsonl: the vote {vote.id} is on the pair {vote.pair}, which is unknown here. Hand in the pairs it was made on."
        )
    return keys[vote.pair]

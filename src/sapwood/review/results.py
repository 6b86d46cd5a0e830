"""What the votes of a batch say: win rates, strengths, agreement, how many more votes. Database in, frozen records out.

Every number rests on standing votes on cases whose answer was not known beforehand. Cases of one cluster are one independent unit. Arms
bear the names that may be shown: numbers while the batch is open. Left out on purpose: a test that may be looked at after every vote; the
intervals hold for the number of votes that was planned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, select

from sapwood.review.batch import Batch
from sapwood.review.tables import cases, votes
from sapwood.review.verdicts import lean, outcome
from sapwood.stats import Agreement, Interval, Strengths, agreement_of, mean_interval, strengths_of
from sapwood.stats.rates import normal_quantile

POWER_Z = 0.8416212335729143
"""The normal quantile of a power of 80 %."""


@dataclass(frozen=True, slots=True)
class Cast:
    """One standing vote, with what counting needs."""

    person: int
    case: int
    cluster: str
    arm_a: str
    arm_b: str | None
    lean: float | None
    left: str
    verdict: str
    criteria: dict[str, dict[str, int]]
    errors: tuple[dict[str, str], ...]
    ms: int
    at: float
    id: int
    lengths: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rate:
    """How one arm did: the share of votes that preferred it (ties are halves), or the mean mark of its single answers."""

    name: str
    mean: float
    interval: Interval
    votes: int
    wins: int
    losses: int
    ties: int
    against: str = ""
    """The other arm; empty for single answers."""
    more: int | None = None
    """About how many more votes until the interval leaves the half, if the rate stays as it is; 0 where it has, None if nobody can say."""


@dataclass(frozen=True, slots=True)
class Marks:
    """One criterion of one arm: the mean step, 0..1 from the worst to the best, and how far raters agree on it."""

    criterion: str
    name: str
    mean: float
    interval: Interval
    agreement: Agreement


@dataclass(frozen=True)
class Results:
    """All of it."""

    votes: int
    cases: int
    not_judged: int
    rates: tuple[Rate, ...]
    strengths: Strengths | None
    """Plain; None for single answers."""
    controlled: Strengths | None
    """With the difference of lengths and the side taken out."""
    agreement: Agreement
    marks: tuple[Marks, ...]
    errors: tuple[tuple[str, str, int, float], ...]
    """(arm, error, votes that name it, what they cost in all)"""


def cast_votes(connection: Connection, batch: Batch, *, known: bool = False) -> list[Cast]:
    """Standing votes of a batch in order; with `known` those on cases whose answer is known, else the others."""
    about = (cases.c.arm_a, cases.c.arm_b, cases.c.length_a, cases.c.length_b, cases.c.cluster)
    where = cases.c.gold.is_not(None) if known else cases.c.gold.is_(None)
    query = select(votes, *about).join(cases, votes.c.case == cases.c.id)
    query = query.where(votes.c.batch == batch.id, votes.c.withdrawn.is_(None), where).order_by(votes.c.id)
    return [_cast(row) for row in connection.execute(query)]


def _cast(row: Row[Any]) -> Cast:
    return Cast(
        person=row.person,
        case=row.case,
        cluster=f"cluster {row.cluster}" if row.cluster is not None else f"case {row.case}",
        arm_a=row.arm_a,
        arm_b=row.arm_b,
        lean=lean(row.verdict, row.left),
        left=row.left,
        verdict=row.verdict,
        criteria=row.criteria,
        errors=tuple(row.errors),
        ms=row.ms,
        at=row.at,
        id=row.id,
        lengths=(row.length_a, row.length_b),
    )


def results_of(batch: Batch, cast: Sequence[Cast]) -> Results:
    """Count the votes."""
    judged = [vote for vote in cast if vote.lean is not None]
    pairs = batch.kind == "pair"
    ratings: dict[Any, list[float]] = {}
    for vote in judged:
        assert vote.lean is not None
        ratings.setdefault(vote.case, []).append(outcome(vote.lean) if pairs else vote.lean)
    plain, controlled = _strengths(batch, judged) if pairs and judged else (None, None)
    return Results(
        votes=len(cast),
        cases=len({vote.case for vote in cast}),
        not_judged=len(cast) - len(judged),
        rates=_pair_rates(batch, judged) if pairs else _single_rates(batch, judged),
        strengths=plain,
        controlled=controlled,
        agreement=agreement_of(ratings, "ordinal"),
        marks=_marks(batch, cast),
        errors=_errors(batch, cast),
    )


def _pair_rates(batch: Batch, judged: Sequence[Cast]) -> tuple[Rate, ...]:
    rates = []
    for first, second in itertools.combinations(batch.arms, 2):
        values, clusters = [], []
        for vote in judged:
            if {vote.arm_a, vote.arm_b} == {first, second} and vote.lean is not None:
                value = outcome(vote.lean)
                values.append(value if vote.arm_a == first else 1 - value)
                clusters.append(vote.cluster)
        if values:
            names = batch.shown_name(first), batch.shown_name(second)
            if batch.open and names[0] > names[1]:  # the order of the arms would tell who is who
                values, names = [1 - value for value in values], (names[1], names[0])
            rates.append(_rate(names[0], values, clusters, against=names[1]))
    return tuple(sorted(rates, key=lambda rate: (rate.name, rate.against)) if batch.open else rates)


def _single_rates(batch: Batch, judged: Sequence[Cast]) -> tuple[Rate, ...]:
    rates = []
    for arm in batch.arms:
        mine = [vote for vote in judged if vote.arm_a == arm]
        if mine:
            values = [vote.lean for vote in mine if vote.lean is not None]
            rates.append(_rate(batch.shown_name(arm), values, [vote.cluster for vote in mine]))
    return tuple(sorted(rates, key=lambda rate: rate.name) if batch.open else rates)


def _rate(name: str, values: Sequence[float], clusters: Sequence[str], against: str = "") -> Rate:
    interval = mean_interval(values, clusters)
    mean = sum(values) / len(values)
    wins, losses = sum(value == 1 for value in values), sum(value == 0 for value in values)
    more = more_votes(mean, interval, len(values)) if against else None
    return Rate(name, mean, interval, len(values), wins, losses, len(values) - wins - losses, against, more)


def more_votes(mean: float, interval: Interval, count: int) -> int | None:
    """About how many more votes until four studies of five of that size would show that the rate is not a half.

    The interval's half width stands for z standard errors at `count` votes, and shrinks with the root of their number. 0 where the half
    lies outside already, None where the rate is a half.
    """
    if 0.5 not in interval:
        return 0
    gap = abs(mean - 0.5)
    if gap < 1e-9:
        return None
    z = normal_quantile(interval.level)
    error = (interval.high - interval.low) / 2 / z
    return max(1, math.ceil(count * ((z + POWER_Z) * error / gap) ** 2) - count)


def _strengths(batch: Batch, judged: Sequence[Cast]) -> tuple[Strengths, Strengths]:
    names = sorted({batch.shown_name(arm) for vote in judged for arm in (vote.arm_a, vote.arm_b) if arm is not None})
    first = [batch.shown_name(vote.arm_a) for vote in judged]
    second = [batch.shown_name(vote.arm_b or "") for vote in judged]
    outcomes = [outcome(vote.lean) for vote in judged if vote.lean is not None]
    clusters = [vote.cluster for vote in judged]
    # the anchor is whoever the last arm is called: for a run, the best of the others
    anchor = names[-1] if batch.open else next(arm for arm in reversed(batch.arms) if arm in names)
    plain = strengths_of(first, second, outcomes, clusters, anchor=anchor)
    lengths = np.array([vote.lengths for vote in judged], dtype=np.float64)
    longer = (lengths[:, 0] - lengths[:, 1]) / np.maximum(lengths.sum(1), 1)  # −1..1, as a share of both (Dubois et al. 2024 do alike)
    left = np.array([1.0 if vote.left == "a" else -1.0 for vote in judged])
    controls = {name: values for name, values in (("length", longer), ("left", left)) if float(np.ptp(values)) > 0}
    return plain, strengths_of(first, second, outcomes, clusters, anchor=anchor, controls=controls)


def _marks(batch: Batch, cast: Sequence[Cast]) -> tuple[Marks, ...]:
    found = []
    for criterion in batch.rubric.criteria:
        top = len(criterion.anchors) - 1
        given: dict[str, list[tuple[float, str, int]]] = {}
        for vote in cast:
            for side, step in vote.criteria.get(criterion.name, {}).items():
                arm = vote.arm_a if side == "a" else vote.arm_b
                if arm is not None:
                    given.setdefault(batch.shown_name(arm), []).append((step / top, vote.cluster, vote.case))
        for name in sorted(given):
            steps = [share for share, _, _ in given[name]]
            by_case: dict[Any, list[float]] = {}
            for share, _, case in given[name]:
                by_case.setdefault(case, []).append(share)
            interval = mean_interval(steps, [cluster for _, cluster, _ in given[name]])
            found.append(Marks(criterion.name, name, sum(steps) / len(steps), interval, agreement_of(by_case, "ordinal")))
    return tuple(found)


def _errors(batch: Batch, cast: Sequence[Cast]) -> tuple[tuple[str, str, int, float], ...]:
    counts: dict[tuple[str, str], list[float]] = {}
    for vote in cast:
        for error in vote.errors:
            arm = vote.arm_a if error["answer"] == "a" else vote.arm_b
            if arm is not None:
                cost = batch.rubric.severity(error["type"], error.get("degree"))
                counts.setdefault((batch.shown_name(arm), error["type"]), []).append(cost)
    rows = [(arm, error, len(costs), sum(costs)) for (arm, error), costs in counts.items()]
    return tuple(sorted(rows, key=lambda row: (-row[3], row[0], row[1])))

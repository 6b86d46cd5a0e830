"""The table of a sweep: what each point reached in, the winner and what can be told apart out.

The winner has the lowest loss on the rows that choose. Its score is of the other rows, which chose nothing, so that the choice does
not flatter it. Its loss is flattered, and the table says so. Intervals hold together, at 95 % for the whole table (Bonferroni): those
of scores over the points beside the winner, those of losses over all pairs, because any of them might have become the winner.
Left out on purpose: a correction of the winner's loss, and how much another seed would change; sweep over `seed` to see that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.evaluate import ArmResult, ArmScore, arm_result
from sapwood.evaluate.compare_runs import paired
from sapwood.stats import Difference, paired_difference

MISSED = 0.05
"""Share of tables in which an interval may miss the truth."""


@dataclass(frozen=True)
class Point:
    """One finished point of a grid."""

    name: str
    run: Path
    knobs: dict[str, Any]
    loss: float
    """Of the rows that choose, in nats a token."""
    parts: tuple[float, ...]
    """The same for each of up to 32 parts of these rows."""
    scores: tuple[ArmScore, ...]
    """Its answers to the rows that judge; none where nothing can be scored."""


@dataclass(frozen=True)
class Standing:
    """One line of the table."""

    point: Point
    rate: ArmResult | None
    """On the rows that judge."""
    loss_difference: Difference | None
    """Loss of this point minus the winner's, paired over parts of the rows that choose. None for the winner, or with fewer than 2 parts."""
    score_difference: Difference | None
    """Score of this point minus the winner's, paired over the items that judge."""

    @property
    def apart(self) -> bool:
        """Whether items or rows tell it from the winner."""
        found = (self.loss_difference, self.score_difference)
        return any(d is not None and 0 not in d.interval for d in found)

    def to_dict(self) -> dict[str, Any]:
        """For machines: losses in nats a token, points of 100."""
        point, rate, loss, score = self.point, self.rate, self.loss_difference, self.score_difference
        return {
            "name": point.name,
            "run": str(point.run),
            "knobs": point.knobs,
            "loss": point.loss,
            "loss_difference": None if loss is None else {"mean": loss.mean, "interval": [loss.interval.low, loss.interval.high]},
            "score": None if rate is None else rate.to_dict(),
            "points_difference": None
            if score is None
            else {"mean": 100 * score.mean, "interval": [100 * score.interval.low, 100 * score.interval.high], "items": score.n},
            "told_apart_from_winner": self.apart,
        }


@dataclass(frozen=True)
class Standings:
    """All points, the lowest loss first."""

    table: tuple[Standing, ...]
    sentences: tuple[str, ...]

    @property
    def winner(self) -> Point:
        """The point of the lowest loss."""
        return self.table[0].point

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"winner": self.table[0].to_dict(), "table": [line.to_dict() for line in self.table], "sentences": list(self.sentences)}


def standings(points: Sequence[Point]) -> Standings:
    """Points in order of loss, the first of equals first, each against the winner."""
    ordered = sorted(points, key=lambda point: point.loss)
    winner = ordered[0]
    table = tuple(_standing(point, winner, len(ordered)) for point in ordered)
    return Standings(table, tuple(_sentences(table)))


def _standing(point: Point, winner: Point, count: int) -> Standing:
    rate = arm_result(point.scores) if point.scores else None
    if point is winner:
        return Standing(point, rate, None, None)
    loss = score = None
    if 1 < len(winner.parts) == len(point.parts):
        loss = paired_difference(winner.parts, point.parts, level=1 - MISSED / (count * (count - 1) / 2), bounded=False)
    if winner.scores and point.scores:
        score = paired(winner.scores, point.scores, (winner.name, point.name), level=1 - MISSED / (count - 1))[1]
    return Standing(point, rate, loss, score)


def _sentences(table: Sequence[Standing]) -> list[str]:
    first, others = table[0], table[1:]
    said = [f"{first.point.name} has the lowest loss on the rows that choose: {first.point.loss:.3f} nats a token."]
    if first.rate is not None and first.rate.rate is not None and first.rate.interval is not None:
        low, high = first.rate.interval.low, first.rate.interval.high
        said.append(
            f"Its score is {first.rate.rate:.1%} [{low:.1%}, {high:.1%}] on {first.rate.items} items that chose nothing, so the "
            "choice does not flatter it."
        )
    if not others:
        return said
    alike = [line.point.name for line in others if not line.apart]
    if alike:
        said.append(
            f"Not told apart from it by loss or score: {'; '.join(alike)}. With other rows or another seed, one of these may well be first."
        )
    else:
        said.append("All other points can be told from it, by intervals that hold together.")
    if len(others) > 1:
        said.append(
            f"The best of {len(table)} looks better than it is by the numbers that chose it: its loss, and each loss difference to it, are "
            "flattered. The score is not."
        )
    return said

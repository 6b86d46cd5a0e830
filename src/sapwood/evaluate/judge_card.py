"""A judge's calibration: how its verdicts compare with people's on the same items, and until when that may be believed.

In: a judge's verdicts and people's, item by item. Out: a `Card`, written as JSON, which is valid for one judge (model, prompts, criteria)
and for a number of days. A rate that a judge gives is shown with its correction by the labels, or not at all.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import orjson

from sapwood.errors import ConfigError, DataError, storage
from sapwood.evaluate.judges import Judge, PairVerdict, Winner
from sapwood.stats import Corrected, Interval, agreement_of, corrected_mean, mean_interval

FEWEST = 20
"""Labels below which a calibration says too little to be written down."""
_WINNERS: tuple[Winner, ...] = ("a", "tie", "b")
DAYS = 90
"""How long a card is believed: models behind an address change without a word."""


class Named(Protocol):
    """A judge, or what is on record of one."""

    @property
    def key(self) -> str: ...
    @property
    def model(self) -> str: ...


@dataclass(frozen=True)
class Card:
    """What is known of one judge. Rates come with 95 % intervals."""

    judge: str
    """`Judge.key`."""
    model: str
    made: str
    """Day, as 2026-05-01."""
    until: str
    labels: int
    agreement: float
    agreement_low: float
    agreement_high: float
    alpha: float | None
    """Krippendorff's, of judge and people: agreement beyond chance."""
    alpha_low: float | None
    alpha_high: float | None
    confusion: Mapping[Winner, Mapping[Winner, int]]
    """People's verdict → the judge's → how often."""
    flips: float
    """Share of pairs whose verdict followed the order in which they were shown."""
    first_share: float
    """Of the verdicts with a winner, over both orders: how often the answer shown first. 0.5 is fair."""
    longer_share: float | None
    """Of the pairs with a winner: how often the judge took the longer answer."""
    longer_share_people: float | None
    failures: int
    """Pairs without a verdict."""

    @property
    def beyond_chance(self) -> bool:
        """Whether it is shown that the judge agrees with people more often than guessing would."""
        return self.alpha_low is not None and self.alpha_low > 0

    def check(self, judge: Judge, today: date) -> None:
        """Raise `ConfigError` where the card is another judge's, or too old."""
        if self.judge != judge.key:
            raise ConfigError(
                f"The calibration is of another judge ({self.model}, {self.judge}; now {judge.model}, {judge.key}): model, prompts or "
                "criteria have changed. Calibrate anew on labelled pairs."
            )
        if today > date.fromisoformat(self.until):
            raise ConfigError(f"The judge's calibration of {self.made} was valid until {self.until}. Calibrate anew on labelled pairs.")

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        with storage(path, "write"):
            path.write_bytes(orjson.dumps({"schema": 1, **dataclasses.asdict(self)}, option=orjson.OPT_INDENT_2))

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read one. Raises `DataError` for a file that is none."""
        with storage(path, "read"):
            content = path.read_bytes()
        try:
            record: dict[str, Any] = orjson.loads(content)
            return cls(**{name.name: record[name.name] for name in dataclasses.fields(cls)})
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no judge's card ({error}). Make one by calibrating on labelled pairs.") from None

    def __str__(self) -> str:
        longer = (
            ""
            if self.longer_share is None or self.longer_share_people is None
            else (f"; takes the longer answer {self.longer_share:.0%} of the time, people {self.longer_share_people:.0%}")
        )
        known = self.alpha is not None and self.alpha_low is not None
        alpha = f", α {self.alpha:.2f} [{self.alpha_low:.2f}, {self.alpha_high:.2f}]" if known else ""
        warning = "" if self.beyond_chance else "; not shown to agree more than guessing would, so no decision should hang on it"
        return (
            f"{self.model}: agrees with people on {self.agreement:.0%} [{self.agreement_low:.0%}, {self.agreement_high:.0%}] of "
            f"{self.labels} pairs{alpha}; {self.flips:.0%} follow the order, {self.first_share:.0%} for the answer shown first"
            f"{longer}; valid until {self.until}{warning}"
        )


def calibrate(
    judge: Named,
    verdicts: Sequence[PairVerdict],
    people: Mapping[str, Winner],
    *,
    today: date,
    days: int = DAYS,
    clusters: Mapping[str, str] | None = None,
) -> Card:
    """Compare verdicts with people's, by the pairs' ids; `clusters` names those of pairs that have one.

    Raises `DataError` for fewer than 20 pairs with both.
    """
    by_id = {verdict.id: verdict for verdict in verdicts}
    unknown = sorted(people.keys() - by_id.keys())
    if unknown:
        raise DataError(f"{len(unknown)} labels are of pairs that were not judged, such as {unknown[0]!r}. Judge those pairs as well.")
    both = [(people[name], by_id[name]) for name in people if by_id[name].winner is not None]
    if len(both) < FEWEST:
        raise DataError(f"{len(both)} pairs have a label and a verdict; a calibration needs at least {FEWEST}. Label more pairs.")
    counts = Counter((human, verdict.winner) for human, verdict in both)
    confusion = {human: {said: counts[human, said] for said in _WINNERS} for human in _WINNERS}
    agreements = [float(human == verdict.winner) for human, verdict in both]
    interval: Interval = mean_interval(agreements, _clusters([verdict for _, verdict in both], clusters))
    shown = [side for _, verdict in both for side in (verdict.forward, verdict.backward) if side != "tie"]
    alpha = agreement_of({verdict.id: (human, str(verdict.winner)) for human, verdict in both})
    return Card(
        judge=judge.key,
        model=judge.model,
        made=today.isoformat(),
        until=(today + timedelta(days=days)).isoformat(),
        labels=len(both),
        agreement=sum(agreements) / len(both),
        agreement_low=interval.low,
        agreement_high=interval.high,
        alpha=alpha.alpha,
        alpha_low=alpha.interval.low if alpha.interval else None,
        alpha_high=alpha.interval.high if alpha.interval else None,
        confusion=confusion,
        flips=sum(verdict.flipped for _, verdict in both) / len(both),
        first_share=shown.count("first") / len(shown) if shown else 0.5,
        longer_share=_longer([(verdict.winner, verdict.longer_by) for _, verdict in both]),
        longer_share_people=_longer([(human, verdict.longer_by) for human, verdict in both]),
        failures=sum(verdict.winner is None for verdict in verdicts),
    )


def corrected_win_rate(
    verdicts: Sequence[PairVerdict], people: Mapping[str, Winner], clusters: Mapping[str, str] | None = None
) -> Corrected:
    """People's win rate of b over all pairs (ties count half), from the judge's on all and people's on a random part of them.

    Pairs that the judge failed on are left out, labelled or not; `Corrected` says how many remain.
    """
    values = {"a": 0.0, "tie": 0.5, "b": 1.0}
    judged = [verdict for verdict in verdicts if verdict.value is not None]
    seen = [verdict for verdict in judged if verdict.id in people]
    others = [verdict for verdict in judged if verdict.id not in people]
    return corrected_mean(
        [verdict.value for verdict in others if verdict.value is not None],
        [verdict.value for verdict in seen if verdict.value is not None],
        [values[people[verdict.id]] for verdict in seen],
        clusters=_clusters(others, clusters),
        labelled_clusters=_clusters(seen, clusters),
    )


def _clusters(verdicts: Sequence[PairVerdict], clusters: Mapping[str, str] | None) -> list[Hashable] | None:
    """Each pair's cluster, or itself; None where no pair has one."""
    return [clusters.get(verdict.id, ("pair", verdict.id)) for verdict in verdicts] if clusters else None


def _longer(pairs: Sequence[tuple[Winner | None, int]]) -> float | None:
    """How often the longer answer won, where one won and one is longer."""
    told = [(winner == "b") == (longer_by > 0) for winner, longer_by in pairs if winner in ("a", "b") and longer_by != 0]
    return sum(told) / len(told) if told else None

"""Records → one number a unit: which units count in a comparison, when each is settled, and its outcome as a gain in 0..1.

In: `Records`. Out: `Settled`, units in the order in which they settled. A unit is settled when its window ends, in the order in which
units came, so that neither the order nor the number can depend on what an arm does; what comes later is counted as late and not used.
With a window of 0 the first outcome settles a unit, at once, and the order is that of first outcomes.

Where a treatment was switched off for a while, units whose window reaches into that time do not count, in either arm: the control answered
those of the treatment from then on, so that they gave less than the control's in the same window, and an arm without any effect would seem
to do harm. Without a window, outcomes of that time do not count, in either arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sapwood.ab.plan import Metric, Plan
from sapwood.ab.records import Event, OutcomeRow, Records, UnitRow
from sapwood.stats.rates import Floats


@dataclass(frozen=True, slots=True)
class Settled:
    """Units of one treatment and the control with their outcomes in one metric, in the order in which they settled."""

    treated_N: NDArray[np.bool_]
    chance_N: Floats
    """Each unit's chance of the treatment, given that it got one of the two."""
    gain_N: Floats
    """In 0..1, 1 being best."""
    value_N: Floats
    """In the metric's own units."""
    unsettled: int
    """Units whose window has not ended, or, without a window, that gave nothing yet."""
    silent: tuple[int, int]
    """Settled units without an outcome that were left out: (control, treated)."""
    late: int
    """Outcomes that came after their unit's window."""


def settled(records: Records, treatment: int, metric: Metric) -> Settled:
    """The units of one comparison."""
    plan, window = records.plan, records.plan.window_seconds
    units = comparable(records, treatment)
    given = _given(records, treatment, metric.name)
    rows: list[tuple[int, bool, float, float]] = []
    unsettled, late, silent = 0, 0, [0, 0]
    for unit in units:
        chances = plan.chances(unit.step)
        chance, treated = chances[treatment] / (chances[0] + chances[treatment]), unit.arm == treatment
        mine = given.get(unit.id, ())
        timely = mine[:1] if window == 0 else [one for one in mine if one.at <= unit.seen + window]
        late += 0 if window == 0 else len(mine) - len(timely)
        if (window == 0 and not timely) or unit.seen + window > records.now:
            unsettled += 1
        elif timely:
            rows.append((timely[0].order if window == 0 else unit.id, treated, chance, aggregated(timely, metric)))
        elif metric.missing is not None:
            rows.append((unit.id, treated, chance, metric.missing))
        else:
            silent[treated] += 1
    rows.sort()
    value_N = np.array([row[3] for row in rows], dtype=np.float64)
    gain_N = (value_N - metric.low) / (metric.high - metric.low)
    return Settled(
        treated_N=np.array([row[1] for row in rows], dtype=bool),
        chance_N=np.array([row[2] for row in rows], dtype=np.float64),
        gain_N=gain_N if metric.better == "higher" else 1 - gain_N,
        value_N=value_N,
        unsettled=unsettled,
        silent=(silent[0], silent[1]),
        late=late,
    )


def comparable(records: Records, treatment: int) -> list[UnitRow]:
    """Units that chance sent to the treatment or to the control, while both were to be had until the window's end."""
    plan = records.plan
    return [
        unit
        for unit in records.units
        if unit.arm in (0, treatment)
        and not unit.chosen
        and plan.chances(unit.step)[treatment] > 0
        and stays_on(records.events, treatment, unit.seen, unit.seen + plan.window_seconds)
    ]


def is_on(events: Sequence[Event], arm: int, at: float) -> bool:
    """Whether an arm answered at a time."""
    return next((event.on for event in reversed(events) if event.arm == arm and event.at <= at), True)


def stays_on(events: Sequence[Event], arm: int, start: float, end: float) -> bool:
    """Whether an arm answered from `start` to `end`, both included."""
    return is_on(events, arm, start) and not any(event.arm == arm and not event.on and start < event.at <= end for event in events)


@dataclass(frozen=True, slots=True)
class Given:
    """An outcome that counts. `order` is its place among all."""

    order: int
    at: float
    value: float


def aggregated(given: Sequence[Given], metric: Metric) -> float:
    """One number of a unit's outcomes, in the order in which they came."""
    values = [one.value for one in given]
    number = {
        "mean": sum(values) / len(values),
        "max": max(values),
        "min": min(values),
        "sum": sum(values),
        "first": values[0],
        "last": values[-1],
    }[metric.aggregate]
    return min(metric.high, max(metric.low, number))


def _given(records: Records, treatment: int, metric: str) -> Mapping[int, Sequence[Given]]:
    """Outcomes of each unit, in order. Of an answer that was judged again the last word counts, unless the first one settled the unit."""
    arms = {unit.id: unit.arm for unit in records.units}
    again = records.plan.window_seconds > 0
    found: dict[int, dict[object, Given]] = {}
    for order, row in enumerate(records.outcomes):
        if row.metric == metric and _own(row, arms[row.unit], treatment, records):
            key: object = row.exposure if row.exposure is not None and again else order
            found.setdefault(row.unit, {}).pop(key, None)
            found[row.unit][key] = Given(order, row.at, row.value)
    return {unit: tuple(given.values()) for unit, given in found.items()}


def _own(row: OutcomeRow, arm: int, treatment: int, records: Records) -> bool:
    """Whether it came while there was something to compare, and of an answer that the unit's own arm gave: not so after a fallback."""
    return is_on(records.events, treatment, row.at) and row.served in (None, arm)


def split_units(records: Records) -> tuple[list[int], list[tuple[float, ...]]]:
    """(arm, chances) of every unit that chance sent somewhere, for the check of the split."""
    plan: Plan = records.plan
    units = [unit for unit in records.units if not unit.chosen]
    return [unit.arm for unit in units], [plan.chances(unit.step) for unit in units]

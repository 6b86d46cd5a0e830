"""What an experiment has seen: units with their arms, exposures, outcomes, and what was decided. SQLite, or PostgreSQL by URL.

In: units and outcomes as they come, from any number of processes. Out: arms that never change, and all records for the analysis. Each
call is one transaction of the store's only writer, so two processes that meet a unit at once give it one arm, and a fallback that one
has begun holds for the next request of every other. Nothing of what was asked or answered is kept, and no unit by its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import orjson
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    select,
)

from sapwood.ab.assign import Unit
from sapwood.ab.plan import Plan, changes, plan_from
from sapwood.config import did_you_mean, to_dict
from sapwood.errors import ConfigError, DataError, StorageError
from sapwood.store import Store, open_store

VERSION = 1
TABLES = MetaData()
EXPERIMENTS = Table(
    "experiments",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), unique=True, nullable=False),
    Column("plan", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("started", Float, nullable=False),
)
UNITS = Table(
    "units",
    TABLES,
    Column("id", Integer, primary_key=True),  # in the order in which they came: there is one writer at a time
    Column("experiment", ForeignKey("experiments.id"), nullable=False),
    Column("key", String(32), nullable=False),
    Column("arm", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("chosen", Boolean, nullable=False),  # by hand, so never counted
    Column("seen", Float, nullable=False),
    UniqueConstraint("experiment", "key"),
)
EXPOSURES = Table(
    "exposures",
    TABLES,
    Column("id", String(64), primary_key=True),
    Column("unit", ForeignKey("units.id"), nullable=False, index=True),
    Column("served", Integer, nullable=False),  # the arm that answered: not the unit's own after a fallback
    Column("at", Float, nullable=False),
)
OUTCOMES = Table(
    "outcomes",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("unit", ForeignKey("units.id"), nullable=False, index=True),
    Column("exposure", ForeignKey("exposures.id"), nullable=True),
    Column("metric", String(100), nullable=False),
    Column("value", Float, nullable=False),
    Column("at", Float, nullable=False),
)
EVENTS = Table(
    "events",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("experiment", ForeignKey("experiments.id"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("arm", Integer, nullable=False),
    Column("on", Boolean, nullable=False),
    Column("why", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Served:
    """Which arm a unit has, and which one answers it now: another only after a fallback."""

    arm: int
    answers: int


@dataclass(frozen=True, slots=True)
class Event:
    """An arm was switched off (its units are answered by the control) or on again."""

    at: float
    arm: int
    on: bool
    why: str


@dataclass(frozen=True, slots=True)
class UnitRow:
    """A unit as the analysis reads it."""

    id: int
    arm: int
    step: int
    chosen: bool
    seen: float


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """An outcome as the analysis reads it."""

    unit: int
    exposure: str | None
    metric: str
    value: float
    at: float
    served: int | None
    """The arm that answered; None where the outcome names no answer."""


@dataclass(frozen=True, slots=True)
class Records:
    """Everything of one experiment, at one moment."""

    plan: Plan
    started: float
    now: float
    units: Sequence[UnitRow]
    outcomes: Sequence[OutcomeRow]
    events: Sequence[Event]
    exposures: int


class Book:
    """The records of one experiment, open. May be used from any thread."""

    def __init__(self, store: Store, experiment: int, plan: Plan, started: float, clock: Callable[[], float]) -> None:
        self.plan, self.started = plan, started
        self._store, self._experiment, self._clock = store, experiment, clock
        self._lock = threading.Lock()
        self._units: list[UnitRow] = []
        self._outcomes: list[OutcomeRow] = []
        self._last_outcome = 0
        """The last one that was read. Rows are only ever added, by one writer at a time, so what was read stays as it is."""

    @property
    def place(self) -> str:
        """Where the records lie, for messages."""
        return self._store.place

    def look(self, unit: Unit, chosen: int | None) -> Served:
        """What `expose` would say now. Nothing is recorded."""
        with self._store.reading() as connection:
            return self._served(connection, self._arm(connection, unit, chosen)[1])

    def expose(self, unit: Unit, chosen: int | None, exposure: str, expected: Served | None = None) -> Served:
        """Record that a unit is about to be answered. A unit that has an arm keeps it; a new one gets that of its place now.

        Where this is not what `look` said (a fallback came in between), nothing is recorded: look at what is returned, and come again.
        """
        now = self._clock()
        with self._store.writing() as connection:
            row, arm = self._arm(connection, unit, chosen)
            served = self._served(connection, arm)
            if expected not in (None, served):
                return served
            if row is None:
                values = {"experiment": self._experiment, "key": unit.key, "arm": arm, "step": self._step(), "chosen": chosen is not None}
                row = connection.execute(UNITS.insert().values(**values, seen=now).returning(UNITS.c.id)).scalar_one()
            connection.execute(EXPOSURES.insert().values(id=exposure, unit=row, served=served.answers, at=now))
        return served

    def outcome(self, values: Mapping[str, float], *, exposure: str | None = None, unit: Unit | None = None) -> None:
        """Record outcomes of an answer, or of a unit. Raises `DataError` where it was never answered here."""
        now = self._clock()
        with self._store.writing() as connection:
            if exposure is not None:
                query = select(UNITS.c.id).join(EXPOSURES, EXPOSURES.c.unit == UNITS.c.id).where(EXPOSURES.c.id == exposure)
            else:
                assert unit is not None, "an outcome belongs to an answer or to a unit"
                query = select(UNITS.c.id).where(UNITS.c.key == unit.key)
            row = connection.execute(query.where(UNITS.c.experiment == self._experiment)).scalar_one_or_none()
            if row is None:
                raise DataError(f"{'No answer' if exposure is not None else 'No unit'} of that name is known to this experiment.")
            rows = [{"unit": row, "exposure": exposure, "metric": name, "value": value, "at": now} for name, value in values.items()]
            connection.execute(OUTCOMES.insert(), rows)

    def switch(self, arm: int, on: bool, why: str) -> bool:
        """Switch an arm off or on again; False where it was so already."""
        with self._store.writing() as connection:
            if (arm not in self._off(connection)) == on:
                return False
            connection.execute(EVENTS.insert().values(experiment=self._experiment, at=self._clock(), arm=arm, on=on, why=why))
            return True

    def read(self) -> Records:
        """Everything, at one moment. Units and outcomes that were read before are not read again."""
        with self._lock, self._store.reading() as connection:
            mine = UNITS.c.experiment == self._experiment
            columns = (UNITS.c.id, UNITS.c.arm, UNITS.c.step, UNITS.c.chosen, UNITS.c.seen)
            newer = UNITS.c.id > (self._units[-1].id if self._units else 0)
            units = connection.execute(select(*columns).where(mine, newer).order_by(UNITS.c.id)).all()
            columns_of_outcome = (
                OUTCOMES.c.unit,
                OUTCOMES.c.exposure,
                OUTCOMES.c.metric,
                OUTCOMES.c.value,
                OUTCOMES.c.at,
                EXPOSURES.c.served,
            )
            outcomes = connection.execute(
                select(OUTCOMES.c.id, *columns_of_outcome)
                .join(UNITS, OUTCOMES.c.unit == UNITS.c.id)
                .outerjoin(EXPOSURES, OUTCOMES.c.exposure == EXPOSURES.c.id)
                .where(mine, OUTCOMES.c.id > self._last_outcome)
                .order_by(OUTCOMES.c.id)
            ).all()
            events = self._events(connection)
            exposures = connection.execute(select(func.count()).select_from(EXPOSURES.join(UNITS)).where(mine)).scalar_one()
            self._units += [UnitRow(*row) for row in units]
            self._outcomes += [OutcomeRow(*row[1:]) for row in outcomes]
            self._last_outcome = outcomes[-1].id if outcomes else self._last_outcome
            return Records(
                plan=self.plan,
                started=self.started,
                now=self._clock(),
                units=tuple(self._units),
                outcomes=tuple(self._outcomes),
                events=events,
                exposures=exposures,
            )

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _step(self) -> int:
        return self.plan.step_at(self._clock() - self.started)

    def _arm(self, connection: Connection, unit: Unit, chosen: int | None) -> tuple[int | None, int]:
        """(the unit's row, None for a new one; its arm)"""
        query = select(UNITS.c.id, UNITS.c.arm).where(UNITS.c.experiment == self._experiment, UNITS.c.key == unit.key)
        found = connection.execute(query).one_or_none()
        if found is not None:
            return found.id, found.arm
        return None, self.plan.arm_at(unit.place, self._step()) if chosen is None else chosen

    def _served(self, connection: Connection, arm: int) -> Served:
        return Served(arm, 0 if arm in self._off(connection) else arm)

    def _off(self, connection: Connection) -> set[int]:
        last = {event.arm: event.on for event in self._events(connection)}
        return {arm for arm, on in last.items() if not on}

    def _events(self, connection: Connection) -> list[Event]:
        columns = (EVENTS.c.at, EVENTS.c.arm, EVENTS.c.on, EVENTS.c.why)
        query = select(*columns).where(EVENTS.c.experiment == self._experiment).order_by(EVENTS.c.id)
        return [Event(*row) for row in connection.execute(query)]


def begin(plan: Plan, place: str | PathLike[str], *, clock: Callable[[], float] = time.time) -> Book:
    """Open the records of a plan's experiment, and begin it where they do not know it.

    Raises `ConfigError` where the plan is not the one it was begun with, `StorageError` where the records cannot be opened.
    """
    store = open_store(place, TABLES, kind="ab", version=VERSION)
    try:
        with store.writing() as connection:
            found = connection.execute(select(EXPERIMENTS).where(EXPERIMENTS.c.name == plan.name)).one_or_none()
            if found is None:
                text = orjson.dumps(to_dict(plan)).decode()
                values = {"name": plan.name, "plan": text, "hash": plan.hash, "started": clock()}
                found = connection.execute(EXPERIMENTS.insert().values(**values).returning(*EXPERIMENTS.c)).one()
        if differing := changes(plan_from(orjson.loads(found.plan), store.place), plan):
            raise ConfigError(
                f"The plan {plan.name!r} is not the one it was begun with ({store.place}): {', '.join(differing)} changed. An interval "
                "holds for one plan only: put it back, or give the new plan another name."
            )
    except BaseException:
        store.close()
        raise
    return Book(store, found.id, plan, found.started, clock)


def reopen(name: str | None, place: str | PathLike[str], *, clock: Callable[[], float] = time.time) -> Book:
    """Open the records of an experiment that was begun, by its name; by none where there is one only.

    Raises `ConfigError` for a name that they do not know, `StorageError` where there are no records.
    """
    store = open_store(place, TABLES, kind="ab", version=VERSION, create=False)
    try:
        with store.reading() as connection:
            rows = connection.execute(select(EXPERIMENTS).order_by(EXPERIMENTS.c.id)).all()
        names = [row.name for row in rows]
        if not rows:
            raise StorageError(f"{store.place} holds no experiment yet. `sapwood serve --experiment PLAN.yaml` begins one.")
        if name is None and len(rows) > 1:
            raise ConfigError(f"{store.place} holds several experiments; name one: {', '.join(names)}.")
        if name is not None and name not in names:
            raise ConfigError(f"{store.place} holds no experiment {name!r}.{did_you_mean(name, names)} It holds {', '.join(names)}.")
        found = rows[0 if name is None else names.index(name)]
        return Book(store, found.id, plan_from(orjson.loads(found.plan), store.place), found.started, clock)
    except BaseException:
        store.close()
        raise

"""A rater's desk: the next case, a vote, an undo, a skip, a draft. Every function is one step inside a transaction of the only writer.

In: a connection that may write, a batch, a person, the time. Out: a `Shown` case, or nothing where there is none left.

Who gets what: a case that the person holds already (on whatever device); at its turn one whose answer is known; else, every second time,
one that another has judged, so that agreement is known early; else any. Among those the place is random, anew for each turn of each rater.
A hold that has run out is anybody's. Left out on purpose: assigning cases by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, false, func, or_, select

from sapwood.review.batch import PLACES, Batch
from sapwood.review.pairs import hash_of
from sapwood.review.tables import batches, cases, guidelines, passes, seats, votes
from sapwood.review.verdicts import disagreement, from_machine, lean, verdicts_of

LONGEST_TEXT = 20_000
"""Letters of a comment or a draft."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A case as one rater sees it."""

    seat: int
    case: Row[Any]
    left: str
    """a | b"""
    turn: int
    draft: Mapping[str, Any]
    began: float


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a rater said, in terms of a and b."""

    verdict: str
    criteria: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    errors: tuple[Mapping[str, str], ...] = ()
    comment: str = ""
    ms: int = 0


def next_case(connection: Connection, batch: Batch, person: int, now: float) -> Shown | None:
    """The case at hand, else a new one, held for this person from now on; None where nothing is left (or the batch is closed)."""
    if not batch.open:
        return None
    aside = exists(select(passes.c.case).where(passes.c.case == seats.c.case, passes.c.person == person))
    mine = (seats.c.person == person, seats.c.batch == batch.id, seats.c.vote.is_(None))
    held = connection.execute(select(seats).where(*mine, ~aside).order_by(seats.c.id)).first()
    if held is not None:  # also where it has run out and nobody else took it
        connection.execute(seats.update().where(seats.c.id == held.id).values(until=now + batch.hold))
        return _shown(connection, held)
    turn = _turn(connection, batch, person)
    free = _known(connection, batch, person, turn) or _free(connection, batch, person, turn, now)
    if free is None:
        return None
    seat, case = free
    values = {
        "person": person,
        "until": now + batch.hold,
        "left": batch.left_for(case, person),
        "turn": turn,
        "began": now,
        "draft": None,
    }
    connection.execute(seats.update().where(seats.c.id == seat).values(**values))
    return _shown(connection, connection.execute(select(seats).where(seats.c.id == seat)).one())


def cast(connection: Connection, batch: Batch, person: int, seat: int, ballot: Ballot, now: float) -> str:
    """Write a vote down. `kept`, or why not: `closed`, `lost` (the hold ran out and another has it), `done` (it is there already).

    A form that is sent twice finds the vote `done`, and nothing is counted twice.
    """
    row = connection.execute(select(seats).where(seats.c.id == seat, seats.c.batch == batch.id)).one_or_none()
    if row is None or row.person != person:
        return "lost"
    if row.vote is not None:
        return "done"
    if not batch.open:
        return "closed"
    before = connection.execute(
        select(func.max(votes.c.id)).where(votes.c.person == person, votes.c.batch == batch.id, votes.c.case == row.case)
    ).scalar_one()
    seconds = max(0.0, now - row.began)
    values = {
        "batch": batch.id,
        "case": row.case,
        "seat": seat,
        "person": person,
        "left": row.left,
        "turn": row.turn,
        "verdict": ballot.verdict,
        "criteria": {name: dict(marks) for name, marks in ballot.criteria.items()},
        "errors": [dict(error) for error in ballot.errors],
        "comment": ballot.comment[:LONGEST_TEXT],
        "ms": int(min(max(0, ballot.ms), 1000 * seconds)),  # a browser may claim less than has passed, never more
        "guideline": current_guideline(connection, batch.id),
        "at": now,
        "supersedes": before,
    }
    key = connection.execute(votes.insert().values(**values)).inserted_primary_key
    assert key is not None
    connection.execute(seats.update().where(seats.c.id == seat).values(vote=int(key[0]), until=None, draft=None))
    connection.execute(seats.update().where(seats.c.case == row.case, seats.c.vote.is_(None)).values(ready=1))
    _reckon(connection, batch, row.case, 0 if row.gold else 1)
    return "kept"


def undo(connection: Connection, batch: Batch, person: int, now: float) -> Shown | None:
    """Take the last standing vote back and show its case again, with what was said; None where there is nothing to take back.

    The vote stays, withdrawn; what is said next names it. A case at hand goes back, and is there again afterwards.
    """
    last = connection.execute(
        select(votes)
        .where(votes.c.person == person, votes.c.batch == batch.id, votes.c.withdrawn.is_(None))
        .order_by(votes.c.id.desc())
        .limit(1)
    ).one_or_none()
    if last is None or not batch.open:
        return None
    release(connection, batch, person)
    connection.execute(votes.update().where(votes.c.id == last.id).values(withdrawn=now))
    draft = {"verdict": last.verdict, "criteria": last.criteria, "errors": last.errors, "comment": last.comment}
    values = {"vote": None, "until": now + batch.hold, "draft": draft, "began": now}
    connection.execute(seats.update().where(seats.c.id == last.seat).values(**values))
    seat = connection.execute(select(seats).where(seats.c.id == last.seat)).one()
    _reckon(connection, batch, last.case, 0 if seat.gold else -1)
    return _shown(connection, seat)


def skip(connection: Connection, batch: Batch, person: int, seat: int, now: float) -> bool:
    """Lay a case aside: others may have it, and this person not before asking for what was skipped. False where it is not theirs."""
    row = connection.execute(select(seats).where(seats.c.id == seat, seats.c.person == person, seats.c.vote.is_(None))).one_or_none()
    if row is None:
        return False
    release(connection, batch, person)
    connection.execute(passes.delete().where(passes.c.case == row.case, passes.c.person == person))
    connection.execute(passes.insert().values(case=row.case, person=person, batch=batch.id, at=now))
    return True


def bring_back(connection: Connection, batch: Batch, person: int) -> None:
    """Offer what was skipped once more."""
    connection.execute(passes.delete().where(passes.c.batch == batch.id, passes.c.person == person))


def release(connection: Connection, batch: Batch, person: int) -> None:
    """Give back what a person holds; a seat that was made for one rater alone goes."""
    mine = and_(seats.c.person == person, seats.c.batch == batch.id, seats.c.vote.is_(None))
    spoken = exists(select(votes.c.id).where(votes.c.seat == seats.c.id))
    connection.execute(seats.delete().where(mine, seats.c.gold, ~spoken))
    freed = {"person": None, "until": None, "left": None, "turn": None, "began": None, "draft": None}
    connection.execute(seats.update().where(mine, ~seats.c.gold).values(**freed))


def save_draft(connection: Connection, person: int, seat: int, draft: Mapping[str, Any], now: float, hold: float) -> bool:
    """Keep what is half said, on this or any other device; False where the case is no longer this person's."""
    mine = and_(seats.c.id == seat, seats.c.person == person, seats.c.vote.is_(None))
    return connection.execute(seats.update().where(mine).values(draft=dict(draft), until=now + hold)).rowcount == 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is."""

    mine: int
    skipped: int
    votes: int
    wanted: int

    @property
    def share(self) -> float:
        """Of the batch, 0..1."""
        return self.votes / self.wanted if self.wanted else 1.0


def progress(connection: Connection, batch: Batch, person: int) -> Progress:
    """Of one person and of all, cases with known answers left out of the latter."""
    mine = _count(connection, votes, votes.c.person == person, votes.c.batch == batch.id, votes.c.withdrawn.is_(None))
    skipped = _count(connection, passes, passes.c.person == person, passes.c.batch == batch.id)
    row = connection.execute(select(batches.c.given, batches.c.wanted).where(batches.c.id == batch.id)).one()
    return Progress(mine, skipped, row.given, row.wanted)


def current_guideline(connection: Connection, batch: int) -> int:
    """The version that raters read now."""
    return int(connection.execute(select(func.max(guidelines.c.version)).where(guidelines.c.batch == batch)).scalar_one())


def _count(connection: Connection, table: Any, *where: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def _turn(connection: Connection, batch: Batch, person: int) -> int:
    """How many cases this person has judged or skipped in the batch."""
    judged = _count(connection, votes, votes.c.person == person, votes.c.batch == batch.id)
    return judged + _count(connection, passes, passes.c.person == person, passes.c.batch == batch.id)


def _known(connection: Connection, batch: Batch, person: int, turn: int) -> tuple[int, int] | None:
    """A seat at a case whose answer is known, made for this person, where it is time for one."""
    if not batch.gold_every:
        return None
    offset = int(hash_of(batch.salt, "gold", str(person)), 16) % batch.gold_every
    if turn % batch.gold_every != offset:
        return None
    mine = exists(select(seats.c.id).where(seats.c.case == cases.c.id, seats.c.person == person))
    passed = exists(select(passes.c.case).where(passes.c.case == cases.c.id, passes.c.person == person))
    found = (
        connection.execute(select(cases.c.id).where(cases.c.batch == batch.id, cases.c.gold.is_not(None), ~mine, ~passed)).scalars().all()
    )
    if not found:
        return None
    case = min(found, key=lambda key: hash_of(batch.salt, "which gold", str(key), str(person)))
    number = int(connection.execute(select(func.coalesce(func.max(seats.c.number), -1)).where(seats.c.case == case)).scalar_one()) + 1
    values = {"batch": batch.id, "case": case, "number": number, "place": 0, "ready": 0, "gold": True}
    key = connection.execute(seats.insert().values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0]), case


def _free(connection: Connection, batch: Batch, person: int, turn: int, now: float) -> tuple[int, int] | None:
    """A free seat at a case that the person has not judged, from a random place on."""
    start = int(hash_of(batch.salt, "turn", str(turn), str(person)), 16) % PLACES
    other = seats.alias()
    mine = exists(select(other.c.id).where(other.c.case == seats.c.case, other.c.person == person))
    passed = exists(select(passes.c.case).where(passes.c.case == seats.c.case, passes.c.person == person))
    free = or_(seats.c.person.is_(None), seats.c.until < now)
    common = (seats.c.batch == batch.id, seats.c.gold == false(), seats.c.vote.is_(None), free, ~mine, ~passed)
    for ready in (1, 0) if turn % 2 else (0, 1):
        for side in (seats.c.place >= start, seats.c.place < start):
            query = select(seats.c.id, seats.c.case).where(*common, seats.c.ready == ready, side).order_by(seats.c.place).limit(1)
            if (found := connection.execute(query).one_or_none()) is not None:
                return found.id, found.case
    return None


def _shown(connection: Connection, seat: Row[Any]) -> Shown:
    case = connection.execute(select(cases).where(cases.c.id == seat.case)).one()
    return Shown(seat.id, case, seat.left, seat.turn, seat.draft or {}, seat.began)


def _reckon(connection: Connection, batch: Batch, case: int, more: int) -> None:
    """Note on a case how far its votes differ among each other and from the machine: what experts' queues are sorted by."""
    if more:
        connection.execute(batches.update().where(batches.c.id == batch.id).values(given=batches.c.given + more))
    row = connection.execute(select(cases).where(cases.c.id == case)).one()
    said = connection.execute(select(votes.c.verdict, votes.c.left).where(votes.c.case == case, votes.c.withdrawn.is_(None))).all()
    leans = [value for vote in said if (value := lean(vote.verdict, vote.left)) is not None]
    machine = from_machine(row.machine, row.arm_a, row.arm_b)
    against = abs(sum(leans) / len(leans) - machine) if leans and machine is not None else 0.0
    values = {"split": disagreement(leans), "against": against, "votes": len(said)}
    connection.execute(cases.update().where(cases.c.id == case).values(**values))


def is_verdict(batch: Batch, word: str) -> bool:
    """Whether a rater may say that here."""
    return word in verdicts_of(batch.kind)

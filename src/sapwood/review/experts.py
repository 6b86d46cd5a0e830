"""What experts do: look at the cases that need them most, correct answers in place, decide where others differ, keep the guidelines.

In: a connection, a batch, an expert. Out: rows of queues, and records that are only ever added to. An expert sees the votes and who gave
them, never which arm an answer is of. Left out on purpose: handing a case to one expert by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, exists, func, select

from sapwood.errors import DataError
from sapwood.review.batch import Batch, text_of
from sapwood.review.desk import LONGEST_TEXT, current_guideline
from sapwood.review.masking import uncover
from sapwood.review.pairs import hash_of
from sapwood.review.tables import cases, corrections, guidelines, people, rulings, votes
from sapwood.review.verdicts import verdicts_of

Queue = Literal["disagreement", "judge", "severity", "uncertainty", "all", "done"]
QUEUES: dict[Queue, str] = {
    "disagreement": "Raters differ",
    "judge": "Raters and judge differ",
    "severity": "Severe",
    "uncertainty": "Uncertain",
    "all": "All",
    "done": "Decided",
}
LONGEST_ANSWER = 400_000
"""Letters of a corrected answer."""


@dataclass(frozen=True, slots=True)
class QueuePage:
    """Some rows of a queue and where the next ones begin."""

    rows: Sequence[Row[Any]]
    total: int
    more: int | None
    """Place of the first row that is not among these; None at the end."""


def queue(connection: Connection, batch: Batch, which: Queue, *, start: int = 0, most: int = 40) -> QueuePage:
    """The cases of a queue, the most urgent first; what was decided is in `done` and `all` alone."""
    decided = exists(select(rulings.c.id).where(rulings.c.case == cases.c.id))
    key = {"disagreement": cases.c.split, "judge": cases.c.against, "severity": cases.c.severity, "uncertainty": cases.c.doubt}.get(which)
    where = [cases.c.batch == batch.id, cases.c.gold.is_(None)]
    if key is not None:
        where += [key > 0, ~decided]
    elif which == "done":
        where.append(decided)
    columns = (cases.c.id, cases.c.asked, cases.c.split, cases.c.against, cases.c.severity, cases.c.doubt, cases.c.votes)
    order = (cases.c.id,) if key is None else (key.desc(), cases.c.id)
    fixed = exists(select(corrections.c.id).where(corrections.c.case == cases.c.id)).label("corrected")
    query = select(*columns, fixed, decided.label("decided")).where(and_(*where)).order_by(*order).offset(start).limit(most)
    rows = connection.execute(query).all()
    total = int(connection.execute(select(func.count()).select_from(cases).where(and_(*where))).scalar_one())
    return QueuePage(rows, total, start + most if start + most < total else None)


def after(connection: Connection, batch: Batch, which: Queue, case: int) -> int | None:
    """The case behind this one in a queue, for going on without a look at the list; the first where this one has left it."""
    rows = [row.id for row in queue(connection, batch, which, most=200).rows]
    if case not in rows:
        return rows[0] if rows else None
    return rows[rows.index(case) + 1] if rows.index(case) + 1 < len(rows) else None


def left_for_experts(batch: Batch, case: int) -> str:
    """Which answer stands left for experts: the same for all of them, so that they can speak of it."""
    return "ab"[int(hash_of(batch.salt, "expert side", str(case)), 16) % 2]


def votes_on(connection: Connection, case: int) -> Sequence[Row[Any]]:
    """Standing votes with who gave them, in order."""
    query = select(votes, people.c.name).join(people, votes.c.person == people.c.id)
    return connection.execute(query.where(votes.c.case == case, votes.c.withdrawn.is_(None)).order_by(votes.c.id)).all()


def correction_of(connection: Connection, case: int, arm: str) -> Row[Any] | None:
    """The newest correction of an answer."""
    where = (corrections.c.case == case, corrections.c.arm == arm)
    query = select(corrections, people.c.name).join(people, corrections.c.person == people.c.id)
    return connection.execute(query.where(*where).order_by(corrections.c.id.desc()).limit(1)).one_or_none()


def correct_answer(
    connection: Connection, batch: Batch, case: Row[Any], side: str, after: str, reason: str, person: int, now: float, shown: int = 0
) -> bool:
    """Keep an answer as an expert wrote it, covered names put back; False where nothing differs from what stands.

    `side` is a | b; `shown` is the correction that the expert went on from, 0 for the answer itself: names are numbered as they stand
    there. Raises `DataError` for an answer that is empty or too long.
    """
    arm = case.arm_a if side == "a" else case.arm_b
    before = text_of(case.answers[arm])
    last = correction_of(connection, case.id, arm)
    mine = (corrections.c.id == shown, corrections.c.case == case.id, corrections.c.arm == arm)
    seen = connection.execute(select(corrections.c.after).where(*mine)).scalar_one_or_none()
    after = uncover(after.replace("\r\n", "\n"), batch.mask.cover(before if seen is None else seen)[1])
    if not after.strip():
        raise DataError("A corrected answer cannot be empty. To say that none is right, decide that the answer is bad.")
    if len(after) > LONGEST_ANSWER:
        raise DataError(f"The corrected answer has {len(after):,} letters; at most {LONGEST_ANSWER:,} are kept.")
    if after == (last.after if last is not None else before):
        return False
    values = {
        "batch": batch.id,
        "case": case.id,
        "person": person,
        "arm": arm,
        "before": before,
        "after": after,
        "reason": reason[:LONGEST_TEXT],
        "guideline": current_guideline(connection, batch.id),
        "at": now,
        "supersedes": last.id if last is not None else None,
    }
    connection.execute(corrections.insert().values(**values))
    return True


def ruling_of(connection: Connection, case: int) -> Row[Any] | None:
    """The newest ruling on a case."""
    query = select(rulings, people.c.name).join(people, rulings.c.person == people.c.id)
    return connection.execute(query.where(rulings.c.case == case).order_by(rulings.c.id.desc()).limit(1)).one_or_none()


def rule(connection: Connection, batch: Batch, case: int, verdict: str, reason: str, person: int, now: float) -> None:
    """Decide a case, in terms of a and b. Raises `DataError` for a verdict that is none, or without a reason."""
    if verdict not in verdicts_of(batch.kind):
        raise DataError(f"There is no verdict {verdict!r}. Choose one of those on the page.")
    if not reason.strip():
        raise DataError("A decision needs its reason: raters and the next expert read it.")
    last = ruling_of(connection, case)
    values = {
        "batch": batch.id,
        "case": case,
        "person": person,
        "verdict": verdict,
        "reason": reason.strip()[:LONGEST_TEXT],
        "guideline": current_guideline(connection, batch.id),
        "at": now,
        "supersedes": last.id if last is not None else None,
    }
    connection.execute(rulings.insert().values(**values))


def guideline_versions(connection: Connection, batch: Batch) -> Sequence[Row[Any]]:
    """Every version with its author, newest first."""
    query = select(guidelines, people.c.name).select_from(guidelines.outerjoin(people, guidelines.c.person == people.c.id))
    return connection.execute(query.where(guidelines.c.batch == batch.id).order_by(guidelines.c.version.desc())).all()


def write_guideline(connection: Connection, batch: Batch, text: str, person: int, now: float) -> int:
    """A new version, which raters read from now on; its number (the old one's where nothing differs). Raises `DataError` if it is empty."""
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise DataError("Guidelines cannot be empty: raters read them beside each case.")
    newest = guideline_versions(connection, batch)[0]
    if newest.text.strip() == text:
        return int(newest.version)
    values = {"batch": batch.id, "version": newest.version + 1, "text": text[:LONGEST_ANSWER], "person": person, "at": now}
    connection.execute(guidelines.insert().values(**values))
    return int(newest.version) + 1

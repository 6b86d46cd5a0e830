"""A review database in which an expert has corrected some answers."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from sapwood.review.batch import BatchConfig, Candidate, make_batch
from sapwood.review.experts import correct_answer
from sapwood.review.people import Role, invite
from sapwood.review.rubric import Rubric
from sapwood.review.tables import KIND, VERSION, cases, metadata
from sapwood.store import open_store


def write_corrections(place: Path, count: int) -> None:
    """So many of some single answers are corrected."""
    items = [
        Candidate(
            key=f"{number}",
            asked=[{"role": "user", "content": f"how is {number}"}],
            answers={"answer": {"role": "assistant", "content": "bad"}},
        )
        for number in range(2 * count + 1)
    ]
    with open_store(str(place), metadata, kind=KIND, version=VERSION) as store, store.writing() as connection:
        batch, _ = make_batch(connection, items, BatchConfig(), Rubric(), name="answers", source="a test", now=0.0)
        person, _ = invite(connection, "eve", Role.EXPERT, 0.0)
        for case in connection.execute(select(cases).order_by(cases.c.id).limit(count)).all():
            correct_answer(connection, batch, case, "a", f"{case.key} is good", "so it is", person.id, 1.0)

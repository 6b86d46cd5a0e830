"""What the review database holds, as tables. No row that a person made is ever changed but to say that it was withdrawn.

    batches ─┬─ cases ─┬─ seats ── votes        a seat is a place for one rater's vote on one case; there are as many as the overlap
             │         ├─ corrections           an answer as an expert would have written it
             │         ├─ rulings               what an expert decided where raters, or a judge and raters, differ, and why
             │         └─ passes                who does not want to see it now
             └─ guidelines                      every version of the instructions
    people ── sessions                          who may come in; tokens and cookies lie here as hashes alone
    events                                      what was done and what was refused, by whom, from where

That a case never gets more votes than its overlap, and no rater votes on one twice, are constraints here, not promises of the code.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

KIND, VERSION = "review", 1

metadata = MetaData()
_ID = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[int]:
    return Column("id", _ID, primary_key=True, autoincrement=True)


def _to(table: str, name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, _ID, ForeignKey(f"{table}.id"), nullable=nullable)


batches = Table(
    "batches",
    metadata,
    _id(),
    Column("name", String(120), nullable=False, unique=True),
    Column("kind", String(10), nullable=False),  # pair | single
    Column("state", String(10), nullable=False),  # open | closed
    Column("salt", String(64), nullable=False),  # sides, order and the names "System 1", "System 2" come from it
    Column("overlap", Integer, nullable=False),
    Column("hold", Float, nullable=False),  # seconds that a rater may keep a case without voting
    Column("gold_every", Integer, nullable=False),
    Column("arms", JSON, nullable=False),
    Column("rubric", JSON, nullable=False),
    Column("masked", JSON, nullable=False),  # words that would tell who is who
    Column("source", Text, nullable=False),
    Column("begun", Float, nullable=False),
    Column("closed", Float),
    Column("wanted", Integer, nullable=False),  # seats and votes in all, counted along: nobody has to count 150,000 rows for a bar
    Column("given", Integer, nullable=False),
)

cases = Table(
    "cases",
    metadata,
    _id(),
    _to("batches", "batch"),
    Column("key", String(80), nullable=False),
    Column("arm_a", String(200), nullable=False),
    Column("arm_b", String(200)),  # none where a single answer is judged
    Column("asked", JSON, nullable=False),
    Column("tools", JSON, nullable=False),
    Column("answers", JSON, nullable=False),  # arm → message
    Column("length_a", Integer, nullable=False),  # letters of its text
    Column("length_b", Integer, nullable=False),
    Column("reference", JSON, nullable=False),
    Column("cluster", String(200)),
    Column("gold", String(200)),  # the verdict that is known to be right, in terms of a and b
    Column("machine", JSON, nullable=False),  # arm → score of a scorer or judge
    Column("severity", Float, nullable=False),  # 0..1, how bad an error would be here
    Column("doubt", Float, nullable=False),  # 0..1, how unsure the model or its judge was
    Column("source", Text, nullable=False),
    Column("split", Float, nullable=False),  # 0..1, how far those who voted disagree
    Column("against", Float, nullable=False),  # 0..1, how far they disagree with the machine
    Column("votes", Integer, nullable=False),
    UniqueConstraint("batch", "key", "arm_a", "arm_b"),
    Index("cases_by_split", "batch", "split", "id"),
    Index("cases_by_against", "batch", "against", "id"),
    Index("cases_by_severity", "batch", "severity", "id"),
    Index("cases_by_doubt", "batch", "doubt", "id"),
)

people = Table(
    "people",
    metadata,
    _id(),
    Column("name", String(80), nullable=False, unique=True),
    Column("role", String(10), nullable=False),
    Column("token", String(64), nullable=False, unique=True),
    Column("made", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("paused", Boolean, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    _to("people", "person"),
    Column("form", String(64), nullable=False),  # what every form of this session carries
    Column("expires", Float, nullable=False),
)

seats = Table(
    "seats",
    metadata,
    _id(),
    _to("batches", "batch"),
    _to("cases", "case"),
    Column("number", Integer, nullable=False),
    Column("place", BigInteger, nullable=False),  # a random number, the same for all seats of a case
    Column("ready", Integer, nullable=False),  # 1 once another rater has voted on the case
    Column("gold", Boolean, nullable=False),
    _to("people", "person", nullable=True),
    Column("until", Float),
    Column("left", String(1)),  # a | b: which answer stands left for this rater
    Column("turn", Integer),  # how many cases this rater had been given before
    Column("began", Float),
    Column("draft", JSON),
    Column("vote", _ID),
    UniqueConstraint("case", "number"),
    UniqueConstraint("case", "person"),
    # what is still to be given, in order of its place: no other index gives that order on both databases
    Index(
        "seats_free",
        "batch",
        "ready",
        "place",
        sqlite_where=text("vote IS NULL AND gold = 0"),
        postgresql_where=text("vote IS NULL AND gold = false"),
    ),
    Index("seats_mine", "person", "batch", "vote"),
)

passes = Table(
    "passes",
    metadata,
    Column("case", _ID, ForeignKey("cases.id"), primary_key=True),
    Column("person", _ID, ForeignKey("people.id"), primary_key=True),
    _to("batches", "batch"),
    Column("at", Float, nullable=False),
)

votes = Table(
    "votes",
    metadata,
    _id(),
    _to("batches", "batch"),
    _to("cases", "case"),
    _to("seats", "seat"),
    _to("people", "person"),
    Column("left", String(1), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("verdict", String(20), nullable=False),
    Column("criteria", JSON, nullable=False),  # criterion → {"a": 1..5, "b": 1..5}, in terms of a and b, not of sides
    Column("errors", JSON, nullable=False),  # [{"answer": "a", "type": …, "severity": …}]
    Column("comment", Text, nullable=False),
    Column("ms", BigInteger, nullable=False),
    Column("guideline", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("supersedes", _ID),
    Column("withdrawn", Float),
    Index("votes_of_person", "person", "batch", "id"),
    Index("votes_of_case", "case", "id"),
)

corrections = Table(
    "corrections",
    metadata,
    _id(),
    _to("batches", "batch"),
    _to("cases", "case"),
    _to("people", "person"),
    Column("arm", String(200), nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("guideline", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("supersedes", _ID),
    Index("corrections_of_case", "case", "id"),
)

rulings = Table(
    "rulings",
    metadata,
    _id(),
    _to("batches", "batch"),
    _to("cases", "case"),
    _to("people", "person"),
    Column("verdict", String(20), nullable=False),  # in terms of a and b
    Column("reason", Text, nullable=False),
    Column("guideline", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("supersedes", _ID),
    Index("rulings_of_case", "case", "id"),
)

guidelines = Table(
    "guidelines",
    metadata,
    _id(),
    _to("batches", "batch"),
    Column("version", Integer, nullable=False),
    Column("text", Text, nullable=False),
    _to("people", "person", nullable=True),
    Column("at", Float, nullable=False),
    UniqueConstraint("batch", "version"),
)

events = Table(
    "events",
    metadata,
    _id(),
    Column("at", Float, nullable=False),
    _to("people", "person", nullable=True),
    Column("action", String(40), nullable=False),
    Column("detail", Text, nullable=False),
    Column("address", String(60), nullable=False),
)

"""A batch: what is judged, by how many, how. Candidates and knobs in, rows of cases and seats out.

In: `Candidate`s of a source (a run, pairs, traffic, a data set). Out: an open batch in the database, or the one that is there already.
Where an item was answered by more than two arms, each pair of them that was asked for is a case of its own.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from sapwood.errors import ConfigError, DataError
from sapwood.review.masking import Mask
from sapwood.review.pairs import hash_of
from sapwood.review.rubric import Rubric, rubric_from
from sapwood.review.tables import batches, cases, guidelines, seats

Kind = Literal["pair", "single"]
AT_ONCE = 500
"""Cases that are written together."""
PLACES = 2**62
_NAMELIKE = re.compile(r"[A-Z0-9/_-]")
"""What an arm's name must hold to be covered in answers: `tuned` and `chosen` are words that anybody may write."""

FIRST_GUIDELINE = """\
Judge what the user gets, not how it sounds.

- **Right before nice.** A wrong answer loses against a plain one that is right.
- **Longer is not better.** Ask what the user would miss in the shorter one.
- **A tie is an answer.** So are *both bad* and *cannot judge*; do not toss a coin.
"""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How a batch is judged."""

    name: str | None = None
    """The batch's name; the source's own where not given."""
    single: bool = False
    """Judge answers one by one, not in pairs."""
    arms: tuple[str, ...] = ()
    """The arms that are judged; where not given, the tuned one and the best of the others, or all where there is no tuned one."""
    overlap: int = 2
    """Raters who judge each case."""
    hold: float = 1800.0
    """Seconds that a case stays with a rater who does not vote; then another may have it."""
    gold_every: int = 10
    """Every so many cases a rater gets one whose answer is known, where there are such; 0 is never."""
    most: int = 0
    """Items to take at most, drawn at random; 0 takes all."""
    mask: tuple[str, ...] = ()
    """More words to cover in answers, beside the arms' names and those of models and their makers."""

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= 50:
            raise ConfigError(f"overlap is {self.overlap}; give 1 to 50 raters a case.")
        if not 10 <= self.hold <= 7 * 86400:
            raise ConfigError(f"hold is {self.hold}; give 10 seconds to a week.")
        if self.gold_every < 0 or self.gold_every == 1 or self.most < 0:
            raise ConfigError("gold_every is 0 (never) or at least 2; most is 0 (all) or more.")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item with the answers that were given to it."""

    key: str
    asked: Sequence[Mapping[str, Any]]
    """Messages as they are stored in `items.jsonl`."""
    answers: Mapping[str, Mapping[str, Any]]
    """Arm → message."""
    tools: Sequence[Mapping[str, Any]] = ()
    reference: Any = None
    cluster: str | None = None
    machine: Mapping[str, float] = field(default_factory=dict)
    severity: float = 0.0
    doubt: float = 0.0
    source: str = ""
    gold: Mapping[str, str] = field(default_factory=dict)
    """Arm → `better`, where it is known; for single answers `good` or `bad`."""


def text_of(message: Mapping[str, Any]) -> str:
    """A stored message's text, media left out."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content if isinstance(part, dict))


@dataclass(frozen=True)
class Batch:
    """A batch as it stands in the database."""

    id: int
    name: str
    kind: Kind
    open: bool
    salt: str
    overlap: int
    hold: float
    gold_every: int
    arms: tuple[str, ...]
    rubric: Rubric
    mask: Mask
    source: str
    begun: float
    closed: float | None

    def blind_name(self, arm: str) -> str:
        """How an arm is called while the batch is open: numbers that its secret deals out."""
        order = sorted(self.arms, key=lambda name: hash_of(self.salt, "name", name))
        return f"System {order.index(arm) + 1}" if arm in order else "System 0"

    def shown_name(self, arm: str) -> str:
        """The arm's own name once the batch is closed."""
        return self.blind_name(arm) if self.open else arm

    def left_for(self, case: int, person: int) -> str:
        """Which answer of a case stands left for somebody: a fair coin that falls the same way each time."""
        return "ab"[int(hash_of(self.salt, "side", str(case), str(person)), 16) % 2]


def batch_of(row: Row[Any]) -> Batch:
    """From its row."""
    return Batch(
        id=row.id,
        name=row.name,
        kind="pair" if row.kind == "pair" else "single",
        open=row.state == "open",
        salt=row.salt,
        overlap=row.overlap,
        hold=row.hold,
        gold_every=row.gold_every,
        arms=tuple(row.arms),
        rubric=rubric_from(row.rubric),
        mask=Mask(row.masked),
        source=row.source,
        begun=row.begun,
        closed=row.closed,
    )


def batch_by_id(connection: Connection, key: int) -> Batch | None:
    """The batch, None where there is none."""
    row = connection.execute(select(batches).where(batches.c.id == key)).one_or_none()
    return None if row is None else batch_of(row)


def all_batches(connection: Connection) -> list[Batch]:
    """Newest first."""
    return [batch_of(row) for row in connection.execute(select(batches).order_by(batches.c.id.desc()))]


def make_batch(
    connection: Connection,
    candidates: Iterable[Candidate],
    config: BatchConfig,
    rubric: Rubric,
    *,
    name: str,
    source: str,
    now: float,
    guideline: str = FIRST_GUIDELINE,
) -> tuple[Batch, int]:
    """Write a batch with its cases and seats; (batch, cases). Candidates whose verdict is known are for checking raters.

    Raises `DataError` where there is nothing to judge, `ConfigError` where the name is taken.
    """
    name = config.name or name
    if connection.execute(select(batches.c.id).where(batches.c.name == name)).first() is not None:
        raise ConfigError(f"There is a batch {name!r} here already. Give the new one another --name.")
    everything = list(candidates)
    taken, known = [one for one in everything if not one.gold], [one for one in everything if one.gold]
    arms = arms_of(taken, config)
    kind: Kind = "single" if config.single or len(arms) == 1 else "pair"
    salt = secrets.token_hex(16)
    if config.most:
        taken = sorted(taken, key=lambda one: hash_of(salt, "draw", one.key))[: config.most]
    values = {
        "name": name,
        "kind": kind,
        "state": "open",
        "salt": salt,
        "overlap": config.overlap,
        "hold": config.hold,
        "gold_every": config.gold_every,
        "arms": list(arms),
        "rubric": rubric.to_dict(),
        "masked": sorted({*(arm for arm in arms if _NAMELIKE.search(arm)), *config.mask}),
        "source": source,
        "begun": now,
        "wanted": 0,
        "given": 0,
    }
    key = connection.execute(batches.insert().values(**values)).inserted_primary_key
    assert key is not None
    batch = batch_by_id(connection, int(key[0]))
    assert batch is not None
    connection.execute(guidelines.insert().values(batch=batch.id, version=1, text=guideline, person=None, at=now))
    count = _write(connection, batch, (case for one in taken for case in _cases(one, arms, kind, salt)), seated=True)
    if count == 0:
        words = f"no item was answered by two of the arms {', '.join(arms)}" if arms and kind == "pair" else "there is no answer in it"
        raise DataError(f"{source}: nothing to judge: {words}. Name other --arms, or another source.")
    connection.execute(batches.update().where(batches.c.id == batch.id).values(wanted=count * config.overlap))
    connection.exec_driver_sql("ANALYZE")  # or the database plans as if the tables were still empty
    _write(connection, batch, (case for one in known for case in _cases(one, tuple(one.answers), kind, salt) if case["gold"]), seated=False)
    return batch, count


def arms_of(candidates: Sequence[Candidate], config: BatchConfig) -> tuple[str, ...]:
    """The arms that are judged. Raises `DataError` for names that no item has."""
    found = dict.fromkeys(arm for one in candidates for arm in one.answers)
    if unknown := [arm for arm in config.arms if arm not in found]:
        raise DataError(f"There is no arm {unknown[0]!r}. Arms: {', '.join(found) or 'none'}.")
    if config.arms:
        return config.arms
    if "tuned" not in found or len(found) < 3 or config.single:
        return ("tuned",) if config.single and "tuned" in found else tuple(found)
    score = {arm: [one.machine[arm] for one in candidates if arm in one.machine] for arm in found if arm != "tuned"}
    best = max(score, key=lambda arm: sum(score[arm]) / len(score[arm]) if score[arm] else -1.0)
    return ("tuned", best)


def _cases(one: Candidate, arms: tuple[str, ...], kind: Kind, salt: str) -> Iterator[dict[str, Any]]:
    """An item's cases. Which arm is `a` is drawn for each of them: pages carry the letter, and it must not say who is who."""
    present = [arm for arm in arms if arm in one.answers]
    chosen: list[tuple[str, str | None]] = [(arm, None) for arm in present]
    if kind != "single":
        pairs = itertools.combinations(present, 2)
        chosen = [pair if int(hash_of(salt, "letters", one.key, *pair), 16) % 2 else pair[::-1] for pair in pairs]
    for a, b in chosen:
        sides = [arm for arm in (a, b) if arm is not None]
        gold = one.gold.get(a) if b is None else "a" if one.gold.get(a) == "better" else "b" if one.gold.get(b) == "better" else None
        yield {
            "key": one.key,
            "arm_a": a,
            "arm_b": b,
            "asked": list(one.asked),
            "tools": list(one.tools),
            "answers": {arm: dict(one.answers[arm]) for arm in sides},
            "length_a": len(text_of(one.answers[a])),
            "length_b": len(text_of(one.answers[b])) if b is not None else 0,
            "reference": one.reference,
            "cluster": one.cluster,
            "gold": gold,
            "machine": {arm: one.machine[arm] for arm in sides if arm in one.machine},
            "severity": one.severity,
            "doubt": one.doubt,
            "source": one.source,
            "split": 0.0,
            "against": 0.0,
            "votes": 0,
        }


def _write(connection: Connection, batch: Batch, made: Iterator[dict[str, Any]], *, seated: bool) -> int:
    """Cases, each with as many seats as raters are to judge it; known ones get a seat when somebody is given one."""
    first = int(connection.execute(select(func.coalesce(func.max(cases.c.id), 0))).scalar_one()) + 1
    count = 0
    while rows := list(itertools.islice(made, AT_ONCE)):
        for number, row in enumerate(rows, first + count):
            row |= {"id": number, "batch": batch.id, "gold": None if seated else row["gold"]}
        connection.execute(cases.insert(), rows)
        if seated:
            connection.execute(seats.insert(), [seat for row in rows for seat in _seats(batch, row["id"])])
        count += len(rows)
    if count and connection.dialect.name == "postgresql":  # ids were given here, so the sequence has to hear of them
        connection.exec_driver_sql("SELECT setval(pg_get_serial_sequence('cases', 'id'), (SELECT max(id) FROM cases))")
    return count


def _seats(batch: Batch, case: int) -> list[dict[str, Any]]:
    place = int(hash_of(batch.salt, "place", str(case)), 16) % PLACES
    common = {"batch": batch.id, "case": case, "place": place, "ready": 0, "gold": False}
    return [common | {"number": number} for number in range(batch.overlap)]


def close_batch(connection: Connection, batch: Batch, now: float) -> None:
    """End the voting and let the names be seen. There is no way back: who has seen them is no longer blind."""
    connection.execute(batches.update().where(batches.c.id == batch.id).values(state="closed", closed=now))

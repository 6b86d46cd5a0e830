"""Back into the work: verdicts as scores, corrections as rows to train on, choices as preference pairs, rejections as items.

In: a review database and its batches. Out: files that `sapwood` reads, each record with its provenance under `review`, and `export.json`
that counts them. A decision of an expert goes before the votes. Arms bear their names once the batch is closed, and numbers before:
exporting is no way around the blind. Left out on purpose: records that withdrawn votes would make.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select

from sapwood.errors import storage
from sapwood.review.batch import Batch, text_of
from sapwood.review.results import cast_votes, results_of
from sapwood.review.tables import cases, corrections, people, rulings, votes
from sapwood.review.verdicts import from_machine, lean, outcome
from sapwood.run import SCHEMA, write_atomic
from sapwood.stats import rate_interval

FILES = ("votes", "scores", "sft", "preferences", "items")
COLUMNS = ("batch", "case", "item", "rater", "left", "right", "verdict", "winner", "comment", "errors", "criteria", "ms", "guideline", "at")
Record = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    counts: dict[str, int]
    blind: bool
    """Whether a batch in it is still open, so that its arms bear numbers."""

    def to_dict(self) -> Record:
        """For machines."""
        return {"folder": str(self.folder), "counts": self.counts, "blind": self.blind}


@dataclass(frozen=True)
class _Told:
    """All that was said about one case."""

    batch: Batch
    case: Row[Any]
    votes: list[Row[Any]]
    corrections: dict[str, Row[Any]]
    """The newest of each arm."""
    ruling: Row[Any] | None

    def name(self, arm: str | None) -> str:
        """The arm's name, as it may be shown."""
        return "" if arm is None else self.batch.shown_name(arm)

    @property
    def about(self) -> Record:
        """Where a record comes from."""
        return {"batch": self.batch.name, "case": self.case.id, "item": self.case.key, "source": self.case.source}

    @property
    def verdict(self) -> tuple[float | None, Record]:
        """(lean towards a, or goodness; who says so): the expert's where one has decided, else the mean of the raters'."""
        if self.ruling is not None:
            said = {"decided_by": self.ruling.name, "reason": self.ruling.reason, "guideline": self.ruling.guideline, "at": self.ruling.at}
            return lean(self.ruling.verdict, "a"), said
        leans = [value for vote in self.votes if (value := lean(vote.verdict, vote.left)) is not None]
        said = {"raters": [vote.name for vote in self.votes], "votes": [vote.id for vote in self.votes]}
        return (sum(leans) / len(leans) if leans else None), said


def export(connection: Connection, batches: Iterable[Batch], folder: Path) -> Exported:
    """Write everything into a folder, each file whole or not at all. Raises `StorageError` where the disk refuses."""
    with storage(folder, "create the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    chosen = list(batches)
    told = [one for batch in chosen for one in _told(connection, batch)]
    made: dict[str, list[Record]] = {
        "votes": [record for one in told for record in vote_records(one)],
        "scores": [record for one in told for record in score_records(one)],
        "sft": [record for one in told for record in sft_records(one)],
        "preferences": [record for one in told for record in preference_records(one)],
        "items": [record for one in told if (record := item_record(one)) is not None],
    }
    for name in FILES:
        write_atomic(folder / f"{name}.jsonl", _lines(made[name]))
    write_atomic(folder / "votes.csv", _csv(made["votes"]))
    counts = {name: len(made[name]) for name in FILES}
    blind = any(batch.open for batch in chosen)
    manifest = {"schema": SCHEMA, "batches": [batch.name for batch in chosen], "counts": counts, "blind": blind}
    write_atomic(folder / "export.json", orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
    return Exported(folder, counts, blind)


def corrections_file(connection: Connection, batches: Iterable[Batch], folder: Path) -> Path | None:
    """The corrected rows alone, in a file that bears the hash of what it holds: who trains on it trains on these. None without any."""
    records = [record for batch in batches for one in _told(connection, batch) for record in sft_records(one)]
    if not records:
        return None
    content = _lines(records)
    path = folder / f"corrections-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    if not path.exists():
        write_atomic(path, content)
    return path


def people_record(connection: Connection, batch: Batch) -> Record:
    """What the report of a run shows of people: rates with intervals, agreement, and how often its scorer says the same."""
    cast = cast_votes(connection, batch)
    results = results_of(batch, cast)
    machine = {
        row.id: from_machine(row.machine, row.arm_a, row.arm_b)
        for row in connection.execute(select(cases).where(cases.c.batch == batch.id))
    }
    said: dict[int, list[float]] = {}
    for vote in cast:
        if vote.lean is not None:
            said.setdefault(vote.case, []).append(vote.lean)
    same = [outcome(sum(leans) / len(leans)) == outcome(value) for case, leans in said.items() if (value := machine[case]) is not None]
    alpha = results.agreement.interval
    record: Record = {
        "batch": batch.name,
        "kind": batch.kind,
        "votes": results.votes,
        "cases": results.cases,
        "raters": len({vote.person for vote in cast}),
        "alpha": results.agreement.alpha,
        "alpha_interval": [alpha.low, alpha.high] if alpha else None,
        "rates": [
            {
                "name": rate.name,
                "against": rate.against,
                "mean": rate.mean,
                "low": rate.interval.low,
                "high": rate.interval.high,
                "votes": rate.votes,
            }
            for rate in results.rates
        ],
        "judge": None,
    }
    if same:
        interval = rate_interval(sum(same), len(same))
        record["judge"] = {
            "cases": len(same),
            "same": sum(same),
            "share": sum(same) / len(same),
            "low": interval.low,
            "high": interval.high,
        }
    return record


def vote_records(told: _Told) -> Iterator[Record]:
    """Every standing vote, with what stood where, in terms of arms."""
    for vote in told.votes:
        arms = {"a": told.name(told.case.arm_a), "b": told.name(told.case.arm_b)}
        value = lean(vote.verdict, vote.left)
        pair = told.case.arm_b is not None
        yield {
            "id": vote.id,
            "item": told.case.key,
            "case": told.case.id,
            "batch": told.batch.name,
            "rater": vote.name,
            "left": arms[vote.left] if pair else arms["a"],
            "right": arms["b" if vote.left == "a" else "a"] if pair else "",
            "verdict": vote.verdict,
            "winner": "" if not pair or value is None or value == 0.5 else arms["a"] if value > 0.5 else arms["b"],
            "criteria": {name: {arms[side]: step for side, step in steps.items()} for name, steps in vote.criteria.items()},
            "errors": [_error(told.batch, arms[error["answer"]], error) for error in vote.errors],
            "comment": vote.comment,
            "ms": vote.ms,
            "turn": vote.turn,
            "guideline": vote.guideline,
            "at": vote.at,
            "supersedes": vote.supersedes,
            "gold": told.case.gold is not None,
        }


def _error(batch: Batch, arm: str, error: Mapping[str, str]) -> Record:
    severity = batch.rubric.severity(error["type"], error.get("degree"))
    return {"arm": arm, "type": error["type"], "degree": error.get("degree"), "severity": severity}


def score_records(told: _Told) -> Iterator[Record]:
    """The people's score of each answer, 0..1: how it fared in its pair, or its mark."""
    value, said = told.verdict
    if value is None or told.case.gold is not None:
        return
    sides = [(told.case.arm_a, told.case.arm_b, value)]
    if told.case.arm_b is not None:
        sides.append((told.case.arm_b, told.case.arm_a, 1 - value))
    for arm, other, score in sides:
        record = {"item": told.case.key, "arm": told.name(arm), "scorer": "people", "value": score, "cluster": told.case.cluster}
        yield {**record, "against": told.name(other), "review": {**told.about, **said}}


def sft_records(told: _Told) -> Iterator[Record]:
    """What experts wrote, as conversations to train on: the answer as they want it after what was asked."""
    for correction in told.corrections.values():
        answer = _corrected(told, correction)
        about = {
            **told.about,
            "corrected_by": correction.name,
            "reason": correction.reason,
            "correction": correction.id,
            "guideline": correction.guideline,
            "at": correction.at,
            "before": hashlib.sha256(correction.before.encode()).hexdigest()[:16],
        }
        yield {"messages": [*told.case.asked, answer], **_tools(told), "review": about}


def preference_records(told: _Told) -> Iterator[Record]:
    """Two answers of which people prefer one; and what an expert wrote against what it replaces."""
    if told.case.gold is not None:
        return
    prompt = {"prompt": told.case.asked}
    value, said = told.verdict
    if told.case.arm_b is not None and value is not None and value != 0.5:
        better, worse = (told.case.arm_a, told.case.arm_b) if value > 0.5 else (told.case.arm_b, told.case.arm_a)
        answers = {"chosen": [told.case.answers[better]], "rejected": [told.case.answers[worse]]}
        yield {**prompt, **answers, **_tools(told), "review": {**told.about, "share": max(value, 1 - value), **said}}
    for arm, correction in told.corrections.items():
        answers = {"chosen": [_corrected(told, correction)], "rejected": [told.case.answers[arm]]}
        about = {**told.about, "corrected_by": correction.name, "correction": correction.id, "guideline": correction.guideline}
        yield {**prompt, **answers, **_tools(told), "review": about}


def item_record(told: _Told) -> Record | None:
    """A question at which every answer failed, for the next evaluation; its reference is the correction where there is one."""
    if told.case.gold is not None:
        return None
    said = told.verdict[1]
    rejected = [vote for vote in told.votes if vote.verdict in ("both_bad", "bad")]
    bad = told.ruling.verdict in ("both_bad", "bad") if told.ruling is not None else 2 * len(rejected) > len(told.votes)
    if not bad:
        return None
    mended = next(iter(told.corrections.values()), None)
    errors = sorted({error["type"] for vote in told.votes for error in vote.errors})
    return {
        "messages": told.case.asked,
        "reference": mended.after if mended is not None else told.case.reference,
        **_tools(told),
        "tags": ["review:rejected", *(f"error:{error}" for error in errors)],
        "severity": max([told.case.severity, *(min(1.0, told.batch.rubric.severity(error) / 10) for error in errors)]),
        "cluster": told.case.cluster,
        "review": {**told.about, **said},
    }


def _told(connection: Connection, batch: Batch) -> Iterator[_Told]:
    """Every case of which something was said, in order."""
    named = (people.c.name,)
    said: dict[int, list[Row[Any]]] = {}
    query = select(votes, *named).join(people, votes.c.person == people.c.id)
    for vote in connection.execute(query.where(votes.c.batch == batch.id, votes.c.withdrawn.is_(None)).order_by(votes.c.id)):
        said.setdefault(vote.case, []).append(vote)
    mended: dict[int, dict[str, Row[Any]]] = {}
    query = select(corrections, *named).join(people, corrections.c.person == people.c.id)
    for correction in connection.execute(query.where(corrections.c.batch == batch.id).order_by(corrections.c.id)):
        mended.setdefault(correction.case, {})[correction.arm] = correction
    query = select(rulings, *named).join(people, rulings.c.person == people.c.id)
    decided = {row.case: row for row in connection.execute(query.where(rulings.c.batch == batch.id).order_by(rulings.c.id))}
    wanted = said.keys() | mended.keys() | decided.keys()
    for case in connection.execute(select(cases).where(cases.c.batch == batch.id).order_by(cases.c.id)):
        if case.id in wanted:
            yield _Told(batch, case, said.get(case.id, []), mended.get(case.id, {}), decided.get(case.id))


def _corrected(told: _Told, correction: Row[Any]) -> Record:
    """The message with the expert's text in place of its own; an answer that called tools is text now."""
    original = told.case.answers[correction.arm]
    kept = {key: value for key, value in original.items() if key not in ("content", "tool_calls", "reasoning_content")}
    calls = {"tool_calls": original["tool_calls"]} if original.get("tool_calls") and text_of(original) else {}
    return {**kept, "role": "assistant", "content": correction.after, **calls}


def _tools(told: _Told) -> Record:
    return {"tools": told.case.tools} if told.case.tools else {}


def _lines(records: Iterable[Record]) -> bytes:
    return b"".join(orjson.dumps(record, default=str) + b"\n" for record in records)


def _csv(records: Iterable[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _cell(record[name]) for name in COLUMNS})
    return out.getvalue().encode()


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode() if isinstance(value, dict | list) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

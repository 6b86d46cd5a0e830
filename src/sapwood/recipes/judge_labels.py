"""People's word on pairs of answers: a file in, who won each item out; and a judge's card made anew from what reviewers voted.

Read are lines of `{"item", "winner"}` and `votes.jsonl` as `sapwood review export` writes it: of several votes on an item the mean counts.
Votes on other arms than the two that are judged, on cases whose answer was known beforehand, and of raters who could not judge say
nothing of this pair; how many were passed over is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast, get_args

import orjson

from sapwood.errors import ConfigError, DataError, storage
from sapwood.evaluate.judge_card import FEWEST, Card, calibrate
from sapwood.evaluate.judges import PairVerdict, Winner
from sapwood.review.verdicts import lean, outcome
from sapwood.run import Run

RECORDS = "judged"
CARD = "judge-card.json"


@dataclass(frozen=True)
class Winners:
    """What people say."""

    by_item: dict[str, Winner]
    """Item → the better answer; `a` is the first arm's."""
    passed_over: int
    """Votes that say nothing of these two arms."""


def read_winners(file: Path, arms: tuple[str, str], items: Collection[str]) -> Winners:
    """People's verdicts by item. Raises `DataError` with file:line for what is none, `ConfigError` for no file."""
    if not file.is_file():
        raise ConfigError(f"labels is {file}, and there is no such file. Check the path.")
    with storage(file, "read"):
        lines = file.read_bytes().splitlines()
    votes: list[dict[str, Any]] = []
    found: dict[str, Winner] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
            item, winner = record["item"], record["winner"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise DataError(
                f'{file}:{number}: a line is {{"item": ID, "winner": "a", "b" or "tie"}}, or a vote of votes.jsonl; found {line[:80]!r}.'
            ) from None
        if "verdict" in record:
            votes.append(record)
            continue
        if winner not in get_args(Winner) or item not in items or item in found:
            wrong = winner not in get_args(Winner)
            why = "no verdict" if wrong else "labelled twice" if item in found else "no item that both arms answered"
            raise DataError(f"{file}:{number}: {item!r}, {winner!r}: {why}. Winners are a, b or tie; items are those of items.jsonl.")
        found[item] = cast(Winner, winner)
    voted = winners_of(votes, arms, items)
    return Winners(voted.by_item | found, voted.passed_over)


def winners_of(votes: Sequence[Mapping[str, Any]], arms: tuple[str, str], items: Collection[str]) -> Winners:
    """What votes say of two arms, as `sapwood review export` has them."""
    leans: dict[str, list[float]] = {}
    passed = 0
    for vote in votes:
        left = lean(str(vote["verdict"]), "a")
        if vote.get("gold") or left is None or {vote["left"], vote["right"]} != set(arms) or vote["item"] not in items:
            passed += 1
            continue
        leans.setdefault(str(vote["item"]), []).append(left if vote["left"] == arms[0] else 1 - left)
    words: dict[float, Winner] = {1.0: "a", 0.5: "tie", 0.0: "b"}
    return Winners({item: words[outcome(sum(said) / len(said))] for item, said in leans.items()}, passed)


def refreshed(run: Run, votes: Sequence[Mapping[str, Any]], today: date) -> Card | None:
    """The card of the judge that spoke last in a run, made anew from these votes and written; None where they say too little of it."""
    records = [record for record in run.read(RECORDS) if record.get("model")]
    if not records:
        return None
    last = records[-1]
    arms = (last["arms"][0], last["arms"][1])
    own = {record["id"]: record for record in records if record["judge"] == last["judge"] and record["arms"] == last["arms"]}
    verdicts = [verdict_from(record) for record in own.values()]
    people = winners_of(votes, arms, {verdict.id for verdict in verdicts if verdict.winner is not None}).by_item
    if len(people) < FEWEST:
        return None
    clusters = {record["item"]: record["cluster"] for record in run.read("scores") if record.get("cluster") is not None}
    card = calibrate(Known(last["judge"], last["model"]), verdicts, people, today=today, clusters=clusters)
    card.save(run.path / CARD)
    return card


@dataclass(frozen=True)
class Known:
    """A judge by its record alone."""

    key: str
    model: str


def verdict_from(record: Mapping[str, Any]) -> PairVerdict:
    """A verdict as `judged.jsonl` holds it."""
    names = PairVerdict.__dataclass_fields__.keys() - {"reasons"}
    return PairVerdict(**{name: record[name] for name in names}, reasons=tuple(record["reasons"]))

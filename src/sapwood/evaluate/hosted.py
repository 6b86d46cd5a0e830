"""Answers of a hosted model, asked by the user himself: a JSON Lines file in, one more arm out.

Each line is `{"item": ID, "answer": TEXT}`, with `tokens_in` and `tokens_out` where the provider counted them. The ids and what to
ask stand in the run's `items.jsonl`. Left out on purpose: asking (a `Sampler` does that, and gives the same arm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import DataError, storage
from sapwood.evaluate.experiment import ArmScore, run_free_arm
from sapwood.evaluate.scorers import Scorer
from sapwood.records import Item

HOSTED = "hosted model"


@dataclass(frozen=True, slots=True)
class Answer:
    """One line."""

    text: str
    tokens_in: int | None
    tokens_out: int | None


def read_answers(file: Path, items: Sequence[Item]) -> dict[str, Answer]:
    """Answers by item. Raises `DataError` with file:line for a line that is none, an item that is not asked, or one answered twice."""
    try:
        with storage(file, "read"):
            lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. Name a file of lines like {{'item': ID, 'answer': TEXT}}.") from None
    known, found = {item.id for item in items}, dict[str, Answer]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        answer = _record(line, f"{file}:{number}")
        name = answer["item"]
        if name not in known:
            raise DataError(
                f"{file}:{number}: item {name!r} is not asked here. The items and their ids stand in items.jsonl of the run; "
                "ask those, on the same data and with the same split."
            )
        if name in found:
            raise DataError(f"{file}:{number}: item {name!r} is answered a second time. Leave one of the two out.")
        found[name] = Answer(answer["answer"], answer.get("tokens_in"), answer.get("tokens_out"))
    return found


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}). Each line is one object with `item` and `answer`.") from None
    if not isinstance(record, dict) or not isinstance(record.get("item"), str) or not isinstance(record.get("answer"), str):
        raise DataError(
            f"{where}: each line is one object with `item` and `answer`, both texts; found {line[:80].decode(errors='replace')}."
        )
    for key in ("tokens_in", "tokens_out"):
        value = record.get(key)
        if value is not None and (not isinstance(value, int) or value < 0):
            raise DataError(f"{where}: `{key}` is {value!r}; give a number of tokens, or leave it out.")
    return record


def hosted_arm(answers: dict[str, Answer], items: Sequence[Item], scorer: Scorer) -> list[ArmScore]:
    """Scores of the items that were answered; tokens that nobody counted are 0."""
    asked = [item for item in items if item.id in answers]
    scores = run_free_arm(HOSTED, asked, lambda item: answers[item.id].text, scorer)
    return [
        replace(score, tokens_in=answers[score.item].tokens_in or 0, tokens_out=answers[score.item].tokens_out or 0) for score in scores
    ]

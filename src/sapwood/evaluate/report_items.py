"""The items of a report: scores and items as recorded in, one compact JSON object for the page's script out.

Each item is paired over the arms by its id. Messages that many items share (one system prompt, say) are kept once.
Every text that was cut for the page says so; the files hold the whole. Left out on purpose: statistics. What got
better or worse comes from the verdict, and is worked out here only where the verdict does not list it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sapwood.evaluate.report_files import Record, RunFiles, number, text_of
from sapwood.pages import json_for_script

LONGEST_TEXT = 20_000
"""Characters of one message or answer that the page holds."""

Answers = Mapping[str, Record]
"""Arm → score record of one item."""


@dataclass(frozen=True)
class ItemsView:
    """What the page says about items in words, and what its script reads."""

    count: int
    worse: int
    better: int
    unknown: int
    """Items the verdict names as changed that neither items.jsonl nor scores.jsonl holds."""
    json: Markup
    """Safe inside a `<script type="application/json">` element."""


def items_view(files: RunFiles, arms: Sequence[str], tuned: str, other: str | None) -> ItemsView:
    """All items that were asked or scored, in the order of items.jsonl, then of scores.jsonl."""
    answers: dict[str, dict[str, Record]] = {}
    for record in files.scores:
        answers.setdefault(str(record.get("item", "")), {})[str(record.get("arm", ""))] = record  # a resumed arm's last record counts
    asked = {str(record.get("item", "")): record for record in files.items}
    place = {item: index for index, item in enumerate(dict.fromkeys([*asked, *answers]))}
    worse, better = _changed(files.verdict, answers, tuned, other)
    status = dict.fromkeys(better, "better") | dict.fromkeys(worse, "worse")
    messages: dict[tuple[str, str], int] = {}
    content = []
    for item in place:
        given = answers.get(item, {})
        entry = {"id": item, **_question(asked.get(item, {}), messages)}
        entry["status"] = status.get(item) or _unchanged(_value(given, tuned), _value(given, other))
        entry["answers"] = {arm: _answer(record) for arm, record in given.items()}
        content.append(entry)
    data = {
        "arms": list(arms),
        "tuned": tuned,
        "other": other,
        "messages": [{"role": role, "content": text} for role, text in messages],
        "items": content,
        "worse": [place[item] for item in worse if item in place],
        "better": [place[item] for item in better if item in place],
    }
    unknown = sum(item not in place for item in status)
    return ItemsView(len(content), len(worse), len(better), unknown, json_for_script(data))


def shortened(text: str, where: str) -> str:
    """`text`, or its beginning and a sentence that says where the rest is."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n\n[cut here: {len(text) - LONGEST_TEXT:,} more characters in {where}]"


def _changed(verdict: Record, answers: Mapping[str, Answers], tuned: str, other: str | None) -> tuple[list[str], list[str]]:
    """Items that got worse and better, the largest change first: the verdict's own lists, else every item whose score moved."""
    gains: dict[str, float] = {}
    for item, given in answers.items():
        mine, theirs = _value(given, tuned), _value(given, other)
        if mine is not None and theirs is not None:
            gains[item] = mine - theirs
    listed = [verdict.get("worse"), verdict.get("better")]
    if all(isinstance(part, list) for part in listed):
        worse, better = ([str(item) for item in part or []] for part in listed)
    else:
        worse, better = [item for item in gains if gains[item] < 0], [item for item in gains if gains[item] > 0]
    return sorted(worse, key=lambda item: gains.get(item, 0.0)), sorted(better, key=lambda item: -gains.get(item, 0.0))


def _value(given: Answers, arm: str | None) -> float | None:
    return number(given[arm].get("value")) if arm is not None and arm in given else None


def _unchanged(mine: float | None, theirs: float | None) -> str:
    if mine is None or theirs is None:
        return "unscored"
    return "right" if min(mine, theirs) >= 1 else "wrong"


def _question(record: Record, messages: dict[tuple[str, str], int]) -> Record:
    places = []
    asked = record.get("messages")
    for message in asked if isinstance(asked, list) else []:
        if isinstance(message, dict):
            text = shortened(_spoken(message), "items.jsonl")
            places.append(messages.setdefault((str(message.get("role", "")), text), len(messages)))
    tags = record.get("tags")
    return {
        "asked": places,
        "reference": shortened(text_of(record.get("reference")), "items.jsonl"),
        "source": text_of(record.get("source")),
        "tags": [str(tag) for tag in tags] if isinstance(tags, Collection) and not isinstance(tags, str | dict) else [],
    }


def _spoken(message: Record) -> str:
    """What a turn says, and below it whatever else it holds: reasoning, calls, the call it answers."""
    parts = [text_of(message.get("content"))] if message.get("content") else []
    parts += [f"{key}: {text_of(value)}" for key, value in message.items() if key not in ("role", "content") and value]
    return "\n".join(parts)


def _answer(record: Record) -> Record:
    text = shortened(text_of(record.get("text")), "scores.jsonl")
    answer = shortened(text_of(record.get("answer")), "scores.jsonl")
    entry: Record = {"value": number(record.get("value")), "text": text or answer}
    if answer and answer.strip() != entry["text"].strip():
        entry["answer"] = answer
    for key in ("explanation", "ended"):
        if record.get(key):
            entry[key] = shortened(text_of(record[key]), "scores.jsonl")
    for key in ("tokens_in", "tokens_out", "seconds"):
        if (measured := number(record.get(key))) is not None:
            entry[key] = measured
    return entry

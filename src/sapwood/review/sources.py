"""Where candidates come from: a run's answers, a file of pairs, a served model's traffic, or a data set.

In: a path. Out: `Candidate`s, the kind of source in words, and words to cover. Which it is, is seen from what lies there:

    a run directory     items.jsonl and scores.jsonl of an experiment: every arm's answer to every item, with its scores
    rows with a pair    {prompt | messages, chosen, rejected} or {prompt | messages, answers: {NAME: TEXT or message, …}}
    rows of traffic     {request: {messages, …}, response: {choices: […]}, arm}: what a server was asked and said, and which arm did
    rows of data        anything that `sapwood sft` reads: the last answer of each conversation is judged by itself

Rows may say what is known of them: `gold` (the better answer's name; for single answers `good` or `bad`), `severity` and `uncertainty`
(0 to 1), `cluster`, `judge` ({NAME: score}). Left out on purpose: guessing any of these.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from sapwood.data import read
from sapwood.data.lines import parsed_rows
from sapwood.data.messages import read_messages, read_tools
from sapwood.data.refusal import Refusal, Refused
from sapwood.errors import DataError
from sapwood.records import Conversation, Message, Preference
from sapwood.review.batch import Candidate
from sapwood.run import read_records

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
"""How an address begins that is no path: `data:`, `https:`, `sha256:`; a drive of Windows has one letter."""
ANSWER = "answer"
"""The arm of a source that has one answer to each item."""


@dataclass(frozen=True)
class Source:
    """What was found."""

    candidates: list[Candidate]
    words: str
    """What it is, for people."""
    masked: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    """Rows that could not be read, each with its place and reason."""


def read_source(path: Path) -> Source:
    """The candidates of a source. Raises `DataError` where there is none."""
    found = _read(path)
    return replace(found, candidates=[_at_home(one) for one in found.candidates])


def _read(path: Path) -> Source:
    if path.is_dir():
        return _of_run(path)
    if not path.exists():
        raise DataError(
            f"{path}: there is no such run, file or database. Name a run directory, or a file of pairs, traffic or conversations."
        )
    special: list[Candidate] = []
    refused: list[str] = []
    for source, value in parsed_rows(path):
        if isinstance(value, Refusal):
            refused.append(str(value))
            continue
        if not isinstance(value, dict) or not ("answers" in value or ("request" in value and "response" in value)):
            if special:
                refused.append(f"{source}: neither `answers` nor `request` and `response`, which the rows before it have")
                continue
            return _of_data(path)
        try:
            one = _answered(value, str(source)) if "answers" in value else _served(value, str(source))
            special.append(_at_home(one, path.parent))
        except Refused as reason:
            refused.append(f"{source}: {reason.args[0]}")
    if not special:
        raise DataError(f"{path}: no row in it can be judged. {refused[0] if refused else 'The file is empty.'}")
    kind = "pairs" if any(len(one.answers) > 1 for one in special) else "a served model's traffic"
    return Source(_distinct(special), kind, (), tuple(refused))


def _of_run(path: Path) -> Source:
    items = {record["item"]: record for record in read_records(path / "items.jsonl")}
    scores = read_records(path / "scores.jsonl")
    if not items or not scores:
        raise DataError(f"{path} holds no answers to judge (items.jsonl and scores.jsonl). Make some: sapwood eval {path}, or name a file.")
    found: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        if score["item"] in items and score.get("ended") != "error":
            found.setdefault(score["item"], []).append(score)
    return Source([_of_item(items[key], given) for key, given in found.items()], "a run's answers", _models_of(path))


def _of_item(item: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> Candidate:
    """Of several answers of an arm to a question the first is judged."""
    scores = list({score["arm"]: score for score in sorted(scores, key=lambda score: -int(score.get("sample") or 0))}.values())
    machine = {score["arm"]: float(score["value"]) for score in scores if score["value"] is not None}
    values = list(machine.values())
    return Candidate(
        key=item["item"],
        asked=item["messages"],
        answers={score["arm"]: {"role": "assistant", "content": score["text"]} for score in scores},
        tools=item.get("tools") or (),
        reference=item.get("reference"),
        cluster=item.get("cluster"),
        machine=machine,
        severity=_share(item.get("severity")),
        # arms that a scorer sees apart are where a person's word weighs most; so is a score that is neither right nor wrong
        doubt=max([max(values) - min(values), *(4 * value * (1 - value) for value in values)], default=0.0),
        source=str(item.get("source") or ""),
    )


def _models_of(path: Path) -> tuple[str, ...]:
    """Names by which the run's model is known: a hub id's parts, a folder's name."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ()
    name = config.get("model") if isinstance(config, dict) else None
    return tuple({name, *name.split("/")} - {""}) if isinstance(name, str) else ()


def _answered(row: Mapping[str, Any], where: str) -> Candidate:
    """A row that names its answers."""
    answers = row["answers"]
    if not isinstance(answers, dict) or not answers:
        raise Refused("answers: not an object of at least one name", 'write {"answers": {"NAME": "text", …}}')
    asked, tools = _asked(row), read_tools(row.get("tools"))
    messages = {str(name): _answer(answer) for name, answer in answers.items()}
    gold = row.get("gold")
    known = {} if gold is None else {next(iter(messages)): str(gold)} if len(messages) == 1 else {str(gold): "better"}
    if gold is not None and len(messages) > 1 and gold not in messages:
        raise Refused(f"gold: {gold!r} is none of its answers", f"name one of {', '.join(messages)}")
    if gold is not None and len(messages) == 1 and gold not in ("good", "bad"):
        raise Refused(f"gold: {gold!r} says nothing of a single answer", "write `good` or `bad`")
    return _candidate(asked, messages, row, where, tools, known)


def _served(row: Mapping[str, Any], where: str) -> Candidate:
    """A row of traffic, in the form of OpenAI's API."""
    request, response = row["request"], row["response"]
    if not isinstance(request, dict) or not isinstance(response, dict):
        raise Refused("traffic: `request` and `response` are not both objects", "write them as a server takes and gives them")
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Refused("traffic: `response` has no `choices`", "write it as a server gives it")
    said = choices[0].get("message", choices[0].get("text"))
    arm = row.get("arm")
    named = arm if isinstance(arm, str) and arm else ANSWER
    return _candidate(_asked(request), {named: _answer(said)}, row, where, read_tools(request.get("tools")), {})


def _of_data(path: Path) -> Source:
    """Rows that training reads: preferences are pairs, conversations single answers."""
    reading = read([str(path)])
    records = (*reading.conversations, *reading.preferences)
    candidates = [one for record in records if (one := _of_record(record)) is not None]
    if not candidates:
        raise DataError(
            f"{path}: no row in it has an answer to judge. Give pairs (chosen, rejected), or conversations that end in an answer."
        )
    pairs = any(len(one.answers) > 1 for one in candidates)
    refused = tuple(map(str, reading.refused))
    return Source(_distinct(candidates), "pairs" if pairs else "a data set", (), refused)


def _of_record(record: Any) -> Candidate | None:
    if isinstance(record, Preference):
        answers = {"chosen": stored(record.chosen[-1]), "rejected": stored(record.rejected[-1])}
        asked = [stored(message) for message in (*record.prompt, *record.chosen[:-1])]
        return _candidate(asked, answers, record.meta, record.where, record.tools, {})
    if not isinstance(record, Conversation):
        return None
    last = max((place for place, message in enumerate(record.messages) if message.role == "assistant"), default=0)
    if last == 0:
        return None
    asked = [stored(message) for message in record.messages[:last]]
    gold = record.meta.get("gold")
    known = {ANSWER: str(gold)} if gold in ("good", "bad") else {}
    return _candidate(asked, {ANSWER: stored(record.messages[last])}, record.meta, record.where, record.tools, known)


def _candidate(
    asked: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Mapping[str, Any]],
    row: Mapping[str, Any],
    where: str,
    tools: Sequence[Mapping[str, Any]],
    gold: Mapping[str, str],
) -> Candidate:
    judge = row.get("judge")
    machine = {str(arm): _share(value) for arm, value in judge.items()} if isinstance(judge, dict) else {}
    key = hashlib.sha256(orjson.dumps([asked, answers], option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()[:16]
    cluster = row.get("cluster")
    return Candidate(
        key=key,
        asked=asked,
        answers=answers,
        tools=tools,
        reference=row.get("reference"),
        cluster=None if cluster is None else str(cluster),
        machine=machine,
        severity=_share(row.get("severity")),
        doubt=_share(row.get("uncertainty")),
        source=where,
        gold=gold,
    )


def _asked(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    raw = row.get("messages", row.get("prompt"))
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    if not raw:
        raise Refused("asks nothing: it has neither `messages` nor `prompt`", "give one of them")
    return [stored(message) for message in read_messages(raw, Counter())]


def _answer(raw: Any) -> dict[str, Any]:
    if isinstance(raw, str):
        return stored(Message("assistant", raw))
    if not isinstance(raw, dict):
        raise Refused("answer: neither a text nor a message", "give one of them")
    return stored(read_messages([{"role": "assistant", **raw}], Counter())[0])


def _share(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    return min(1.0, max(0.0, number)) if number == number else 0.0


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Rows that ask and answer the very same are one."""
    return list({one.key: one for one in candidates}.values())


def _at_home(candidate: Candidate, folder: Path = Path()) -> Candidate:
    """With whole paths for media that lie on this machine: pages are served from elsewhere, and exports are written elsewhere."""
    answers = {arm: _with_whole_paths(message, folder) for arm, message in candidate.answers.items()}
    return replace(candidate, asked=[_with_whole_paths(message, folder) for message in candidate.asked], answers=answers)


def _with_whole_paths(message: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    parts = [{**part, "uri": _whole_path(part["uri"], folder)} if part.get("uri") else part for part in content]
    return {**message, "content": parts}


def _whole_path(uri: str, folder: Path) -> str:
    return uri if _SCHEME.match(uri) else str((folder / Path(uri).expanduser()).absolute())


def stored(message: Message) -> dict[str, Any]:
    """A message as the database keeps it: as templates read it, each medium with its address (or the bytes, where they stand there)."""
    fields = message.for_template()
    if message.media:
        waiting = iter(message.media)
        fields["content"] = [part if part["type"] == "text" else {**part, "uri": next(waiting).uri} for part in fields["content"]]
    return fields

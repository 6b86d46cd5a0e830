"""Logs of real queries as conversations: files in, conversations and what could not be read out.

Read are rows of any format that `sapwood sft` reads; OpenAI's records with a request and its response (`request` with `messages` and
`response` with `choices`, batch files with `body`, stored completions with `messages` and `choices`); and the files of a run's folder
`answers`, in which a server's answers are kept. What is none of these is counted by reason, never passed over in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from sapwood.data import read
from sapwood.errors import DataError, storage
from sapwood.records import Conversation, Message, Source, ToolCall


def conversations_of_logs(names: Sequence[str]) -> tuple[list[Conversation], Counter[str]]:
    """(conversations, reasons of what was not read with their numbers). Raises `DataError` for a file that is not there."""
    found, unread = list[Conversation](), Counter[str]()
    for name in names:
        path = Path(name)
        if not path.exists():
            raise DataError(f"{path}: no such file. Name a file of logged queries, or a folder of them.")
        for file in sorted(path.rglob("*.json*")) if path.is_dir() else [path]:
            rows = _records(file)
            if rows and any(_request(row) is not None for row in rows):
                for line, row in enumerate(rows, 1):
                    _take(row, Source(str(file), line), found, unread)
            else:
                reading = read([file])
                found += reading.conversations
                unread.update(refusal.reason for refusal in reading.refused)
    return found, unread


def _records(file: Path) -> list[Any]:
    """JSON values of a file of lines, or of one value; empty for another kind of file."""
    if not file.name.endswith((".json", ".jsonl")):
        return []
    with storage(file, "read"):
        content = file.read_bytes()
    try:
        return [orjson.loads(line) for line in content.splitlines() if line.strip()]
    except orjson.JSONDecodeError:
        pass
    try:
        whole = orjson.loads(content)
    except orjson.JSONDecodeError:
        return []
    return whole if isinstance(whole, list) else [whole]


def _request(row: Any) -> dict[str, Any] | None:
    """The request of a record, wherever it lies; None where there is none."""
    if not isinstance(row, dict):
        return None
    for place in (row.get("request"), _of(row, "request", "body"), row.get("body"), _of(row, "question", "request"), row.get("question")):
        if isinstance(place, dict) and isinstance(place.get("messages"), list):
            return place
    return row if isinstance(row.get("messages"), list) and isinstance(row.get("choices"), list) else None


def _answer(row: dict[str, Any]) -> dict[str, Any] | None:
    for place in (row, row.get("response"), _of(row, "response", "body"), row.get("answer")):
        if isinstance(place, dict) and isinstance(place.get("choices"), list) and place["choices"]:
            message = place["choices"][0].get("message")
            return message if isinstance(message, dict) else None
    return None


def _of(row: dict[str, Any], *keys: str) -> Any:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _take(row: Any, source: Source, found: list[Conversation], unread: Counter[str]) -> None:
    request = _request(row)
    if request is None:
        unread["record without a request"] += 1
        return
    answer = _answer(row)
    if answer is None:
        unread["request without an answer"] += 1
        return
    try:
        turns = tuple(_message(message) for message in (*request["messages"], answer))
    except (KeyError, TypeError, ValueError):
        unread["message of an unknown form"] += 1
        return
    tools = tuple(request["tools"]) if isinstance(request.get("tools"), list) else ()
    meta = {key: row[key] for key in ("tags", "task", "cluster") if key in row}
    found.append(Conversation(turns, tools=tools, meta=meta, source=source))


def _message(message: dict[str, Any]) -> Message:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    calls = tuple(ToolCall(call["function"]["name"], _arguments(call["function"]["arguments"])) for call in message.get("tool_calls") or ())
    return Message(message["role"], content, tool_calls=calls)


def _arguments(given: Any) -> dict[str, Any]:
    found = orjson.loads(given) if isinstance(given, str) else given
    if not isinstance(found, dict):
        raise ValueError("arguments of a call are an object")
    return found

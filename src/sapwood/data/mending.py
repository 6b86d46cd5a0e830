"""Safe mends of one row: a new row, and a list of what was changed.

In: a parsed row and its format. Out: a copy in the same format and columns. Mended is only what has one meaning: a role
with a slip in it, JSON that was written as text, invisible letters, an empty system turn, turns at the end that train
nothing. Left out on purpose: anything a person would have to decide (encodings, white space, joined turns, answers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from sapwood.data.columns import Columns
from sapwood.data.formats import OPTIONAL, REQUIRED, Format, column
from sapwood.data.messages import ROLE_NAMES
from sapwood.data.refusal import shown

_WHOLE = ("messages", "sharegpt")
"""Formats whose one column is the whole conversation, so that its end is the conversation's end."""
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
_CALL_KEYS = ("tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Change:
    """One mend: what was done and where in the row, with both states in short."""

    what: str
    before: str
    after: str


Changes = list[Change]


def mended(row: Mapping[str, Any], form: Format, columns: Columns) -> tuple[dict[str, Any], Changes]:
    """A mended copy of a row and what was changed; equal to the row where nothing was."""
    copy, changes = dict(row), Changes()
    for field in (*REQUIRED[form], *OPTIONAL.get(form, ())):
        for name in column(columns, field):
            if name in copy:
                copy[name] = _column(copy[name], name, form in _WHOLE and field in REQUIRED[form], changes)
    for name in column(columns, "tools"):
        if isinstance(copy.get(name), str) and isinstance(parsed := _parsed(copy[name]), list):
            changes.append(Change(f"`{name}`: JSON text parsed", shown(copy[name]), f"a list of {len(parsed)}"))
            copy[name] = parsed
    return copy, changes


def _column(value: Any, name: str, whole: bool, changes: Changes) -> Any:
    if isinstance(value, str) and whole and isinstance(parsed := _parsed(value), list):
        changes.append(Change(f"`{name}`: JSON text parsed", shown(value), f"a list of {len(parsed)} messages"))
        value = parsed
    if isinstance(value, str):
        return _visible(value, f"`{name}`", changes)
    if not isinstance(value, list):
        return value
    messages = [_message(raw, f"`{name}`, turn {turn}", changes) for turn, raw in enumerate(value, 1)]
    if whole:
        messages = _without_empty_system(messages, name, changes)
        messages = _without_idle_end(messages, name, changes)
    return messages


def _message(raw: Any, where: str, changes: Changes) -> Any:
    if not isinstance(raw, dict):
        return raw
    copy = dict(raw)
    for key in ("role", "from"):
        if isinstance(copy.get(key), str):
            copy[key] = _role(copy[key], where, changes)
    for key in ("content", "value"):
        if isinstance(copy.get(key), str):
            copy[key] = _visible(copy[key], f"{where}, `{key}`", changes)
    for key in _CALL_KEYS:
        if isinstance(copy.get(key), str) and isinstance(parsed := _parsed(copy[key]), list | dict):
            changes.append(Change(f"{where}, `{key}`: JSON text parsed", shown(copy[key]), shown(parsed)))
            copy[key] = parsed
        if isinstance(copy.get(key), list):
            copy[key] = [_call(call, f"{where}, call {number}", changes) for number, call in enumerate(copy[key], 1)]
        elif isinstance(copy.get(key), dict):
            copy[key] = _call(copy[key], f"{where}, call", changes)
    return copy


def _role(spelt: str, where: str, changes: Changes) -> str:
    if spelt in ROLE_NAMES:
        return spelt
    word = re.sub(r"[^a-z_]", "", spelt.lower())
    if word not in ROLE_NAMES:
        near = [name for name in ROLE_NAMES if len(word) > 2 and _one_slip(word, name)]
        if len({ROLE_NAMES[name] for name in near}) != 1:
            return spelt
        word = near[0]
    changes.append(Change(f"{where}: role spelt {word!r}", shown(spelt), word))
    return word


def _one_slip(left: str, right: str) -> bool:
    """Whether one letter was left out, put in, changed, or changed places with its neighbour."""
    if len(left) > len(right):
        left, right = right, left
    place = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
    if len(left) < len(right):
        return left[place:] == right[place + 1 :]
    rest = left[place + 1 :] == right[place + 1 :]
    return rest or (left[place : place + 2] == right[place : place + 2][::-1] and left[place + 2 :] == right[place + 2 :])


def _call(raw: Any, where: str, changes: Changes) -> Any:
    """Arguments that were made JSON text twice lose one of the two; text once is OpenAI's own form, and stays."""
    if not isinstance(raw, dict):
        return raw
    if isinstance(raw.get("function"), dict):
        return {**raw, "function": _call(raw["function"], where, changes)}
    arguments = raw.get("arguments")
    once = _parsed(arguments) if isinstance(arguments, str) else None
    if isinstance(once, str) and isinstance(_parsed(once), dict):
        changes.append(Change(f"{where}: arguments were JSON text twice", shown(arguments), shown(once)))
        return {**raw, "arguments": once}
    return raw


def _visible(text: str, where: str, changes: Changes) -> str:
    """Without byte order marks, and without zero-width letters at the ends, where they join nothing."""
    kept = text.replace("\ufeff", "").strip(_INVISIBLE)
    if kept != text:
        changes.append(Change(f"{where}: invisible letters removed", ascii(text)[:60], shown(kept)))
    return kept


def _without_empty_system(messages: list[Any], name: str, changes: Changes) -> list[Any]:
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role", first.get("from")) == "system" and len(messages) > 1:
        content = first.get("content", first.get("value"))
        if isinstance(content, str) and not content.strip():
            changes.append(Change(f"`{name}`, turn 1: empty system turn removed", shown(content), ""))
            return messages[1:]
    return messages


def _without_idle_end(messages: list[Any], name: str, changes: Changes) -> list[Any]:
    """Cut behind the last assistant turn that says something; the rest is read by nobody."""
    last = max((place for place, message in enumerate(messages) if _speaks(message)), default=None)
    if last is None or last + 1 == len(messages):
        return messages
    cut = messages[last + 1 :]
    changes.append(Change(f"`{name}`: {len(cut)} turn{'s' * (len(cut) != 1)} at the end that train nothing removed", shown(cut), ""))
    return messages[: last + 1]


def _speaks(message: Any) -> bool:
    if not isinstance(message, dict) or ROLE_NAMES.get(str(message.get("role", message.get("from")))) != "assistant":
        return False
    content = message.get("content", message.get("value"))
    said = bool(content.strip()) if isinstance(content, str) else bool(content)
    return said or any(message.get(key) for key in (*_CALL_KEYS, "reasoning", "reasoning_content", "thinking"))


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None

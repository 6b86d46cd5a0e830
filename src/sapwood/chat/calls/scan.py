"""What all styles share: the verdict on a stretch of text, and reading JSON out of it exactly.

A style looks at text that begins with one of its openings and says what it is so far: calls, no call, or not to be told
yet. A verdict never changes when more text follows: that is what makes streaming and reading at once agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sapwood.records import ToolCall

Tools = Sequence[Mapping[str, Any]]

DEEPEST = 200
"""Nesting beyond this is no call: reading it back would exhaust the stack of whoever prints it."""

_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}"]', re.DOTALL)
_PYTHON = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[][{}()"']""", re.DOTALL)
_CLOSES = {"]": "[", "}": "{", ")": "("}


@dataclass(frozen=True, slots=True)
class Scan:
    """A verdict: calls in the first `end` characters, or a `problem`, or neither: more text is needed.

    Without an `end`, `calls` are what can be read should no more text come (only the closing mark is missing).
    """

    end: int | None = None
    calls: tuple[ToolCall, ...] = ()
    problem: str = ""


MORE = Scan()
"""Nothing can be said yet."""


@dataclass(frozen=True)
class CallStyle:
    """One way to write calls. `scan(text, tools)` reads a text that begins with one of `opens`.

    A `whole` style has no marks: an answer that begins with one of `opens` is looked at when it is complete, and only where
    tools are offered. `closers` are the characters that a stretch of calls can end with.
    """

    name: str
    opens: tuple[str, ...]
    scan: Callable[[str, Tools], Scan]
    closers: str
    whole: bool = False


def balanced(text: str, start: int, *, python: bool = False) -> int | None:
    """Where the bracket that opens at `start` is closed (the place behind it). None while it is open.

    Brackets inside strings do not count. Raises `ValueError` where brackets close crosswise or lie too deep.
    """
    stack: list[str] = []
    for match in (_PYTHON if python else _JSON).finditer(text, start):
        mark = match[0]
        if mark in ('"', "'"):
            return None  # a string that has not ended
        if mark in "[{(":
            stack.append(mark)
            if len(stack) > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        elif mark in _CLOSES:
            if not stack or stack.pop() != _CLOSES[mark]:
                raise ValueError("its brackets do not match")
            if not stack:
                return match.end()
    return None


def loaded(text: str) -> Any:
    """The value of a JSON text: whole numbers stay whole at any size.

    Raises `ValueError`, also for NaN, for numbers too large for a float, and for half of a letter.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON value")

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number)

    try:
        value = json.loads(text, parse_constant=refuse, parse_float=finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no letter
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
    return value


def json_at(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON object or list at `start` and the place behind it; None while it is not complete. Raises `ValueError`."""
    end = balanced(text, start)
    return None if end is None else (loaded(text[start:end]), end)


def call_of(entry: Any, names: Sequence[str] = ("name",), ids: Sequence[str] = ("id",)) -> ToolCall:
    """A call from `{"name": …, "arguments": {…}}`; `parameters` is taken for `arguments`. Raises `ValueError`."""
    if not isinstance(entry, dict):
        raise ValueError("it is no JSON object with a name and arguments")
    name = next((entry[key] for key in names if key in entry), None)
    if not isinstance(name, str) or not name:
        raise ValueError("it names no function")
    given = [key for key in ("arguments", "parameters") if key in entry]
    if len(given) != 1:
        raise ValueError("it has no arguments" if not given else "it has both `arguments` and `parameters`")
    unknown = sorted(set(entry) - {*names, *ids, *given, "type"})
    if unknown:
        raise ValueError(f"it has the unknown key {unknown[0]!r}")
    call_id = next((entry[key] for key in ids if isinstance(entry.get(key), str)), None)
    return ToolCall(name, arguments_of(entry[given[0]]), call_id)


def arguments_of(value: Any) -> Mapping[str, Any]:
    """Arguments as an object; OpenAI writes them as a JSON string. Raises `ValueError`."""
    if isinstance(value, str):
        value = loaded(value)
    if not isinstance(value, dict):
        raise ValueError("its arguments are no JSON object")
    return value


def skip_space(text: str, place: int) -> int:
    """The place of the next character that is no white space."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def literal(text: str, place: int, mark: str) -> int | None:
    """The place behind `mark`, which must stand at `place`; None while the text ends inside it. Raises `ValueError`."""
    if text.startswith(mark, place):
        return place + len(mark)
    if mark.startswith(text[place:]):
        return None
    raise ValueError(f"{mark!r} is missing")

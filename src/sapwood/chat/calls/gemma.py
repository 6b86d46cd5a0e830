"""Calls as Gemma 4 writes them: `<|tool_call>call:name{city:<|"|>Paris<|"|>,days:2}<tool_call|>`.

Strings stand between `<|"|>` marks, keys are bare or marked, other values are numbers, `true`, `false`, `null` (`None` in some
of its templates), lists and objects.
"""

from __future__ import annotations

import re
from typing import Any

from sapwood.chat.calls.scan import DEEPEST, MORE, CallStyle, Scan, Tools, literal, loaded
from sapwood.records import ToolCall

_OPEN, _CLOSE, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_HEAD = re.compile(r"\s*call:([^\s{}<>]+)(?=\{)")
_KEY = re.compile(r"([^:{}\[\],<>]+):")
_SCALAR = re.compile(r"[^,\]}<]+(?=[,\]}])")
_WORDS = {"true": True, "false": False, "null": None, "None": None, "True": True, "False": False}


class _Incomplete(Exception):  # noqa: N818  no error: the text ends inside a value
    """The text ends inside a value."""


def _scan(text: str, _tools: Tools) -> Scan:
    head = _HEAD.match(text, len(_OPEN))
    try:
        if head is None:
            if "{" in text or "\n" in text.strip():
                raise ValueError("no call:name{…} follows")
            return MORE
        arguments, end = _value(text, head.end(), 0)
        return Scan(literal(text, end, _CLOSE), (ToolCall(head[1], arguments),))
    except _Incomplete:
        return MORE
    except ValueError as error:
        return Scan(problem=str(error))


def _value(text: str, place: int, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if place >= len(text) or (_QUOTE.startswith(text[place:]) and text[place:] != _QUOTE):
        raise _Incomplete
    if text.startswith(_QUOTE, place):
        return _string(text, place)
    if text[place] == "[":
        return _list(text, place, depth)
    if text[place] == "{":
        return _object(text, place, depth)
    scalar = _SCALAR.match(text, place)
    if scalar is None:
        if any(mark in text[place:] for mark in ",]}<"):
            raise ValueError(f"{text[place : place + 20]!r} is no value")
        raise _Incomplete
    word = scalar[0].strip()
    value = _WORDS[word] if word in _WORDS else loaded(word)
    if isinstance(value, str):
        raise ValueError(f"{word!r} is no value")
    return value, scalar.end()


def _string(text: str, place: int) -> tuple[str, int]:
    end = text.find(_QUOTE, place + len(_QUOTE))
    if end < 0:
        raise _Incomplete
    return text[place + len(_QUOTE) : end], end + len(_QUOTE)


def _list(text: str, place: int, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    place += 1
    while True:
        if text.startswith("]", place):
            return found, place + 1
        value, place = _value(text, place, depth + 1)
        found.append(value)
        place = _comma(text, place, "]")


def _object(text: str, place: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    place += 1
    while True:
        if text.startswith("}", place):
            return found, place + 1
        key, place = _key(text, place)
        found[key], place = _value(text, place, depth + 1)
        place = _comma(text, place, "}")


def _key(text: str, place: int) -> tuple[str, int]:
    if text.startswith(_QUOTE, place):
        key, place = _string(text, place)
        behind = literal(text, place, ":")
        if behind is None:
            raise _Incomplete
        return key, behind
    bare = _KEY.match(text, place)
    if bare is not None:
        return bare[1], bare.end()
    if not re.search(r"[:{}\[\],]", text[place:]):
        raise _Incomplete
    raise ValueError("a key is missing")


def _comma(text: str, place: int, end: str) -> int:
    if place >= len(text):
        raise _Incomplete
    if text[place] == ",":
        return place + 1
    if text[place] == end:
        return place
    raise ValueError(f"a comma or {end!r} is missing")


GEMMA = CallStyle("Gemma", (_OPEN,), _scan, ">")

"""Calls written as Python: `[f(x=1), g(y="a")]` of Llama 4, LFM2 and SmolLM3, and `tool.call(x="1")` of Llama 3.1.

Nothing is ever run: the text is cut at its brackets and commas, and each value must be a literal. A name, an operator, a call
inside an argument, or an argument without a name is refused. JSON's `true`, `false` and `null` are taken for Python's.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from sapwood.chat.calls.scan import MORE, CallStyle, Scan, Tools, balanced, literal, skip_space
from sapwood.records import ToolCall

_NAME = re.compile(r"\s*([^\s()\[\]{}\"',=]+)\s*(?=\()")
_KEY = re.compile(r"\s*([^\s()\[\]{}\"',=]+)\s*=(?!=)")
_WORDS = {"true": True, "false": False, "null": None}
_PIECE = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[][{}(),]""", re.DOTALL)


def read_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls of `f(x=1), g()`. Raises `ValueError`."""
    calls: list[ToolCall] = []
    place = 0
    while True:
        call, place = _call_at(text, place)
        calls.append(call)
        place = skip_space(text, place)
        if place == len(text):
            return tuple(calls)
        if text[place] != ",":
            raise ValueError(f"text stands behind the call of {call.name!r}")
        place = skip_space(text, place + 1)
        if place == len(text):
            return tuple(calls)


def read_method(text: str) -> ToolCall:
    """The call `tool.call(x="1")`, which is a call of `tool`. Raises `ValueError`."""
    call, end = _call_at(text, 0)
    if not call.name.endswith(".call") or text[end:].strip():
        raise ValueError("it is neither JSON nor a single `tool.call(…)`")
    return ToolCall(call.name.removesuffix(".call"), call.arguments)


def _call_at(text: str, place: int) -> tuple[ToolCall, int]:
    named = _NAME.match(text, place)
    if named is None:
        raise ValueError("no function with brackets stands there")
    end = balanced(text, named.end(), python=True)
    if end is None:
        raise ValueError("its brackets are not closed")
    arguments: dict[str, Any] = {}
    for piece in _pieces(text[named.end() + 1 : end - 1]):
        key = _KEY.match(piece)
        if key is None:
            raise ValueError(f"an argument of {named[1]!r} has no name")
        if key[1] in arguments:
            raise ValueError(f"the argument {key[1]!r} is given twice")
        arguments[key[1]] = value_of(piece[key.end() :])
    return ToolCall(named[1], arguments), end


def _pieces(text: str) -> Iterator[str]:
    """The text between commas that lie in no bracket and no string; an empty last one is left out."""
    depth = start = 0
    for match in _PIECE.finditer(text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif match[0] == "," and depth == 0:
            yield text[start : match.start()]
            start = match.end()
    if text[start:].strip():
        yield text[start:]


def value_of(text: str) -> Any:
    """The value of a literal, in JSON's types. Raises `ValueError` for anything that would have to be computed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape such as \d is a warning of Python's, and stays as it is written
            node = ast.parse(text.strip(), mode="eval").body
        value = _plain(node)
        str(value).encode()
    except (SyntaxError, RecursionError, MemoryError, UnicodeEncodeError):
        raise ValueError(f"{text.strip()[:40]!r} is no literal") from None
    return value


def _plain(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (str, int, float, bool)):
        if type(node.value) is float and node.value in (float("inf"), float("-inf")):
            raise ValueError("a number is too large")
        return node.value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd) and isinstance(node.operand, ast.Constant):
        number = _plain(node.operand)
        if type(number) in (int, float):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_plain(key) if key is not None else None for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, map(_plain, node.values), strict=True))
    raise ValueError("an argument is no literal")


def _marked(opening: str, closing: str) -> Callable[[str, Tools], Scan]:
    """Reads `opening`, calls with or without square brackets around them, `closing`."""

    def scan(text: str, _tools: Tools) -> Scan:
        try:
            start = skip_space(text, len(opening))
            if start == len(text):
                return MORE
            if text[start] == "[":
                end = balanced(text, start, python=True)
                if end is None:
                    return MORE
                closed = literal(text, skip_space(text, end), closing)
                return Scan(closed, read_calls(text[start + 1 : end - 1]))
            end = text.find(closing, start)
            return MORE if end < 0 else Scan(end + len(closing), read_calls(text[start:end].strip()))
        except ValueError as error:
            return Scan(problem=str(error))

    return scan


def _whole(text: str, _tools: Tools) -> Scan:
    bare = text.strip().removeprefix("<|python_start|>").removesuffix("<|python_end|>").strip()
    try:
        if not bare.startswith("[") or balanced(bare, 0, python=True) != len(bare):
            raise ValueError("it is no list of calls")
        return Scan(len(text), read_calls(bare[1:-1]))
    except ValueError as error:
        return Scan(problem=str(error))


_RAW_END = re.compile(r"\]\s*<\|tool_call_end\|>")
_NEXT = r"(?=\s*(?:,\s*[^\s()\[\]{}\"',=]+=|\)\s*(?:,\s*[^\s()\[\]{}\"',=]+\(|\Z)))"
_RAW_STRING = {quote: re.compile(quote + _NEXT) for quote in "'\""}
_SCALAR = re.compile(r"[^,()\[\]{}]+")


def _raw(text: str, _tools: Tools) -> Scan:
    """Some templates put strings between quotes without escaping what is in them: read up to a quote that an argument can end with."""
    opening = "<|tool_call_start|>"
    start = skip_space(text, len(opening))
    if start < len(text) and text[start] != "[":
        return Scan(problem="no list of calls follows")
    for end in _RAW_END.finditer(text, start):
        try:
            return Scan(end.end(), _raw_calls(text[start + 1 : end.start()]))
        except ValueError:
            continue
    return MORE


def _raw_calls(text: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    place = 0
    while True:
        named = _NAME.match(text, place)
        if named is None:
            raise ValueError("no function with brackets stands there")
        place, arguments = named.end() + 1, dict[str, Any]()
        while not text.startswith(")", place):
            key = _KEY.match(text, place)
            if key is None:
                raise ValueError(f"an argument of {named[1]!r} has no name")
            arguments[key[1]], place = _raw_value(text, key.end())
            place = skip_space(text, place)
            if text.startswith(",", place):
                place = skip_space(text, place + 1)
        calls.append(ToolCall(named[1], arguments))
        place = skip_space(text, place + 1)
        if place == len(text):
            return tuple(calls)
        if text[place] != ",":
            raise ValueError(f"text stands behind the call of {named[1]!r}")
        place += 1


def _raw_value(text: str, place: int) -> tuple[Any, int]:
    first = text[place : place + 1]
    if first in ("'", '"'):
        end = _RAW_STRING[first].search(text, place + 1)
        if end is None:
            raise ValueError("a string does not end")
        return text[place + 1 : end.start()], end.end()
    if first in ("[", "{"):
        behind = balanced(text, place, python=True)
        if behind is None:
            raise ValueError("a bracket is not closed")
        return value_of(text[place:behind]), behind
    scalar = _SCALAR.match(text, place)
    if scalar is None:
        raise ValueError("a value is missing")
    return value_of(scalar[0]), scalar.end()


LFM = CallStyle("LFM2", ("<|tool_call_start|>",), _marked("<|tool_call_start|>", "<|tool_call_end|>"), ">")
LFM_RAW = CallStyle("LFM2 without escapes", ("<|tool_call_start|>",), _raw, ">")
CODE = CallStyle("Python in code tags", ("<code>",), _marked("<code>", "</code>"), ">")
PYTHONIC = CallStyle("Python", ("[", "<|python_start|>"), _whole, "]>", whole=True)

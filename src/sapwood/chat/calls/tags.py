"""Calls written with a tag for each argument: Qwen3-Coder, Qwen3.5 and Nemotron (`<parameter=k>`), GLM (`<arg_key>`).

A tag's text has no type of its own: `typed` reads it by the function's schema, where one is offered, else as JSON where it is
JSON and as text where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sapwood.chat.calls.scan import MORE, CallStyle, Scan, Tools, loaded
from sapwood.records import ToolCall

_WORDS = {"None": None, "True": True, "False": False}
_KINDS: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}
_NONE: Any = object()


def typed(text: str, name: str, key: str, tools: Tools) -> Any:
    """The value of an argument's text: what the schema of function `name` allows, else what it looks like."""
    kinds = _types(_schema(name, key, tools))
    value = _value(text)
    if value is _NONE:
        return text
    if kinds:
        return value if any(_KINDS[kind](value) for kind in kinds if kind in _KINDS) else text
    return text if isinstance(value, str) else value


def _value(text: str) -> Any:
    if text.strip() in _WORDS:  # templates that write values with Jinja's `string` write Python's words
        return _WORDS[text.strip()]
    try:
        return loaded(text)
    except ValueError:
        return _NONE


def _schema(name: str, key: str, tools: Tools) -> Any:
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            return properties.get(key) if isinstance(properties, Mapping) else None
    return None


def _types(schema: Any) -> set[str]:
    """The JSON types that a schema speaks of; empty where it names none."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    found = {named} if isinstance(named, str) else {kind for kind in named if isinstance(kind, str)} if isinstance(named, list) else set()
    if found and schema.get("nullable") is True:
        found.add("null")
    for choice in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(choice) or ():
            found |= _types(inner)
    allowed = [*(schema.get("enum") or ()), *([schema["const"]] if "const" in schema else ())]
    if not found and allowed:
        found = {kind for value in allowed for kind, fits in _KINDS.items() if fits(value)}
        found |= {"string"} if any(isinstance(value, str) for value in allowed) else set()
    return found


_XML_END = re.compile(r"</function>\s*</tool_call>")
_XML_HEAD = re.compile(r"<tool_call>\s*<function=([^>\n]+)>\s*?\n?")
_XML_KEY = re.compile(r"\s*<parameter=([^>\n]+)>\n?")
_XML_NEXT = re.compile(r"\n?</parameter>(?=\s*(?:<parameter=[^>\n]+>|\Z))")


def _xml(text: str, tools: Tools) -> Scan:
    return _first_that_reads(text, _XML_HEAD, _XML_END, lambda end: _read_xml(text[: end.start()], tools))


def _read_xml(text: str, tools: Tools) -> ToolCall | None:
    """The call of `<tool_call> <function=name> <parameter=k>\\nv\\n</parameter> …`, up to `</function>`."""
    head = _XML_HEAD.match(text)
    if head is None:
        return None
    name, place, arguments = head[1].strip(), head.end(), dict[str, Any]()
    while text[place:].strip():
        key = _XML_KEY.match(text, place)
        end = _XML_NEXT.search(text, key.end()) if key else None
        if key is None or end is None or key[1] in arguments:
            return None
        arguments[key[1]] = typed(text[key.end() : end.start()], name, key[1], tools)
        place = end.end()
    return ToolCall(name, arguments)


_GLM_END = re.compile(r"</tool_call>")
_GLM_HEAD = re.compile(r"<tool_call>\s*([^<>{}\s]+)\s*")
_GLM_PAIR = re.compile(r"\s*<arg_key>([^<]+)</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|\Z))", re.DOTALL)


def _glm(text: str, tools: Tools) -> Scan:
    return _first_that_reads(text, _GLM_HEAD, _GLM_END, lambda end: _read_glm(text[: end.start()], tools))


def _read_glm(text: str, tools: Tools) -> ToolCall | None:
    head = _GLM_HEAD.match(text)
    if head is None:
        return None
    place, arguments = head.end(), dict[str, Any]()
    while text[place:].strip():
        pair = _GLM_PAIR.match(text, place)
        if pair is None or pair[1] in arguments:
            return None
        arguments[pair[1]] = typed(pair[2], head[1], pair[1], tools)
        place = pair.end()
    return ToolCall(head[1], arguments)


def _first_that_reads(text: str, head: re.Pattern[str], ending: re.Pattern[str], read: Callable[[re.Match[str]], ToolCall | None]) -> Scan:
    """The first end up to which the text reads as a call: an argument may hold the closing tags as text."""
    if not head.match(text):
        return MORE
    for end in ending.finditer(text):
        call = read(end)
        if call is not None:
            return Scan(end.end(), (call,))
    return MORE


_ATEM = re.compile(
    r'\s*<atem:function_calls>\s*<atem:invoke name="([^"]*)">\s*(.*?)\s*</atem:invoke>\s*</atem:function_calls>\s*', re.DOTALL
)
_ATEM_PAIR = re.compile(r'\s*<atem:parameter name="([^"]*)">(.*?)</atem:parameter>(?=\s*(?:<atem:parameter |\Z))', re.DOTALL)


def read_atem(text: str, tools: Tools) -> ToolCall:
    """The call of one `<atem:function_calls>` block. Raises `ValueError`."""
    whole = _ATEM.fullmatch(text)
    if whole is None:
        raise ValueError("it is no <atem:function_calls> block")
    place, arguments = 0, dict[str, Any]()
    while whole[2][place:].strip():
        pair = _ATEM_PAIR.match(whole[2], place)
        if pair is None:
            raise ValueError("its parameters cannot be told apart")
        arguments[pair[1]] = typed(pair[2], whole[1], pair[1], tools)
        place = pair.end()
    return ToolCall(whole[1], arguments)


XML = CallStyle("Qwen3-Coder", ("<tool_call>",), _xml, ">")
GLM = CallStyle("GLM", ("<tool_call>",), _glm, ">")

"""Calls written as JSON: Hermes and Qwen, Mistral, DeepSeek, Cohere, Llama, and our own `tool_prompt`.

In: text from an opening on. Out: a `Scan`. JSON is followed to its end, so a closing mark inside an argument ends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sapwood.chat.calls.python import read_method
from sapwood.chat.calls.scan import MORE, CallStyle, Scan, Tools, arguments_of, call_of, json_at, literal, skip_space
from sapwood.chat.tools import parse_call
from sapwood.records import ToolCall


def judged(scan: Callable[[str, Tools], Scan]) -> Callable[[str, Tools], Scan]:
    """`scan`, with a `ValueError` as its problem."""

    def judge(text: str, tools: Tools) -> Scan:
        try:
            return scan(text, tools)
        except ValueError as error:
            return Scan(problem=str(error))

    return judge


def _between(opening: str, closing: str, first: str, **keys: tuple[str, ...]) -> Callable[[str, Tools], Scan]:
    """Reads `opening`, a JSON value that begins with one of `first`, `closing`; white space may stand between."""

    def scan(text: str, _tools: Tools) -> Scan:
        start = skip_space(text, len(opening))
        if start == len(text):
            return MORE
        if text[start] not in first:
            raise ValueError(f"no JSON follows {opening}")
        found = json_at(text, start)
        if found is None:
            return MORE
        value, end = found
        calls = tuple(call_of(entry, **keys) for entry in (value if isinstance(value, list) else [value]))
        closed = literal(text, skip_space(text, end), closing)
        return Scan(closed, calls)

    return judged(scan)


_NAMED = re.compile(r"\[TOOL_CALLS\]\s*([^\[\]{}\s]+)\s*(?:\[CALL_ID\]([^\[\]]*))?\[ARGS\]\s*")
_NAMING = re.compile(r"\[TOOL_CALLS\]\s*[^\[\]{}\s]*\s*(?:\[[A-Z_]*(?:\][^\[\]]*(?:\[[A-Z]*)?)?)?\Z")


def _mistral_list(text: str, _tools: Tools) -> Scan:
    opening = "[TOOL_CALLS]"
    start = skip_space(text, len(opening))
    if start == len(text):
        return MORE
    if text[start] != "[":
        raise ValueError(f"no JSON list follows {opening}")
    found = json_at(text, start)
    if found is None:
        return MORE
    return Scan(found[1], tuple(call_of(entry) for entry in found[0]))


def _mistral_args(text: str, _tools: Tools) -> Scan:
    named = _NAMED.match(text)
    if named is None:
        if _NAMING.match(text):
            return MORE
        raise ValueError("no name and [ARGS] follow [TOOL_CALLS]")
    if named.end() == len(text):
        return MORE
    if text[named.end()] != "{":
        raise ValueError("no JSON object follows [ARGS]")
    found = json_at(text, named.end())
    return MORE if found is None else Scan(found[1], (ToolCall(named[1], arguments_of(found[0]), named[2] or None),))


_DEEPSEEK = {
    "all": "<｜tool▁calls▁begin｜>",
    "end": "<｜tool▁calls▁end｜>",
    "one": "<｜tool▁call▁begin｜>",
    "sep": "<｜tool▁sep｜>",
    "one end": "<｜tool▁call▁end｜>",
}
_FENCED = re.compile(r"\s*(\S+)\s*```(?:json)?\s*")


def _deepseek(text: str, _tools: Tools) -> Scan:
    """V3 and R1 write the type, the name and a fenced JSON object; V3.1 the name and the bare object."""
    place = skip_space(text, len(_DEEPSEEK["all"]))
    calls: list[ToolCall] = []
    while not calls or not text.startswith(_DEEPSEEK["end"], place):
        if calls and _DEEPSEEK["end"].startswith(text[place:]):
            return Scan(None, tuple(calls))
        head = literal(text, place, _DEEPSEEK["one"])
        sep = text.find(_DEEPSEEK["sep"], head) if head is not None else -1
        if head is None or sep < 0:
            return MORE
        name, body = text[head:sep], sep + len(_DEEPSEEK["sep"])
        brace = text.find("{", body)
        if brace < 0:
            return MORE
        if fenced := _FENCED.fullmatch(text[body:brace]):
            name = fenced[1]
        elif text[body:brace].strip():
            raise ValueError("no JSON object follows the function's name")
        found = json_at(text, brace)
        if found is None:
            return MORE
        calls.append(ToolCall(name.strip(), arguments_of(found[0])))
        if not calls[-1].name:
            raise ValueError("it names no function")
        behind = skip_space(text, found[1])
        if fenced:
            closed = literal(text, behind, "```")
            behind = skip_space(text, closed) if closed is not None else len(text)
        after = literal(text, behind, _DEEPSEEK["one end"])
        if after is None:
            return Scan(None, tuple(calls))
        place = skip_space(text, after)
    return Scan(place + len(_DEEPSEEK["end"]), tuple(calls))


_TAG = "<|python_tag|>"


def _llama(text: str, _tools: Tools) -> Scan:
    """One or more objects, divided by semicolons or white space; behind the tag also `tool.call(key="value")`."""
    tagged = text.lstrip().startswith(_TAG)
    bare = text.strip().removeprefix(_TAG).strip()
    if tagged and not bare.startswith("{"):
        return Scan(len(text), (read_method(bare),))
    calls: list[ToolCall] = []
    place = 0
    while place < len(bare):
        if bare[place] != "{":
            raise ValueError("text stands beside it")
        found = json_at(bare, place)
        if found is None:
            raise ValueError("it ends in its middle")
        calls.append(call_of(found[0]))
        place = skip_space(bare, found[1])
        if bare.startswith(";", place):
            place = skip_space(bare, place + 1)
    return Scan(len(text), tuple(calls))


def _prompted(text: str, _tools: Tools) -> Scan:
    calls = parse_call(text)
    if not calls:
        raise ValueError("it is no call in JSON")
    return Scan(len(text), tuple(calls))


HERMES = CallStyle("Hermes", ("<tool_call>",), _between("<tool_call>", "</tool_call>", "{"), ">")
MISTRAL_LIST = CallStyle("Mistral list", ("[TOOL_CALLS]",), judged(_mistral_list), "]")
MISTRAL_ARGS = CallStyle("Mistral", ("[TOOL_CALLS]",), judged(_mistral_args), "}")
DEEPSEEK = CallStyle("DeepSeek", (_DEEPSEEK["all"],), judged(_deepseek), ">")
COHERE = CallStyle(
    "Cohere",
    ("<|START_ACTION|>",),
    _between("<|START_ACTION|>", "<|END_ACTION|>", "[{", names=("tool_name", "name"), ids=("tool_call_id", "id")),
    ">",
)
LLAMA = CallStyle("Llama", (_TAG, "{"), judged(_llama), "})", whole=True)
PROMPTED = CallStyle("tool prompt", ("{", "[", "<tool_call>"), judged(_prompted), "}]>", whole=True)

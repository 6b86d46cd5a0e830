"""Tools in plain text, for templates that have no place for them: written into the system message, parsed back.

In: function schemas (OpenAI's form, or bare name/description/parameters). Out: a text for the system message; and from an
answer's text its calls. Parsing forgives whitespace and nothing else: an answer with words around the call is no call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from sapwood.records import ToolCall

_TAGGED = re.compile(r"\s*<tool_call>(.*?)</tool_call>", re.DOTALL)


def tool_prompt(tools: Sequence[Mapping[str, Any]]) -> str:
    """The text that offers tools: one JSON line a function, then how to answer."""
    lines = []
    for tool in tools:
        inner = tool.get("function")
        function = inner if isinstance(inner, Mapping) else tool
        line = {key: function[key] for key in ("name", "description", "parameters") if key in function}
        lines.append(orjson.dumps(line, default=dict).decode())
    return (
        "You can call these functions, one JSON line each:\n"
        + "\n".join(lines)
        + '\nAnswer only with JSON: {"name": FUNCTION, "arguments": {NAME: VALUE}}, or a JSON list of such objects for several calls.'
    )


def call_text(calls: Sequence[ToolCall]) -> str:
    """Calls as the answer that `tool_prompt` asks for and `parse_call` reads."""
    written = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    return orjson.dumps(written[0] if len(written) == 1 else written).decode()


def parse_call(text: str) -> list[ToolCall] | None:
    """The calls that an answer consists of, or None if it is anything else.

    Read are one JSON object `{"name": …, "arguments": {…}}` (`parameters` is taken for `arguments`), a JSON list of them,
    and any number of `<tool_call>` tags with one object each.
    """
    tagged = _TAGGED.findall(text)
    if tagged:
        if _TAGGED.sub("", text).strip():
            return None
        found: Any = [_loaded(part) for part in tagged]
    else:
        found = _loaded(text)
    entries = found if isinstance(found, list) else [found]
    calls = [_call(entry) for entry in entries]
    whole = [call for call in calls if call is not None]
    return whole if len(whole) == len(calls) else None


def _loaded(text: str) -> Any:
    try:
        return orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return None


def _call(entry: Any) -> ToolCall | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        return None
    rest = set(entry) - {"name", "id"}
    if rest not in ({"arguments"}, {"parameters"}):
        return None
    arguments = entry[rest.pop()]
    if isinstance(arguments, str):
        arguments = _loaded(arguments)  # OpenAI writes them as a JSON string
    if not isinstance(arguments, dict):
        return None
    given = entry.get("id")
    return ToolCall(entry["name"], arguments, given if isinstance(given, str) else None)

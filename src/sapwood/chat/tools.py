"""Tools in plain text, for templates that have no place for them: written into the system message, parsed back.

In: function schemas (OpenAI's form, or bare name/description/parameters). Out: a text for the system message; and from an
answer's text its calls. Parsing forgives whitespace and nothing else: an answer with words around the call is no call.
`fold` rewrites a conversation so that a template sees neither tools nor calls nor results: all three are text then, in training
and at inference alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from sapwood.errors import TemplateError
from sapwood.records import Message, ToolCall

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


@dataclass(frozen=True)
class Folding:
    """Where a template has room: for a system message, and for messages with the role `tool`."""

    system: bool
    tool_role: bool


def learn_folding(render: Callable[[Sequence[Message]], str]) -> Folding:
    """Render probes and see which roles are written. `render` raises `TemplateError` for what the template refuses."""
    ask, said = Message("user", "Where does sapwood grow?"), Message("assistant", "Look it up.")

    def writes(*messages: Message) -> bool:
        try:
            return "Right below the bark." in render(messages)
        except TemplateError:
            return False

    return Folding(writes(Message("system", "Right below the bark."), ask), writes(ask, said, Message("tool", "Right below the bark.")))


def fold(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], folding: Folding, where: str) -> list[Message]:
    """The conversation with tools in its system message (or its first user message), calls as `call_text`, results as text.

    Raises `TemplateError` for a turn with both content and calls: `tool_prompt` asks for the one or the other.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id is not None}
    folded: list[Message] = []
    for place, message in enumerate(messages, 1):
        if message.tool_calls:
            if message.content.strip():
                raise TemplateError(
                    f"{where}: message {place} has both content and tool calls; with tools in the system message a turn is either text or "
                    "calls. Remove the content, or choose a template that knows tools, with `--template FILE`."
                )
            folded.append(replace(message, content=call_text(message.tool_calls), tool_calls=()))
        elif message.role == "tool" and not folding.tool_role:
            name = message.name or names.get(message.tool_call_id or "")
            result = f"Result of {name}:\n{message.content}" if name else f"Result:\n{message.content}"
            if place > 1 and messages[place - 2].role == "tool":
                folded[-1] = replace(folded[-1], content=f"{folded[-1].content}\n\n{result}")
            else:
                folded.append(Message("user", result))
        else:
            folded.append(message)
    return _with_prompt(folded, tool_prompt(tools), folding.system) if tools else folded


def _with_prompt(messages: list[Message], offer: str, system: bool) -> list[Message]:
    if system and messages and messages[0].role in ("system", "developer"):
        first = messages[0]
        return [replace(first, content=f"{first.content}\n\n{offer}" if first.content else offer), *messages[1:]]
    if system:
        return [Message("system", offer), *messages]
    asked = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    if asked is None:
        return [Message("user", offer), *messages]
    said = messages[asked]
    return [*messages[:asked], replace(said, content=f"{said.content}\n\n{offer}"), *messages[asked + 1 :]]

"""Constraints on whole answers → grammars that llguidance runs.

In: a `Constraint`, and the chat that says how calls are written. Out: a grammar. Calls are written exactly as the template's own style
writes them, marks that are tokens as these tokens, so that `chat.parse` reads them back; each call's arguments validate against
its function's schema, and none are made up. JSON is written with one space behind commas and colons, as templates write it: white space
at will is what small models lose themselves in.
Left out on purpose: styles that are not JSON inside, and two whose marks vary (DeepSeek, harmony); they are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.chat import Chat
from sapwood.chat.calls import PROMPTED
from sapwood.chat.calls.objects import COHERE, HERMES, LLAMA, MISTRAL_ARGS, MISTRAL_LIST
from sapwood.errors import ConfigError
from sapwood.records import Constraint

SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How templates write JSON."""
TIGHT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
"""How `tool_prompt` asks for it."""


@dataclass(frozen=True)
class _Written:
    """How a style writes its calls: `opening`, the calls with `between` them, `closing`."""

    opening: tuple[str, ...]
    between: tuple[str, ...]
    closing: tuple[str, ...]
    arguments: str = "arguments"
    name: str = "name"
    number: str | None = None
    """The key of a number that each call has, as text."""
    several: bool = True
    form: Mapping[str, Any] | None = None


WRITTEN = {
    HERMES.name: _Written(("<tool_call>", "\n"), ("\n", "</tool_call>", "\n", "<tool_call>", "\n"), ("\n", "</tool_call>")),
    MISTRAL_LIST.name: _Written(("[TOOL_CALLS]", "["), (", ",), ("]",)),
    MISTRAL_ARGS.name: _Written(("[TOOL_CALLS]",), ("[TOOL_CALLS]",), ()),
    COHERE.name: _Written(
        ("<|START_ACTION|>", "["), (", ",), ("]", "<|END_ACTION|>"), arguments="parameters", name="tool_name", number="tool_call_id"
    ),
    LLAMA.name: _Written((), (), (), arguments="parameters", several=False),
    PROMPTED.name: _Written((), (), (), several=False, form=TIGHT),
}
"""The styles whose calls can be held to their schemas."""


def grammar_of(constraint: Constraint, chat: Chat) -> tuple[str, str]:
    """The grammar, and the format in which it is written: "json" (schema), "regex" or "lark". Raises `ConfigError`."""
    match constraint.kind:
        case "json":
            return json.dumps({"type": "object", "x-guidance": SPACED}), "json"
        case "json_schema":
            schema = constraint.value
            return json.dumps({"x-guidance": SPACED, **schema} if isinstance(schema, Mapping) else schema, default=dict), "json"
        case "regex":
            return constraint.value, "regex"
        case "choice":
            return "start: " + " | ".join(_quoted(text) for text in constraint.value), "lark"
        case "lark":
            return constraint.value, "lark"
        case _:
            return _calls(constraint.value, chat, several="calls" in constraint.kind, or_text="text" in constraint.kind), "lark"


def _calls(tools: Sequence[Mapping[str, Any]], chat: Chat, *, several: bool, or_text: bool) -> str:
    style = chat.form.style
    if style is None or style.name not in WRITTEN:
        named = "writes no calls that Sapwood can read" if style is None else f"writes calls in the style {style.name!r}"
        raise ConfigError(
            f"The chat template {named}; calls can be held to their schemas in the styles {', '.join(WRITTEN)}. "
            "Offer the tools in the system message (`--tools-in-system`), or leave the answer free."
        )
    written = WRITTEN[style.name]

    def marks(texts: Sequence[str]) -> str:
        return " ".join(_mark(text, chat) for text in texts)

    lines = []
    for place, tool in enumerate(tools):
        lines.append(f"call_{place}: {_call(tool, written, style.name == MISTRAL_ARGS.name, chat)}")
    calls = "call" if not (several and written.several) else f"call ({marks(written.between)} call)*"
    rules = [
        f"calls: {marks(written.opening)} {calls} {marks(written.closing)}",
        "call: " + " | ".join(f"call_{place}" for place in range(len(tools))),
        *lines,
    ]
    if not or_text:
        return "\n".join(["start: calls", *rules])
    if not written.opening:  # an answer that begins like a call is one
        return "\n".join(["start: calls | TEXT", *rules, r"TEXT: /[^\{\[\s](?s:.*)/"])
    opening = re.escape(written.opening[0]).replace("/", r"\/")
    return "\n".join(["start: TEXT | TEXT? calls", *rules, f"TEXT: /(?s:.+)/ & ~/(?s:.*){opening}(?s:.*)/"])


def _call(tool: Mapping[str, Any], written: _Written, bare: bool, chat: Chat) -> str:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(f"A tool of a constraint has no name: {str(tool)[:80]!r}. Give tools as a chat is given them.")
    arguments = {"type": "object", "additionalProperties": False, **(function.get("parameters") or {})}
    form = written.form or SPACED
    if bare:
        schema = json.dumps({**arguments, "x-guidance": form}, default=dict)
        return f"{_quoted(function['name'])} {_mark('[ARGS]', chat)} %json {schema}"
    definitions = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    keys: dict[str, Any] = {} if written.number is None else {written.number: {"type": "string", "pattern": "^[0-9]$"}}
    keys |= {written.name: {"const": function["name"]}, written.arguments: arguments}
    whole = {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False, **definitions}
    return f"%json {json.dumps({**whole, 'x-guidance': form}, default=dict)}"


def _mark(text: str, chat: Chat) -> str:
    """A mark that is a token as that token, else as text."""
    token = chat.tokens.id_of(text) if len(text) > 1 else None
    return _quoted(text) if token is None else f"<[{token}]>"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

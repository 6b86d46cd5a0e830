"""Messages as files have them → `records.Message`, with one spelling for roles, text, tool calls and reasoning.

Raises `Refused` for what cannot be understood. What is understood but has no use is counted in `notes`, so that it can
be said in one line. Left out on purpose: whether a model's template can express the messages; that is `chat`'s to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from sapwood.chat.validation import check_conversation
from sapwood.config import did_you_mean
from sapwood.data.exactness import TOO_DEEP, check_exact, too_deep
from sapwood.data.media import KIND_OF_PART, part_media
from sapwood.data.refusal import Refused, kind_of, shown
from sapwood.errors import DataError, storage
from sapwood.records import Media, Message, ToolCall
from sapwood.records.conversation import ROLES

Notes = Counter[str]
"""Sentences about what was read and not used, with the number of rows (or turns) they hold for."""

ROLE_NAMES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "model", "ai", "chatgpt", "bard", "bing", "claude", "llm"), "assistant"),
    **dict.fromkeys(("function_call", "function_calls", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "tools", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(
        (f"{what}_{how}" for what in ("tool", "function") for how in ("response", "responses", "result", "results", "output")), "tool"
    ),
}
_CALL_ROLES = ("function_call", "function_calls", "tool_call", "tool_calls")
"""ShareGPT roles whose text is the call itself, as JSON."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KNOWN_KEYS = frozenset(
    ("role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", "tool_name", "train", "weight", *_REASONING)
)
_FILES = ("file", "input_file", "document")
_TEXT_PARTS = ("text", "input_text", "output_text")
_NAME_KEYS = ("name", "tool", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_CALL_KEYS = frozenset(("id", "type", "index", "function", *_NAME_KEYS, *_ARGUMENT_KEYS))


def read_messages(raw: Any, notes: Notes, *, field: str = "messages", default_weight: float = 1.0, first: int = 1) -> list[Message]:
    """Normalise a list of messages (or one message, or their JSON text). `first` is the number of its first turn.

    Assistant turns weigh `default_weight` unless they say `weight` or `train`. Raises `Refused`.
    """
    if isinstance(raw, str):
        raw = json_in_text(raw, f"broken messages: `{field}`")
    if isinstance(raw, dict):
        raw = _side_by_side(raw) or [raw]
    if not isinstance(raw, list):
        raise Refused(f"no messages: `{field}` is {kind_of(raw)}, expected a list of messages", "give [{role, content}, …]")
    return [_message(entry, turn, default_weight, notes) for turn, entry in enumerate(raw, first)]


def _side_by_side(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turns whose parts came as columns, `{"role": […], "content": […]}`, as older data sets hold them; none if they did not."""
    if not all(isinstance(value, list) for value in raw.values()) or not raw.keys() & {"role", "from"}:
        return []
    lengths = {len(value) for value in raw.values()}
    if len(lengths) > 1:
        raise Refused(f"no messages: lists of {sorted(lengths)} entries stand side by side", "give one list of {role, content}")
    return [dict(zip(raw, parts, strict=True)) for parts in zip(*raw.values(), strict=True)]


def check_turns(messages: Sequence[Message], notes: Notes) -> None:
    """Raise `Refused` unless there is something to train on: an assistant turn, none of them empty, one that weighs."""
    answers = 0
    weight = 0.0
    for turn, message in enumerate(messages, 1):
        if message.role == "assistant":
            answers += 1
            weight += message.weight
            if not (message.tool_calls or message.content.strip() or (message.reasoning or "").strip()):
                raise Refused(
                    f"empty completion: turn {turn} (assistant) has no content, no tool call and no reasoning",
                    "write the answer, or delete the row",
                )
        elif message.role == "user" and not message.content.strip() and not message.media:
            notes["a user turn is empty"] += 1
    if not answers:
        roles = ", ".join(message.role for message in messages[:6]) or "no turns at all"
        raise Refused(f"no assistant turn: found {roles}", "add the answer as a turn with role `assistant`, or delete the row")
    if not weight:
        raise Refused("nothing trained: every assistant turn has weight 0 or train false", "give one of them weight 1, or delete the row")
    if messages[-1].role != "assistant":
        notes["the turns behind the last assistant turn train nothing"] += 1


def _message(raw: Any, turn: int, default_weight: float, notes: Notes) -> Message:
    if not isinstance(raw, dict):
        raise Refused(f"message is not an object: turn {turn} is {kind_of(raw)}", 'write {"role": "user", "content": "…"}')
    spelt = raw.get("role") or raw.get("from")
    content = raw.get("content")
    if content is None:
        content = raw.get("value")
    role = _role(spelt, turn)
    is_call = spelt not in ROLES and _word(str(spelt)) in _CALL_ROLES
    if len(raw) == 2 and type(content) is str and not is_call:  # the common case: nothing else can be in it
        return Message(role, content, weight=default_weight if role == "assistant" else 1.0)
    for key in raw.keys() - _KNOWN_KEYS:
        if raw[key] is not None:
            notes[f"message key `{key}` is not used.{did_you_mean(key, sorted(_KNOWN_KEYS))}"] += 1
    if content is None and (role in ("system", "developer", "user") or (role == "tool" and not raw.keys() & {"content", "value"})):
        raise Refused(f"no content: turn {turn} ({role}) has neither `content` nor `value`", _misspelt(raw) or "give the text as `content`")
    text, thoughts, media = _content(content, role, turn)
    calls = _calls(raw, turn)
    if is_call:
        calls += _call_list(json_in_text(text, f"broken tool call: turn {turn} ({spelt})"), turn)
        text = ""
    reasoning = _reasoning(raw, thoughts, turn)
    if role != "assistant" and (calls or reasoning):
        what = "tool calls" if calls else "reasoning"
        raise Refused(f"{what} outside an assistant turn: turn {turn} is a {role} turn", f"move the {what} into an assistant turn")
    return Message(
        role,
        text,
        reasoning=reasoning,
        tool_calls=calls,
        tool_call_id=_text_or_none(raw, "tool_call_id", turn),
        name=_text_or_none(raw, "name", turn) or _text_or_none(raw, "tool_name", turn),
        weight=_weight(raw, role, turn, default_weight, notes),
        media=media,
    )


def _role(spelt: Any, turn: int) -> str:
    known = ROLE_NAMES.get(spelt) if isinstance(spelt, str) else None
    if known is not None:
        return known
    if spelt is None:
        raise Refused(f"no role: turn {turn} has neither `role` nor `from`", "give each message a role: system, user, assistant or tool")
    if not isinstance(spelt, str):
        raise Refused(f"unknown role: turn {turn} has {kind_of(spelt)} as role", "use system, user, assistant or tool")
    word = _word(spelt)
    if word in ROLE_NAMES:
        return ROLE_NAMES[word]
    hint = f"{did_you_mean(word, list(ROLE_NAMES)).strip()} Known: system, user, assistant, tool, and what ShareGPT calls them.".strip()
    raise Refused(f"unknown role: turn {turn} has {shown(spelt)}", hint)


def _word(spelt: str) -> str:
    """A role as `ROLE_NAMES` has it: `FUNCTION RESPONSE` and `function-response` are one."""
    return spelt.strip().rstrip(":").lower().replace(" ", "_").replace("-", "_")


def _misspelt(raw: Mapping[str, Any]) -> str:
    near = (did_you_mean(key, ["content", "value"]).strip() for key in raw.keys() - _KNOWN_KEYS)
    return next((hint for hint in sorted(near) if hint), "")


def _content(content: Any, role: str, turn: int) -> tuple[str, str, tuple[Media, ...]]:
    """Text, thoughts and media of a message's content."""
    if isinstance(content, str):
        return content, "", ()
    if content is None:
        return "", "", ()
    if isinstance(content, list):
        text, thoughts, media = "", "", []
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in KIND_OF_PART:
                media.append(part_media(part, len(text), turn))
                continue
            more_text, more_thoughts = _part(part, turn)
            text, thoughts = text + more_text, thoughts + more_thoughts
        return text, thoughts, tuple(media)
    if isinstance(content, dict) and role == "tool":  # a tool's result, sent as JSON text at inference
        return orjson.dumps(content).decode(), "", ()
    raise Refused(f"content is not text: turn {turn} ({role}) has {kind_of(content)}", "give text, or a list of parts")


def _part(part: Any, turn: int) -> tuple[str, str]:
    """Text and thoughts of a part that is no medium."""
    if isinstance(part, str):
        return part, ""
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in _FILES:
        raise Refused(f"unsupported part: turn {turn} holds `{kind}`", "files and documents are not supported; remove the row")
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"], ""
    if kind in ("thinking", "reasoning"):
        thought = part.get(kind, part.get("text"))
        if isinstance(thought, str):
            return "", thought
    what = f"a part of type {shown(kind)}" if isinstance(part, dict) else f"{kind_of(part)} as a part"
    raise Refused(f"unsupported part: turn {turn} holds {what}", 'give text, or parts such as {"type": "text", "text": "…"}')


def _reasoning(raw: Mapping[str, Any], thoughts: str, turn: int) -> str | None:
    found = {thoughts} if thoughts else set()
    for key in _REASONING:
        if value := raw.get(key):
            if not isinstance(value, str):
                raise Refused(f"reasoning is not text: turn {turn} has {kind_of(value)} as `{key}`", "give the reasoning as text")
            found.add(value)
    if len(found) > 1:
        raise Refused(f"two reasonings: turn {turn} gives different texts for one turn", f"keep one of {', '.join(_REASONING)}")
    return found.pop() if found else None


def _text_or_none(raw: Mapping[str, Any], key: str, turn: int) -> str | None:
    value = raw.get(key)
    if value is None or isinstance(value, str):
        return value or None
    raise Refused(f"`{key}` is not text: turn {turn} has {kind_of(value)}", f"write `{key}` as text, or leave it out")


def _weight(raw: Mapping[str, Any], role: str, turn: int, default: float, notes: Notes) -> float:
    train, weight = raw.get("train"), raw.get("weight")
    if train is None and weight is None:
        return default if role == "assistant" else 1.0
    if train is not None and not isinstance(train, bool):
        raise Refused(f"broken weight: turn {turn} has {shown(train)} as `train`", "write true or false")
    if weight is not None and (not isinstance(weight, int | float) or isinstance(weight, bool) or weight < 0):
        raise Refused(f"broken weight: turn {turn} has {shown(weight)} as `weight`", "write a number, 0 or above")
    if role != "assistant":
        if weight or train:
            notes["a weight above 0 outside an assistant turn is not used: only assistant turns are trained"] += 1
        return 1.0
    if train is False:
        if weight:
            raise Refused(f"broken weight: turn {turn} says both train false and weight {weight}", "keep one of the two")
        return 0.0
    return float(weight) if weight is not None else 1.0


def _calls(raw: Mapping[str, Any], turn: int) -> tuple[ToolCall, ...]:
    """Calls of one message, in OpenAI's present form (`tool_calls`) or its first (`function_call`)."""
    calls: tuple[ToolCall, ...] = ()
    for key in ("tool_calls", "function_call"):
        value = raw.get(key)
        if isinstance(value, str) and value:
            value = json_in_text(value, f"broken tool call: turn {turn} (`{key}`)")
        if value:
            calls += _call_list(value, turn)
    return calls


def _call_list(value: Any, turn: int) -> tuple[ToolCall, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(_call(entry, f"broken tool call: turn {turn}, call {number}") for number, entry in enumerate(entries, 1))


def _call(raw: Any, where: str) -> ToolCall:
    fix = 'write {"function": {"name": "…", "arguments": {…}}}'
    if not isinstance(raw, dict):
        raise Refused(f"{where} is {kind_of(raw)}, expected an object", fix)
    inner = raw.get("function")
    body: dict[str, Any] = inner if isinstance(inner, dict) else {**raw, "name": inner} if isinstance(inner, str) else raw
    for key in (raw.keys() | body.keys()) - _CALL_KEYS:
        raise Refused(f"{where} has the unknown key `{key}`", did_you_mean(key, sorted(_CALL_KEYS)).strip() or fix)
    name = next((body[key] for key in _NAME_KEYS if body.get(key) is not None), None)
    if not isinstance(name, str) or not name:
        raise Refused(f"{where} names no function", fix)
    arguments = next((body[key] for key in _ARGUMENT_KEYS if body.get(key) is not None), None)
    if isinstance(arguments, str):
        arguments = json_in_text(arguments, f"{where} ({name}) has arguments that") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Refused(f"{where} ({name}) has {kind_of(arguments)} as arguments, expected an object", fix)
    call_id = raw.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise Refused(f"{where} ({name}) has {kind_of(call_id)} as id, expected text", "write the id as text")
    return ToolCall(name, arguments, call_id or None)


def read_tools(raw: Any) -> tuple[Mapping[str, Any], ...]:
    """A row's tools: a list, or its JSON text. A bare function is put into the usual `{"type": "function", …}` wrapping."""
    if isinstance(raw, str):
        raw = json_in_text(raw, "broken tools: `tools`") if raw.strip() else []
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise Refused(f"broken tools: `tools` is {kind_of(raw)}, expected a list", "give a list of tools with JSON schemas")
    return tuple(_tool(entry, number) for number, entry in enumerate(raw, 1))


def _tool(raw: Any, number: int) -> Mapping[str, Any]:
    if isinstance(raw, str):
        raw = json_in_text(raw, f"broken tools: tool {number}")
    function = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        fix = 'write {"type": "function", "function": {"name": "…", "parameters": {…}}}'
        raise Refused(f"broken tools: tool {number} names no function", fix)
    assert isinstance(raw, dict)
    return raw if "function" in raw else {"type": "function", "function": raw}


def tools_of(file: Path) -> tuple[Mapping[str, Any], ...]:
    """The tools that a JSON file lists. Raises `DataError` for what is no list of tools."""
    try:
        with storage(file, "read"):
            content = orjson.loads(file.read_bytes())
        return read_tools(content if isinstance(content, list) else [content])
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. Name a JSON file with a list of tools after --tools.") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file}: not valid JSON ({error}). It should hold a list of tools.") from None
    except Refused as refused:
        raise DataError(f"{file}: {refused.reason}; {refused.fix}.") from None


def note_calls(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], notes: Notes) -> None:
    """Note calls that do not fit the row's own tools, and results that do not fit the calls: allowed, but rarely meant."""
    for found in check_conversation(messages, tools):
        notes[found.kind] += 1


def read_template_arguments(raw: Any, field: str) -> Mapping[str, Any]:
    """A row's own arguments for the chat template: an object, or its JSON text."""
    if isinstance(raw, str):
        raw = json_in_text(raw, f"broken template arguments: `{field}`") if raw.strip() else {}
    if not isinstance(raw, dict):
        raise Refused(f"broken template arguments: `{field}` is {kind_of(raw)}, expected an object", 'write {"enable_thinking": false}')
    return raw


def json_in_text(text: str, what: str) -> Any:
    """JSON that stands in a text. Raises `Refused`, beginning with `what`, for a text that is none, or that would be changed."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        fix = "write it as JSON, not as text, or mend the text"
        if text.startswith(("[{'", "{'")):
            fix = "it stands there as Python shows it; write it with `json.dumps`, in double quotes"
        raise Refused(f"{what} cannot be read as JSON ({error.msg} at character {error.colno}): {shown(text)}", fix) from None
    check_exact(text.encode())
    if too_deep(value):
        raise Refused(TOO_DEEP, "flatten it")
    return value

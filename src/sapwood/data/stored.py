"""One record ⇄ one line of JSON: conversations and documents as they lie in prepared files.

In: a `Conversation` or a `Document` whose values JSON can hold. Out: bytes, and from bytes the very same record. Fields at
their default are left out. Left out on purpose: the record's place, which is stored beside it as two numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from sapwood.records import Conversation, Document, Media, Message, Source, ToolCall


def written(record: Conversation | Document) -> bytes:
    """The record as JSON. Values that JSON does not know (dates, say) become texts."""
    content: dict[str, Any]
    if isinstance(record, Document):
        content = {"tokens": [record.tokens, record.weights]} if record.tokens else {"text": record.text}
    else:
        content = {"messages": [_message(message) for message in record.messages]}
        if record.tools:
            content["tools"] = [dict(tool) for tool in record.tools]
        if record.template_arguments:
            content["arguments"] = dict(record.template_arguments)
    if record.meta:
        content["meta"] = dict(record.meta)
    return orjson.dumps(content, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def read_back(line: bytes, source: Source | None) -> Conversation | Document:
    """The record that was written."""
    content = orjson.loads(line)
    meta = content.get("meta", {})
    if "tokens" in content:
        tokens, weights = content["tokens"]
        return Document(" ".join(map(str, tokens)), meta, source, tuple(tokens), tuple(weights))
    if "text" in content:
        return Document(content["text"], meta, source)
    messages = tuple(_message_from(entry) for entry in content["messages"])
    return Conversation(messages, tuple(content.get("tools", ())), content.get("arguments", {}), meta, source)


def _message(message: Message) -> dict[str, Any]:
    content: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        content["reasoning"] = message.reasoning
    if message.tool_calls:
        content["calls"] = [[call.name, dict(call.arguments), call.id] for call in message.tool_calls]
    if message.tool_call_id is not None:
        content["call_id"] = message.tool_call_id
    if message.name is not None:
        content["name"] = message.name
    if message.weight != 1.0:
        content["weight"] = message.weight
    if message.media:
        content["media"] = [[medium.kind, medium.at, medium.uri, medium.digest] for medium in message.media]
    return content


def _message_from(content: Mapping[str, Any]) -> Message:
    if len(content) == 2:
        return Message(content["role"], content["content"])
    return Message(
        content["role"],
        content["content"],
        reasoning=content.get("reasoning"),
        tool_calls=tuple(ToolCall(*call) for call in content.get("calls", ())),
        tool_call_id=content.get("call_id"),
        name=content.get("name"),
        weight=content.get("weight", 1.0),
        media=tuple(Media(*medium) for medium in content.get("media", ())),
    )


def _plain(value: Any) -> Any:
    """What orjson does not know: other kinds of mapping as objects, anything else as its text."""
    return dict(value) if isinstance(value, Mapping) else str(value)

"""Does a turn come back? Each trained turn is rendered, tokenised, parsed again and compared with the message it was.

In: a `Chat` and a conversation. Out: `Loss`es, each a difference between what the data says and what a reader of the model's
answer would get: white space that the template strips, ids of calls that it does not write, content it drops beside calls, a
number that comes back as text. A template whose list is empty gives each message back as it was.
Left out on purpose: turns that cannot be trained at all; those raise in `Chat.turns`, by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sapwood.chat.turns import taken_apart
from sapwood.records import Conversation, Message, ToolCall

if TYPE_CHECKING:
    from sapwood.chat.chat import Chat


@dataclass(frozen=True, slots=True)
class Loss:
    """One difference. `kind` is one of a few words to count by; the sentence says what became of what, and where."""

    kind: str
    sentence: str
    index: int
    """Place of the message in the conversation, from 0."""


def round_trip(chat: Chat, conversation: Conversation) -> list[Loss]:
    """The losses of all trained turns, in order. Raises as `Chat.turns` does where a turn cannot be rendered."""
    losses: list[Loss] = []
    for turn in chat.turns(conversation):
        found = chat.parse(turn.ids, turn.prompt)
        place = f"message {turn.index + 1}"
        differences = list(compare(conversation.messages[turn.index], found.message))
        losses += [Loss(kind, f"{place}: {sentence}", turn.index) for kind, sentence in differences]
        if found.problems and not any(kind.startswith("calls") for kind, _ in differences):
            losses.append(Loss("read with a problem", f"{place}: {found.problems[0]}", turn.index))
    return losses


def compare(wanted: Message, found: Message) -> Iterator[tuple[str, str]]:
    """(kind, sentence) for each way in which `found` is not `wanted`. Reasoning may stand in its field or inline."""
    thought = taken_apart(wanted)
    inline = not (wanted.reasoning and wanted.reasoning.strip())
    answer = thought.answer
    yield from _of_reasoning(wanted, thought.reasoning, found)
    if answer != found.content and not (inline and thought.reasoning is not None and answer.lstrip("\n") == found.content):
        yield from _of_content(answer, found, bool(wanted.tool_calls))
    yield from _of_calls(wanted.tool_calls, found.tool_calls)


def _of_reasoning(wanted: Message, reasoning: str | None, found: Message) -> Iterator[tuple[str, str]]:
    if reasoning == found.reasoning:
        if wanted.reasoning is not None and wanted.reasoning != (found.reasoning or ""):
            yield "reasoning trimmed", "white space around the reasoning is lost"
    elif reasoning is not None and found.reasoning is not None and reasoning.split() == found.reasoning.split():
        yield "reasoning trimmed", "white space in the reasoning has changed"
    elif found.reasoning is None:
        yield "reasoning lost", f"the reasoning {_short(reasoning)} is lost"
    elif reasoning is None:
        yield "reasoning invented", f"{_short(found.reasoning)} is read as reasoning, which the message does not have"
    else:
        yield "reasoning changed", f"the reasoning {_short(reasoning)} comes back as {_short(found.reasoning)}"


def _of_content(answer: str, found: Message, called: bool) -> Iterator[tuple[str, str]]:
    if answer.strip() == found.content.strip():
        yield "content trimmed", f"white space around the content is lost: {_short(answer)} comes back as {_short(found.content)}"
    elif called and not found.content.strip():
        where = " and stands in the reasoning" if found.reasoning and answer.strip() in found.reasoning else ""
        yield "content lost beside calls", f"the content {_short(answer)} beside the calls is lost{where}"
    else:
        yield "content changed", f"the content {_short(answer)} comes back as {_short(found.content)}"


def _of_calls(wanted: tuple[ToolCall, ...], found: tuple[ToolCall, ...]) -> Iterator[tuple[str, str]]:
    if len(wanted) != len(found):
        yield "calls lost" if len(found) < len(wanted) else "calls invented", f"{len(wanted)} calls come back as {len(found)}"
        return
    for number, (one, other) in enumerate(zip(wanted, found, strict=True), 1):
        if one.name != other.name:
            yield "calls changed", f"call {number} of {one.name!r} comes back as a call of {other.name!r}"
        if one.id is not None and other.id is None:
            yield "call ids lost", f"the id {one.id!r} of call {number} is not written"
        elif one.id is None and other.id is not None:
            yield "call ids invented", f"call {number} has no id, and the template needs one: {other.id!r}"
        elif one.id != other.id:
            yield "call ids changed", f"the id {one.id!r} of call {number} comes back as {other.id!r}"
        yield from _of_arguments(f"call {number} ({one.name})", one.arguments, other.arguments)


def _of_arguments(where: str, wanted: Any, found: Any) -> Iterator[tuple[str, str]]:
    if same(wanted, found):
        if _written(wanted) != _written(found):
            yield "order of arguments", f"the keys of {where} come back in another order"
        return
    for key in wanted.keys() | found.keys():
        if key not in found or key not in wanted:
            yield "arguments changed", f"{where}: the argument {key!r} is {'lost' if key in wanted else 'invented'}"
        elif not same(wanted[key], found[key]):
            kind = "types of arguments" if _text(wanted[key]) == _text(found[key]) else "arguments changed"
            yield kind, f"{where}: {key!r} is {_written(wanted[key])[:40]} and comes back as {_written(found[key])[:40]}"


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, types included (1 is not 1.0, and not true)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else _written(value)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 40 else text[:40] + "…")

"""What a template must not do in silence: leave out tools, calls, or a message.

In: covered messages (see `shield`) and what a template made of them. Out: nothing, or a `Refusal`. A message counts as
left out if its text is not in the rendering and the rendering is the same when the text is another. A text so short that it
may stand there by chance, and a call in the history (its name stands in the tool list as well), need that second rendering
too; it is made once for each shape of conversation and remembered.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from sapwood.chat.turns import Refusal, taken_apart
from sapwood.errors import TemplateError
from sapwood.records import Message

Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], str]
"""Renders (messages, tools) with the generation prompt."""


CHANCE = 12
"""Letters below which a text may stand in a rendering by chance."""
MARK = " sapwood 7f3"
"""What makes a short text one that stands nowhere by chance."""


def check_prompt(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str, render: Render, seen: set[Hashable]
) -> Refusal | None:
    """Whether the prompt `text` says all that it was given: tools, calls of earlier turns, every message of others.

    `seen` holds the shapes that have passed a second rendering, and grows.
    """
    if tools and _same(text, render, messages, ()):
        return Refusal(
            "The chat template ignores `tools`: the prompt is the same without them.",
            "Put them into the system message (`--tools-in-system`), choose a template with a tools branch, or remove them.",
        )
    for place, message in enumerate(messages):
        if message.tool_calls:
            refusal = _calls_of(place, messages, tools, text, render, seen)
            if refusal is not None:
                return refusal
        written = message.content.strip()
        if message.role == "assistant" or not written or (len(written) >= CHANCE and _holds(text, written)):
            continue
        shape = _shape(place, messages, tools)
        if written in text and shape in seen:
            continue
        longer = dataclasses.replace(message, content=message.content + MARK)  # a text that stands nowhere by chance
        if _same(text, render, [*messages[:place], longer, *messages[place + 1 :]], tools):
            return _dropped(place, messages)
        seen.add(shape)
    return None


def _dropped(place: int, messages: Sequence[Message]) -> Refusal:
    role = messages[place].role
    if role == "system" and sum(message.role == "system" for message in messages) > 1:
        step = "Join the system messages into one, or choose another template with `--template FILE`."
    else:
        step = "Write its text into the first user message, or choose a template that knows this role, with `--template FILE`."
    return Refusal(f"The chat template drops message {place + 1} ({role}): the prompt is the same without its text.", step)


def _calls_of(
    place: int, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str, render: Render, seen: set[Hashable]
) -> Refusal | None:
    """Whether the last call of an earlier turn is in the prompt: it differs without it."""
    message = messages[place]
    shape = (*_shape(place, messages, tools), len(message.tool_calls), bool(message.content.strip()), bool(message.reasoning))
    if shape in seen and all(call.name in text for call in message.tool_calls):
        return None
    without = dataclasses.replace(message, tool_calls=message.tool_calls[:-1])
    if _same(text, render, [*messages[:place], without, *messages[place + 1 :]], tools):
        return _no_calls(message.tool_calls[-1].name, f"in message {place + 1} is not in the prompt", len(message.tool_calls))
    seen.add(shape)
    return None


def _shape(place: int, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Hashable, ...]:
    """Where a message stands: its role, its neighbours', how far it is from both ends, and whether there are tools."""
    before, after = messages[place - 1].role if place else "", messages[place + 1].role if place + 1 < len(messages) else ""
    return (messages[place].role, before, after, min(place, 3), min(len(messages) - place, 4), bool(tools))


def _no_calls(name: str, where: str, number: int) -> Refusal:
    if number > 1:
        return Refusal(
            f"The chat template does not write all {number} calls of a turn: that of {name!r} {where}.",
            "Give each call a turn of its own, followed by its result, or choose a template that writes several, with `--template FILE`.",
        )
    return Refusal(
        f"The chat template ignores `tool_calls`: the call of {name!r} {where}.",
        "Write calls as text (`--tools-in-system`), or choose a template with a tool_calls branch, with `--template FILE`.",
    )


def check_turn(message: Message, text: str) -> Refusal | None:
    """Whether the completion `text` holds the turn's answer, reasoning and calls."""
    thought = taken_apart(message)
    lost = _lost_call(message, text)
    if lost is not None:
        return _no_calls(lost, "is not in the rendered turn before its stop token", len(message.tool_calls))
    if thought.answer.strip() not in text:
        beside = " beside its tool calls" if message.tool_calls else ""
        return Refusal(
            f"The chat template drops or rewrites this turn's content{beside}: {thought.answer.strip()[:40]!r} is not in the rendered turn "
            "before its stop token.",
            "Remove the content from the turn, or choose another template with `--template FILE`.",
        )
    if thought.reasoning is not None and thought.reasoning not in text:
        return Refusal("The chat template drops this turn's reasoning.", "Remove it, or choose another template with `--template FILE`.")
    return None


def _lost_call(message: Message, text: str) -> str | None:
    """The name of a call that the text does not hold, or not with all texts among its arguments."""
    needed = Counter(call.name for call in message.tool_calls)
    for call in message.tool_calls:
        if text.count(call.name) < needed[call.name] or not all(_holds(text, value) for value in call.arguments.values()):
            return call.name
    return None


def _holds(text: str, value: Any) -> bool:
    """Whether a text among arguments stands there, as it is or escaped as JSON or Python do; numbers are not looked for."""
    if isinstance(value, Mapping):
        return all(_holds(text, entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return all(_holds(text, entry) for entry in value)
    if not isinstance(value, str) or value in text or any(json.dumps(value, ensure_ascii=kind)[1:-1] in text for kind in (True, False)):
        return True
    python = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return python in text or value.replace("\\", "") in text.replace("\\", "")


def _same(text: str, render: Render, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
    try:
        return render(messages, tools) == text
    except TemplateError:
        return False  # the template needs what was taken away

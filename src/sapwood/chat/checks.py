"""What a template must not do in silence: leave out tools, calls, or a message.

In: covered messages (see `shield`) and what a template made of them. Out: nothing, or a `Refusal`. A message counts as
left out if its text is not in the rendering and the rendering without it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sapwood.chat.turns import Refusal, taken_apart
from sapwood.errors import TemplateError
from sapwood.records import Message

Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], str]
"""Renders (messages, tools) with the generation prompt."""


def check_prompt(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str, render: Render) -> Refusal | None:
    """Whether the prompt `text` says all that it was given: tools, calls of earlier turns, every message of others."""
    if tools and _same(text, render, messages, ()):
        return Refusal(
            "The chat template ignores `tools`: the prompt is the same without them.",
            "Put them into the system message (`--tools-in-system`), choose a template with a tools branch, or remove them.",
        )
    for place, message in enumerate(messages):
        lost = [call.name for call in message.tool_calls if call.name not in text]
        if lost:
            return Refusal(
                f"The chat template ignores `tool_calls`: the call of {lost[0]!r} in message {place + 1} is not in the prompt.",
                "Write calls into the content, or choose a template with a tool_calls branch, with `--template FILE`.",
            )
        written = message.content.strip()
        if message.role == "assistant" or not written or written in text:
            continue
        if _same(text, render, [*messages[:place], *messages[place + 1 :]], tools):
            return Refusal(
                f"The chat template drops message {place + 1} ({message.role}): the prompt is the same without it.",
                "Join the system messages into one, or choose another template with `--template FILE`."
                if message.role == "system" and sum(other.role == "system" for other in messages) > 1
                else "Write its text into the first user message, or choose a template that knows this role, with `--template FILE`.",
            )
    return None


def check_turn(message: Message, text: str) -> Refusal | None:
    """Whether the completion `text` holds the turn's answer, reasoning and calls."""
    thought = taken_apart(message)
    lost = [call.name for call in message.tool_calls if call.name not in text]
    if lost:
        return Refusal(
            f"The chat template ignores `tool_calls`: the call of {lost[0]!r} is not in the rendered turn.",
            "Write calls into the content, or choose a template with a tool_calls branch, with `--template FILE`.",
        )
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


def _same(text: str, render: Render, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
    try:
        return render(messages, tools) == text
    except TemplateError:
        return False  # the template needs what was taken away

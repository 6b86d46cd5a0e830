"""A conversation that outgrows the context: what is sent then. One policy for chat and serving.

In: messages, and how much room their answer needs. Out: a prompt that fits, and how many messages were left out for it. Refused by
default: a model that was not told what was said before answers as if it had not been said. `drop oldest` leaves out the oldest exchanges,
whole ones, and never the system message or the last question; whoever asks for it must say how many were left out. `summarise` puts a
summary in their place, in front of the first question that is left. It is written by the model that answers, so it may be wrong: this room
has no model, says what to summarise, and takes the summary when it comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from sapwood.chat.chat import Chat
from sapwood.errors import DataError
from sapwood.records import Completion, Ended, Message, Prompt

Overflow = Literal["refuse", "drop oldest", "summarise"]

SUMMARY = 192
"""Tokens of a summary at most."""
ASKED = "Summarise this conversation in a few sentences: wishes, names, numbers, decisions. Add nothing."
NOTHING = "no summary was written"
"""Stands where the model had nothing to say, or only thought."""
_JOINTS = 16
"""Tokens that a summary may come to have more when it stands in a prompt."""


class OverflowingError(DataError):
    """A conversation outgrows the context, and nothing may be left out, or nothing is left to be."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits the context, and the number of messages that were left out for it."""

    prompt: Prompt
    dropped: int
    to_summarise: Prompt | None = None
    """What is left out is still to be summarised: the prompt for that. Ask again with what it gives; `prompt` has no summary yet."""


def fitted_prompt(
    chat: Chat,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    template_arguments: Mapping[str, Any] | None = None,
    *,
    overflow: Overflow = "refuse",
    room: int = 1,
    where: str = "the conversation",
    summary: str | None = None,
) -> Fitted:
    """`chat.prompt` of the messages, or of those that fit beside `room` tokens of answer.

    With `summarise`, a conversation that does not fit is asked for twice: without a `summary`, and with it.

    Raises `OverflowingError` where the prompt does not fit and nothing may be left out, or nothing is left to be left out.
    """
    prompt = chat.prompt(messages, tools, template_arguments, where=where)
    limit = chat.context_length
    if limit is None or len(prompt.ids) + room <= limit:
        return Fitted(prompt, 0)
    starts = _starts(messages) if overflow != "refuse" else []
    head = _head(messages)
    more = summary_tokens(chat) + _JOINTS if overflow == "summarise" else 0

    def without(start: int, told: str = "") -> Prompt:
        rest = [_told(messages[start], told), *messages[start + 1 :]] if overflow == "summarise" else messages[start:]
        return chat.prompt([*messages[:head], *rest], tools, template_arguments, where=where)

    # the shortest cut that fits: prompts only become shorter, so it is searched for by halves
    low, high, found = 0, len(starts), None
    while low < high:
        middle = (low + high) // 2
        tried = without(starts[middle])
        if len(tried.ids) + room + more <= limit:
            high, found = middle, Fitted(tried, starts[middle] - head)
        else:
            low = middle + 1
    if found is not None and overflow == "summarise":
        start = head + found.dropped
        if summary is None:
            return replace(found, to_summarise=_request(chat, messages[head:start], template_arguments))
        found = Fitted(without(start, summary), found.dropped)
    if found is not None and len(found.prompt.ids) + room <= limit:
        return found
    told = "nothing may be left out of it (`refuse`)" if overflow == "refuse" else "its last question alone does not fit"
    raise OverflowingError(
        f"{where}: the prompt has {len(prompt.ids):,} tokens, and with {room:,} of answer it outgrows the model's context of {limit:,}; "
        f"{told}. Begin anew, shorten it, choose a model with a longer context, or let the oldest turns go (`drop oldest`, `summarise`)."
    )


def summary_of(completion: Completion) -> str:
    """The summary that a model wrote, without its thoughts; where it wrote nothing, words that say so. Raises `OverflowingError` where it
    failed."""
    if completion.ended is Ended.ERROR:
        raise OverflowingError(
            f"The conversation outgrows the model's context, and its summary failed: {completion.error}. Begin anew, or let the oldest "
            "turns go (`drop oldest`)."
        )
    said = completion.message.content if completion.message is not None else completion.text
    return said if said.strip() else NOTHING


def summary_tokens(chat: Chat) -> int:
    """Most tokens of a summary: less where the context is short."""
    return SUMMARY if chat.context_length is None else max(1, min(SUMMARY, chat.context_length // 8))


def _request(chat: Chat, messages: Sequence[Message], template_arguments: Mapping[str, Any] | None) -> Prompt:
    """Asks for a summary of these messages; of the newest of them, where all are too long for that."""
    limit = chat.context_length
    assert limit is not None, "without a limit nothing outgrows it"
    lines = [f"{message.role}: {text}" for message in messages if (text := _text(message))]

    def asking(first: int) -> Prompt:
        before = ["(the beginning is not shown)"] if first else []
        text = "\n".join([ASKED, "", *before, *lines[first:]])
        return chat.prompt([Message("user", text)], (), template_arguments, where="the summary")

    low, high = 0, len(lines)
    while low < high:
        middle = (low + high) // 2
        if len(asking(middle).ids) + summary_tokens(chat) <= limit:
            high = middle
        else:
            low = middle + 1
    if low == len(lines):
        raise OverflowingError(
            f"The model's context of {limit:,} is too short to ask it for a summary. Let the oldest turns go (`drop oldest`)."
        )
    return asking(low)


def _text(message: Message) -> str:
    """What a message says, and what it calls."""
    calls = [f"calls {call.name}({orjson.dumps(call.arguments).decode()})" for call in message.tool_calls]
    return " ".join([*([message.content.strip()] if message.content.strip() else []), *calls])


def _told(question: Message, summary: str) -> Message:
    """A question with the summary in front of it: every template takes that, and it has the weight of a user's words, not of a rule's."""
    frame = f"(What was said before, in short: {summary.strip()})\n\n"
    media = tuple(replace(medium, at=medium.at + len(frame)) for medium in question.media)
    return replace(question, content=frame + question.content, media=media)


def _head(messages: Sequence[Message]) -> int:
    """Messages at the beginning that set the rules."""
    return next((place for place, message in enumerate(messages) if message.role not in ("system", "developer")), len(messages))


def _starts(messages: Sequence[Message]) -> list[int]:
    """Where what is kept may begin: at each question but the first, the last one included."""
    questions = [place for place, message in enumerate(messages) if message.role == "user" and place >= _head(messages)]
    return questions[1:] if questions and questions[0] == _head(messages) else questions

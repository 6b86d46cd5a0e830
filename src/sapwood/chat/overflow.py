"""A conversation that outgrows the context: what is sent then. One policy for chat, evaluation and serving.

In: messages, and how much room their answer needs. Out: a prompt that fits, and how many messages were left out for it. Refused by
default: a model that was not told what was said before answers as if it had not been said. `drop oldest` leaves out the oldest exchanges,
whole ones, and never the system message or the last question; whoever asks for it must say how many were left out.
Left out on purpose: summaries, which are a model's work and may be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sapwood.chat.chat import Chat
from sapwood.errors import DataError
from sapwood.records import Message, Prompt

Overflow = Literal["refuse", "drop oldest"]


class OverflowingError(DataError):
    """A conversation outgrows the context, and nothing may be left out, or nothing is left to be."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits the context, and the number of messages that were left out for it."""

    prompt: Prompt
    dropped: int


def fitted_prompt(
    chat: Chat,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    template_arguments: Mapping[str, Any] | None = None,
    *,
    overflow: Overflow = "refuse",
    room: int = 1,
    where: str = "the conversation",
) -> Fitted:
    """`chat.prompt` of the messages, or of those that fit beside `room` tokens of answer.

    Raises `OverflowingError` where the prompt does not fit and nothing may be left out, or nothing is left to be left out.
    """
    prompt = chat.prompt(messages, tools, template_arguments, where=where)
    limit = chat.context_length
    if limit is None or len(prompt.ids) + room <= limit:
        return Fitted(prompt, 0)
    starts = _starts(messages) if overflow == "drop oldest" else []
    head = _head(messages)
    # the shortest cut that fits: prompts only become shorter, so it is searched for by halves
    low, high, found = 0, len(starts), None
    while low < high:
        middle = (low + high) // 2
        tried = chat.prompt([*messages[:head], *messages[starts[middle] :]], tools, template_arguments, where=where)
        if len(tried.ids) + room <= limit:
            high, found = middle, Fitted(tried, starts[middle] - head)
        else:
            low = middle + 1
    if found is not None:
        return found
    told = "its last question alone does not fit" if overflow == "drop oldest" else "nothing may be left out of it (`refuse`)"
    raise OverflowingError(
        f"{where}: the prompt has {len(prompt.ids):,} tokens, and with {room:,} of answer it outgrows the model's context of {limit:,}; "
        f"{told}. "
        "Begin anew, shorten it, choose a model with a longer context, or let the oldest turns go (`drop oldest`)."
    )


def _head(messages: Sequence[Message]) -> int:
    """Messages at the beginning that set the rules."""
    return next((place for place, message in enumerate(messages) if message.role not in ("system", "developer")), len(messages))


def _starts(messages: Sequence[Message]) -> list[int]:
    """Where what is kept may begin: at each question but the first, the last one included."""
    questions = [place for place, message in enumerate(messages) if message.role == "user" and place >= _head(messages)]
    return questions[1:] if questions and questions[0] == _head(messages) else questions

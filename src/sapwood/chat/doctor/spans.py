"""Which letters of a rendered turn a person wrote, and as what: system, user, tool result, answer, reasoning, call.

In: a `Chat`, a conversation, and one of its trained turns. Out: for each token of prompt and completion, its kind; all
that nobody wrote is the template's own. It is found by rendering once more with invisible marks around every text, and
believed only where the rendering without its marks is the same as before, letter for letter. Left out on purpose:
guessing. Where that fails, all tokens of the row count as not told apart.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.chat.chat import Chat
from sapwood.chat.tokens import StreamDecoder
from sapwood.chat.trained import Turn
from sapwood.chat.turns import taken_apart
from sapwood.errors import SapwoodError
from sapwood.records import Conversation, Media, Message, Row, ToolCall

KINDS = ("template", "system", "tools", "user", "tool", "reasoning", "content", "calls", "marks", "end", "unknown")
"""What a token can be: the template's own; a text of system, tool list, user or tool result; an answer's parts, the marks around them
(thought and call tags, which the model must write) and its end; or unclear."""
KIND_WORDS = {
    "template": "the template's own",
    "system": "system",
    "tools": "tool list",
    "user": "user",
    "tool": "tool results",
    "reasoning": "reasoning",
    "content": "answers",
    "calls": "tool calls",
    "marks": "tags to write",
    "end": "ends of turns",
    "unknown": "not told apart",
}
Kinds = NDArray[np.int8]

_FIRST = 0x100000
_MARK = re.compile("[\U00100000-\U0010fffd]")
_CALL_HEAD = re.compile(r'[{\[][\w"\s:,{\[]*"\Z')
_CALL_TAIL = re.compile(r"[^\n<]*?[}\])]+")
_BY_ROLE = {"system": "system", "developer": "system", "user": "user", "tool": "tool", "assistant": "content"}


@dataclass(frozen=True, slots=True)
class Span:
    """Letters `start` to `end` of a text are of `kind` and belong to message `message` (-1: to none)."""

    start: int
    end: int
    kind: str
    message: int


class _Marks:
    """Hands out pairs of marks and remembers what each pair stands around."""

    def __init__(self) -> None:
        self.meaning: list[tuple[str, int]] = []

    def around(self, text: str, kind: str, message: int) -> str:
        """The text with marks inside its outer white space, which templates may strip."""
        core = text.strip()
        if not core:
            return text
        number = _FIRST + 2 * len(self.meaning)
        self.meaning.append((kind, message))
        lead = text[: text.index(core)]
        return f"{lead}{chr(number)}{core}{chr(number + 1)}{text[len(lead) + len(core) :]}"

    def removed(self, marked: str) -> tuple[str, list[Span]]:
        """The text without marks, and the spans in its order. A text that a template writes twice counts where it stands first."""
        pieces, begun, spans, ended = [], dict[int, int](), list[Span](), set[int]()
        place = length = 0
        for match in _MARK.finditer(marked):
            pieces.append(marked[place : match.start()])
            length += match.start() - place
            place = match.end()
            number, is_end = divmod(ord(match[0]) - _FIRST, 2)
            if is_end and number in begun:
                spans.append(Span(begun.pop(number), length, *self.meaning[number]))
                ended.add(number)
            elif number not in ended:
                begun[number] = length
        pieces.append(marked[place:])
        return "".join(pieces), spans


def _marked(message: Message, index: int, marks: _Marks, calls: bool) -> Message:
    kind = _BY_ROLE.get(message.role, "user")
    if message.role != "assistant":
        content = marks.around(message.content, kind, index)
        return dataclasses.replace(message, content=content, media=_moved(message))
    content = message.content
    thought = taken_apart(message)
    if thought.reasoning and not message.reasoning and content.endswith(thought.answer):
        head = content[: len(content) - len(thought.answer)]
        head = head.replace(thought.reasoning, marks.around(thought.reasoning, "reasoning", index), 1)
        content = head + marks.around(thought.answer, kind, index)
    else:
        content = marks.around(content, kind, index)
    return dataclasses.replace(
        message,
        content=content,
        media=_moved(message),
        reasoning=marks.around(message.reasoning, "reasoning", index) if message.reasoning else message.reasoning,
        tool_calls=tuple(_marked_call(call, index, marks) for call in message.tool_calls) if calls else message.tool_calls,
    )


def _moved(message: Message) -> tuple[Media, ...]:
    """The message's media at their places between the marks: behind the first one, or behind both."""
    core = message.content.strip()
    if not core or not message.media:
        return message.media
    begin = message.content.index(core)
    end = begin + len(core)
    return tuple(dataclasses.replace(part, at=part.at + (part.at > begin) + (part.at >= end)) for part in message.media)


def _marked_call(call: ToolCall, index: int, marks: _Marks) -> ToolCall:
    def around(value: Any) -> Any:
        if isinstance(value, str):
            return marks.around(value, "calls", index)
        if isinstance(value, Mapping):
            return {marks.around(str(key), "calls", index): around(entry) for key, entry in value.items()}
        return [around(entry) for entry in value] if isinstance(value, list | tuple) else value

    return dataclasses.replace(call, name=marks.around(call.name, "calls", index), arguments=around(call.arguments))


def spans_of(chat: Chat, conversation: Conversation, turn: Turn) -> list[Span] | None:
    """Spans of `turn.prompt.text + turn.text`, or None where they cannot be told apart.

    One that lies inside another (a system text in a tool list) stands behind it.
    """
    text = turn.prompt.text + turn.text
    if _MARK.search(text):
        return None
    body = text.removesuffix(chat.tokens.token_of(turn.ids[-1]) or "")  # some templates leave a turn's end to the next header
    messages = conversation.messages[: turn.index + 1]
    arguments = turn.prompt.template_arguments
    for calls in (True, False):
        found = _rendered(chat, messages, conversation.tools, arguments, body, calls, generation_prompt=False)
        if found is None:
            before = _rendered(chat, messages[:-1], conversation.tools, arguments, turn.prompt.text, calls, generation_prompt=True)
            found = None if before is None else before + _searched(messages[-1], turn)
        if found is not None:
            listed = _tool_list(chat, conversation, turn) if conversation.tools else None
            return [*([listed] if listed else []), *_calls_joined(text, found)]
    return None


def _rendered(
    chat: Chat,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    text: str,
    calls: bool,
    *,
    generation_prompt: bool,
) -> list[Span] | None:
    """Spans of `text` from a rendering with marks; None if that rendering, its marks removed, does not begin with `text`."""
    marks = _Marks()
    marked = tuple(_marked(message, index, marks, calls) for index, message in enumerate(messages))
    try:
        rendered = chat.render(Conversation(marked, tuple(tools), arguments), generation_prompt=generation_prompt)
    except SapwoodError:
        return None
    plain, spans = marks.removed(rendered)
    return [span for span in spans if span.end <= len(text)] if plain.startswith(text) else None


def _searched(message: Message, turn: Turn) -> list[Span]:
    """Reasoning, then content, looked for in the short text of the turn itself."""
    spans, place, offset = [], 0, len(turn.prompt.text)
    thought = taken_apart(message)
    for kind, text in (("reasoning", thought.reasoning or ""), ("content", thought.answer.strip())):
        found = turn.text.find(text, place) if text else -1
        if found >= 0:
            spans.append(Span(offset + found, offset + found + len(text), kind, turn.index))
            place = found + len(text)
    return spans


def _tool_list(chat: Chat, conversation: Conversation, turn: Turn) -> Span | None:
    """What the tools add to the prompt: the stretch by which it differs from the prompt without them."""
    before = conversation.messages[: turn.index]
    try:
        bare = chat.render(Conversation(before, (), turn.prompt.template_arguments), generation_prompt=True)
    except SapwoodError:
        return None
    text = turn.prompt.text
    start = _common(text, bare)
    most = min(len(text), len(bare)) - start
    end = len(text) - _common(text[::-1][:most], bare[::-1][:most])
    return Span(start, end, "tools", -1) if end > start else None


def _common(left: str, right: str) -> int:
    """Length of the common beginning, by halving: texts may be long."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low


def _calls_joined(text: str, spans: list[Span]) -> list[Span]:
    """The marks inside the calls of one message joined to one span, with the brackets around them."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        last = joined[-1] if joined else None
        if last and span.kind == last.kind == "calls" and span.message == last.message:
            joined[-1] = dataclasses.replace(last, end=max(last.end, span.end))
        else:
            joined.append(span)
    return [_with_brackets(text, span) if span.kind == "calls" else span for span in joined]


def _with_brackets(text: str, span: Span) -> Span:
    head = _CALL_HEAD.search(text, max(0, span.start - 60), span.start)
    tail = _CALL_TAIL.match(text, span.end)
    return dataclasses.replace(span, start=head.start() if head else span.start, end=tail.end() if tail else span.end)


def token_kinds(chat: Chat, turn: Turn, spans: Sequence[Span] | None) -> Kinds:
    """(T,) the kind of each token of prompt and completion, as a place in `KINDS`. A token is what its last letter is.

    What a template puts around a trained turn's parts, and the stop token at its end, are of kinds of their own: the model must
    learn to write them.
    """
    text = turn.prompt.text + turn.text
    ends_T = token_ends(chat, turn) if spans is not None else None
    if spans is None or ends_T is None:
        return np.full(len(turn.prompt.ids) + len(turn.ids), KINDS.index("unknown"), dtype=np.int8)
    letters = np.zeros(len(text) + 1, dtype=np.int8)
    for span in spans:
        letters[span.start : span.end] = KINDS.index(span.kind)
    return _written(letters[np.maximum(ends_T - 1, 0)], len(turn.prompt.ids))


def kinds_of_rows(chat: Chat, conversation: Conversation, turns: Sequence[Turn]) -> list[Kinds]:
    """The kinds of all rows of a conversation. Where each row goes on from the one before, the last is looked at alone."""
    rows = [(*turn.prompt.ids, *turn.ids) for turn in turns]
    if any(after[: len(row)] != row for row, after in itertools.pairwise(rows)):
        return [token_kinds(chat, turn, spans_of(chat, conversation, turn)) for turn in turns]
    whole_T = token_kinds(chat, turns[-1], spans_of(chat, conversation, turns[-1]))
    if whole_T[0] == KINDS.index("unknown"):
        return [whole_T[: len(row)] for row in rows]
    return [_written(whole_T[: len(row)].copy(), len(turn.prompt.ids)) for turn, row in zip(turns, rows, strict=True)]


def _written(kinds_T: Kinds, begin: int) -> Kinds:
    """Name what the model must write of the template's own, from `begin` on: the tags around its parts, and the end."""
    written_T = kinds_T[begin:]
    written_T[written_T == KINDS.index("template")] = KINDS.index("marks")
    kinds_T[-1] = KINDS.index("end")
    return kinds_T


def token_ends(chat: Chat, turn: Turn) -> NDArray[np.int64] | None:
    """Where each token ends in the text of prompt and completion; None where ids and text cannot be laid side by side."""
    prompt, ids = list(turn.prompt.ids), list(turn.ids)
    if not chat.tokens.dummy_space:
        before_ids, before = chat.tokens.ends(turn.prompt.text)
        after_ids, after = chat.tokens.ends(turn.text)
        if before_ids == prompt and after_ids == ids:
            return np.array([*before, *(len(turn.prompt.text) + end for end in after)], dtype=np.int64)
    else:
        whole_ids, whole = chat.tokens.ends(turn.prompt.text + turn.text)
        if whole_ids == prompt + ids:
            return np.array(whole, dtype=np.int64)
    return _decoded_ends(chat, turn)


def _decoded_ends(chat: Chat, turn: Turn) -> NDArray[np.int64] | None:
    """The same one token after the other, for rows with control tokens as text, which would be read otherwise at once."""
    ends: list[int] = []
    text, waiting = "", 0
    for ids in (turn.prompt.ids, turn.ids):
        decoder = StreamDecoder(chat.tokens)
        for place, token in enumerate(ids):
            shown = decoder.push(token) + (decoder.finish() if place + 1 == len(ids) else "")
            text, waiting = text + shown, waiting + 1
            if shown:  # all tokens of a letter end where it does
                ends += [len(text)] * waiting
                waiting = 0
    ends += [len(text)] * waiting
    return np.array(ends, dtype=np.int64) if text == turn.prompt.text + turn.text else None


def document_kinds(row: Row) -> Kinds:
    """(T,) the same for the one row of a text without turns: what stands before it is the template's, its last token its end."""
    kinds_T = np.full(row.length, KINDS.index("content"), dtype=np.int8)
    kinds_T[: len(row.prompt_T)] = KINDS.index("template")
    kinds_T[-1] = KINDS.index("end")
    return kinds_T

"""What a model wrote → a message: content, reasoning, calls, and how it ended. Whole, or token by token.

In: ids (or text, where a server gives only that) and the prompt they follow. Out: an `Answer`; it never raises on what a model
wrote, and loses no letter: the raw texts of `Answer.parts`, joined, are the text. With ids, a mark that is a control token
counts only as that token: the same letters spelt with ordinary tokens are text. The prompt matters: it may have opened a
thought, or closed one. How a template writes calls is learned once by rendering probes (`learn_form`).
Left out on purpose: ids invented for calls, which are the server's to give; and half of a call while it is being written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sapwood.chat.calls import PROMPTED, STYLES, CallStyle, FrameStyle
from sapwood.chat.probes import ASK, TELL, TOOL
from sapwood.chat.readers import Layout, Part, held, reader_for
from sapwood.chat.shield import Shield
from sapwood.chat.tokens import StreamDecoder, Tokens
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Message, Prompt, ToolCall

if TYPE_CHECKING:
    from sapwood.chat.chat import Chat
    from sapwood.chat.trained import Turn

_THOUGHT = "It is young wood."
_CALL = ToolCall("find_tree", {"kind": 'it\'s a "\\n"', "rings": 12, "deep": {"wood": [1, True, "x"]}}, "a1b2c3d4e")


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer, understood. What could not be is in the content, letter for letter, and `problems` says why."""

    message: Message
    ended_whole: bool
    """Whether it ended in a stop token; of a text, which has none, whether nothing in it was left open."""
    problems: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    """The text cut into content, reasoning, calls and marks, in order."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What has become certain: more content, more reasoning, or (of call `index`) its name and id, or its arguments as JSON."""

    content: str = ""
    reasoning: str = ""
    index: int | None = None
    id: str | None = None
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Form:
    """How a template writes answers. `style` is None where it writes no calls, or in a way that is not known."""

    style: CallStyle | FrameStyle | None
    of_text: Layout
    of_ids: Layout
    note: str
    """A sentence for people where calls are rendered and cannot be read back; else empty."""


class AnswerStream:
    """An answer that arrives token by token. The deltas, joined, are the parsed whole."""

    def __init__(self, chat: Chat, prompt: Prompt, *, of_ids: bool = True) -> None:
        form = chat.form
        layout = form.of_ids if of_ids else form.of_text
        self._reader = reader_for(form.style, layout, offered(prompt, form), prompt.text)
        self._shield = chat.tokens.shield if of_ids else None
        self._tokens, self._stops = CoveredDecoder(chat.tokens), chat.stop_ids
        self._stop: int | None = None
        self._of_ids = of_ids
        self._parts: list[Part] = []
        self._calls = 0

    def push(self, token_id: int) -> list[Delta]:
        """Take one more id; the stop token gives nothing."""
        behind, self._stop = self._stop, None
        text = "" if behind is None else self._tokens.push(behind)  # something follows: that token has ended nothing
        if token_id in self._stops:
            self._stop = token_id
        else:
            text += self._tokens.push(token_id)
        return self.push_text(text)

    def push_text(self, text: str) -> list[Delta]:
        """Take more text, of a server that gives no ids."""
        return self._deltas(self._reader.push(text))

    def finish(self) -> tuple[list[Delta], Answer]:
        """The last deltas, and the whole answer."""
        last = self._deltas([*self._reader.push(self._tokens.finish()), *self._reader.finish()])
        content, reasoning = ("".join(part.raw for part in self._parts if part.kind == kind) for kind in ("content", "reasoning"))
        calls = tuple(call for part in self._parts for call in part.calls)
        problems = tuple(self._reader.problems)
        whole = self._stop is not None if self._of_ids else not problems
        message = Message("assistant", content, reasoning=reasoning or None, tool_calls=calls)
        return last, Answer(message, whole, problems, tuple(self._parts))

    def _deltas(self, parts: Iterable[Part]) -> list[Delta]:
        found: list[Delta] = []
        for covered in parts:
            part = covered if self._shield is None else revealed(covered, self._shield)
            self._parts.append(part)
            if part.kind == "content":
                found.append(Delta(content=part.raw))
            elif part.kind == "reasoning":
                found.append(Delta(reasoning=part.raw))
            for call in part.calls:
                found.append(Delta(index=self._calls, id=call.id, name=call.name))
                found.append(Delta(index=self._calls, arguments=json.dumps(call.arguments, ensure_ascii=False)))
                self._calls += 1
        return found


class CoveredDecoder:
    """Ids, one at a time → text in which control tokens stand as their strings, and the same letters as text are covered.

    See `shield` for what covering is. The pieces, joined and revealed, are the decoded whole.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens, self._stream = tokens, StreamDecoder(tokens)
        self._begun = tokens.shield.begun
        self._longest = max(map(len, self._begun), default=0)
        self._waiting = ""

    def push(self, token_id: int) -> str:
        """The text that has become certain."""
        self._waiting += self._stream.push(token_id)
        control = self._tokens.token_of(token_id) if token_id in self._tokens.special_ids else None
        if control and self._waiting.endswith(control):
            text, self._waiting = self._waiting[: -len(control)], ""
            return str(self._tokens.shield.cover(text)) + control
        sure = len(self._waiting) - held(self._waiting, self._begun, self._longest)
        text, self._waiting = self._waiting[:sure], self._waiting[sure:]
        return str(self._tokens.shield.cover(text))

    def finish(self) -> str:
        """The rest."""
        text, self._waiting = self._waiting + self._stream.finish(), ""
        return str(self._tokens.shield.cover(text))


def parse(chat: Chat, answer: str | Sequence[int], prompt: Prompt) -> Answer:
    """An answer to `prompt`, from its ids (the stop token included, where one was sampled) or from its text."""
    if isinstance(answer, str):
        stream = AnswerStream(chat, prompt, of_ids=False)
        stream.push_text(answer)
    else:
        stream = AnswerStream(chat, prompt)
        for token_id in answer:
            stream.push(int(token_id))
    _, found = stream.finish()
    return replace(found, parts=_joined(found.parts))


def offered(prompt: Prompt, form: Form) -> Sequence[Mapping[str, Any]]:
    """The tools that an answer may call; a prompt that has them in its system message always offers some."""
    return (TOOL,) if form.style is PROMPTED else prompt.tools


def revealed(part: Part, shield: Shield) -> Part:
    """A part with its covered letters as people read them."""
    calls = tuple(
        ToolCall(shield.reveal(call.name), _revealed(call.arguments, shield), None if call.id is None else shield.reveal(call.id))
        for call in part.calls
    )
    return Part(part.kind, shield.reveal(part.raw), calls)


def _revealed(value: Any, shield: Shield) -> Any:
    if isinstance(value, str):
        return shield.reveal(value)
    if isinstance(value, dict):
        return {shield.reveal(key): _revealed(entry, shield) for key, entry in value.items()}
    return [_revealed(entry, shield) for entry in value] if isinstance(value, list) else value


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours of one kind as one part; calls stay apart."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].kind == part.kind != "call":
            found[-1] = Part(part.kind, found[-1].raw + part.raw)
        else:
            found.append(part)
    return tuple(found)


def learn_form(chat: Chat) -> Form:
    """Render probes and see what reads them back. A template that refuses a probe, or leaves its calls out, has no style."""
    called = _probe(chat, Message("assistant", tool_calls=(_CALL,)))
    style: CallStyle | FrameStyle | None = PROMPTED if chat.tools_in_system else None
    note = ""
    if called is not None and style is None:
        style = next((known for known in STYLES if _reads(known, called, chat)), None)
        if style is None:
            note = (
                f"The chat template writes a call as {_text(called, chat)[:60]!r}, a form that Sapwood cannot read back: answers with "
                "calls will be plain text in chat and evaluation. Use `--tools-in-system`, or another template with `--template FILE`."
            )
    plain = _probe(chat, TELL)
    both = _probe(chat, replace(TELL, tool_calls=(_CALL,))) if style is not None and not chat.tools_in_system else None
    layouts = [_layout(style, plain, both, of_ids, chat) for of_ids in (False, True)]
    return Form(style, layouts[0], layouts[1], note)


def _probe(chat: Chat, message: Message) -> Turn | None:
    """The rendered turn, with the tools it calls, else without; with a thought where the prompt opens one. None where all are refused."""
    for tools in ((TOOL,), ()) if message.tool_calls else ((),):
        for reasoning in (None, _THOUGHT):
            conversation = Conversation((ASK, replace(message, reasoning=reasoning)), tools=tools)
            try:
                return chat.turns(conversation, context=10**9)[0]
            except (TemplateError, DataError):
                continue
    return None


def _text(turn: Turn, chat: Chat, of_ids: bool = False) -> str:
    """The turn without its stop token, as text or as (covered) ids give it."""
    if of_ids:
        decoder = CoveredDecoder(chat.tokens)
        return "".join(map(decoder.push, turn.ids[:-1])) + decoder.finish()
    return turn.text.removesuffix(chat.tokens.token_of(turn.ids[-1]) or "")


def _parts(style: CallStyle | FrameStyle | None, layout: Layout, turn: Turn, chat: Chat, of_ids: bool = False) -> list[Part]:
    reader = reader_for(style, layout, (TOOL,), turn.prompt.text)
    return [*reader.push(_text(turn, chat, of_ids)), *reader.finish()]


def _reads(style: CallStyle | FrameStyle, turn: Turn, chat: Chat) -> bool:
    calls = [call for part in _parts(style, Layout(), turn, chat) for call in part.calls]
    return [(call.name, call.arguments) for call in calls] == [(_CALL.name, _CALL.arguments)]


def _layout(style: CallStyle | FrameStyle | None, plain: Turn | None, both: Turn | None, of_ids: bool, chat: Chat) -> Layout:
    layout = Layout()
    if plain is not None:
        said = _content(_parts(style, layout, plain, chat, of_ids))
        lead, found, tail = said.partition(TELL.content)
        layout = Layout(lead, tail) if found else layout
    if both is not None:
        lead, found, divider = _content(_parts(style, layout, both, chat, of_ids)).partition(TELL.content)
        layout = replace(layout, before_call=divider if found and not lead else "")
    return layout


def _content(parts: Sequence[Part]) -> str:
    return "".join(part.raw for part in parts if part.kind == "content")

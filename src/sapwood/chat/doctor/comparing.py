"""What one or two templates make of a conversation, cut into what people wrote and what the template adds.

In: chats and a conversation. Out: `Rendering`s, and rows that stand side by side: a text of the conversation beside the same
text, and between them what each template writes of its own. Nothing is drawn here.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
import numpy as np

from sapwood.chat.chat import Chat
from sapwood.chat.doctor.diagnosis import PROBE
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.spans import KIND_WORDS, spans_of, token_ends
from sapwood.chat.probes import ASK, TELL
from sapwood.chat.templating import RESERVED
from sapwood.errors import SapwoodError
from sapwood.records import Conversation, Message

_BUILT_IN = {*RESERVED, "raise_exception", "strftime_now", "namespace", "bos_token", "eos_token", "unk_token", "pad_token", "range", "dict"}
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendering: of one message and kind, or (`message` -1, kind `template` or `tools`) of the template's own."""

    kind: str
    message: int
    text: str
    tokens: int
    trained: bool
    """Whether it stands in the last turn, which the model must write."""


@dataclass(frozen=True)
class Rendering:
    """What a chat makes of a conversation. `problem` says what it refused; what is shown then is what it does serve."""

    name: str
    text: str
    segments: tuple[Segment, ...]
    tokens: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two stretches side by side; None where one side has nothing there."""

    label: str
    left: Segment | None
    right: Segment | None

    @property
    def same(self) -> bool:
        """Whether both sides write the same letters."""
        return (self.left.text if self.left else "") == (self.right.text if self.right else "")


def simpler(conversation: Conversation) -> Iterator[tuple[str, Conversation, list[int]]]:
    """The conversation, then what is left of it without tools, and without the system message.

    With each, what was taken out, and the places that its messages have in the whole conversation.
    """
    messages = conversation.messages
    yield "", conversation, list(range(len(messages)))
    spoken = [place for place, m in enumerate(messages) if m.role != "tool" and (m.content or m.reasoning)]
    bare = {place: dataclasses.replace(messages[place], tool_calls=()) for place in spoken}
    if conversation.tools or tuple(bare.values()) != messages:
        yield "tools, calls and their results", _of(conversation, bare), list(bare)
    unled = {place: m for place, m in bare.items() if m.role not in ("system", "developer")}
    if unled != bare:
        yield "tools and the system message", _of(conversation, unled), list(unled)
    thinking = {
        place: dataclasses.replace(m, reasoning="It is the young wood.") if m.role == "assistant" and not m.reasoning else m
        for place, m in unled.items()
    }
    yield "all but a question and an answer with reasoning", _of(conversation, thinking), list(thinking)


def _of(conversation: Conversation, messages: Mapping[int, Message]) -> Conversation:
    return dataclasses.replace(conversation, messages=tuple(messages.values()), tools=())


def rendering(name: str, chat: Chat, conversation: Conversation) -> Rendering:
    """What the chat makes of a conversation: prompt and answer of the last trained turn, exactly as trained.

    Where it refuses, the reason is kept and simpler forms are tried in turn (see `simpler`). Never raises `SapwoodError`.
    """
    problem = ""
    for without, part, places in simpler(conversation):
        try:
            turn = chat.turns(part, last_turn_only=True)[0]
        except SapwoodError as error:
            problem = problem or str(error)
            continue
        text = turn.prompt.text + turn.text
        segments = tuple(
            dataclasses.replace(segment, message=places[segment.message]) if segment.message >= 0 else segment
            for segment in _segments(chat, part, turn)
        )
        left_out = f"Shown without {without}: {problem}" if problem else ""
        return Rendering(name, text, segments, len(turn.prompt.ids) + len(turn.ids), left_out)
    try:
        text = chat.render(Conversation((ASK, TELL)))
    except SapwoodError:
        text = ""
    tokens = len(chat.tokens.encode(text))
    return Rendering(name, text, (Segment("unknown", -1, text, tokens, False),) if text else (), tokens, problem)


def _segments(chat: Chat, conversation: Conversation, turn: Any) -> tuple[Segment, ...]:
    text = turn.prompt.text + turn.text
    spans = spans_of(chat, conversation, turn)
    if spans is None:
        return (Segment("unknown", -1, text, len(turn.prompt.ids) + len(turn.ids), False),)
    letters = np.full(len(text), -1, dtype=np.int64)
    for number, span in enumerate(spans):
        letters[span.start : span.end] = number
    answer = len(turn.prompt.text)
    borders = np.flatnonzero(np.diff(letters)) + 1
    cuts = sorted({0, answer, len(text), *borders.tolist()})
    ends = token_ends(chat, turn)
    found = []
    for start, end in itertools.pairwise(cuts):
        number = int(letters[start])
        kind, message = (spans[number].kind, spans[number].message) if number >= 0 else ("template", -1)
        count = int(((ends > start) & (ends <= end)).sum()) if ends is not None else 0
        found.append(Segment(kind, message, text[start:end], count, start >= answer))
    return tuple(found)


def side_by_side(left: Rendering, right: Rendering, messages: Sequence[Message]) -> list[Pair]:
    """Texts of the same message beside each other, and between them what each template adds."""
    keys, others = ([(s.message, s.kind) for s in side.segments if s.message >= 0] for side in (left, right))
    matches = difflib.SequenceMatcher(None, keys, others, autojunk=False).get_matching_blocks()
    pairs: list[Pair] = []
    rest, rest_of_other = list(left.segments), list(right.segments)
    for key in (keys[place] for block in matches for place in range(block.a, block.a + block.size)):
        pairs += _gap(_until(rest, key), _until(rest_of_other, key), messages)
        pairs.append(Pair(label_of(rest[0], messages), rest.pop(0), rest_of_other.pop(0)))
    return [*pairs, *_gap(rest, rest_of_other, messages)]


def _until(side: list[Segment], key: tuple[int, str]) -> list[Segment]:
    place = next(i for i, segment in enumerate(side) if (segment.message, segment.kind) == key)
    taken, side[:] = side[:place], side[place:]
    return taken


def _gap(left: Sequence[Segment], right: Sequence[Segment], messages: Sequence[Message]) -> Iterator[Pair]:
    """What stands between two texts: stretch beside stretch, from the end, where headers stand."""
    most = max(len(left), len(right))
    for place in range(most):
        one, other = (side[place - most + len(side)] if place >= most - len(side) else None for side in (left, right))
        label = label_of(one or other, messages)
        yield Pair(label, one, other)


def label_of(segment: Segment | None, messages: Sequence[Message]) -> str:
    """`2 user`: number and kind of what a stretch is."""
    if segment is None or segment.message < 0:
        return KIND_WORDS[segment.kind] if segment is not None and segment.kind != "template" else ""
    role = messages[segment.message].role if segment.message < len(messages) else ""
    return f"{segment.message + 1} {role if segment.kind in ('system', 'user', 'content', 'tool') else KIND_WORDS[segment.kind]}"


def pieces_of(text: str, other: str) -> list[tuple[str, bool]]:
    """A text cut into pieces that the other text has too (False), and that it has not (True)."""
    words, others = _WORDS.findall(text), _WORDS.findall(other)
    found: list[tuple[str, bool]] = []
    for tag, start, end, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if start < end:
            found.append(("".join(words[start:end]), tag != "equal"))
    return found


_WORDS = re.compile(r"\s+|\w+|<[^<>\s]{1,40}>|[^\w\s]")


def findings_side_by_side(left: Sequence[Finding], right: Sequence[Finding]) -> list[tuple[str, list[Finding], list[Finding]]]:
    """(kind, left, right) for every kind of finding; equal sentences on both sides are equal findings."""
    kinds = dict.fromkeys([*(finding.kind for finding in left), *(finding.kind for finding in right)])
    return [(kind, [f for f in left if f.kind == kind], [f for f in right if f.kind == kind]) for kind in kinds]


@dataclass(frozen=True)
class Source:
    """What a template's source says of itself, at a glance."""

    letters: int
    lines: int
    arguments: tuple[str, ...]
    """Names that it reads and that a row may give."""
    refusals: tuple[str, ...]
    """What it says when it refuses a conversation."""


def source_of(chat: Chat) -> Source:
    """A summary of the template's source."""
    text = chat.template
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # only parsed, never rendered
    names = jinja2.meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", text)))
    refusals = re.findall(r"raise_exception\(\s*(['\"])(.*?)\1", text, re.DOTALL)
    return Source(len(text), text.count("\n") + 1, tuple(sorted(names - _BUILT_IN)), tuple(dict.fromkeys(words for _, words in refusals)))


__all__ = [
    "PROBE",
    "Pair",
    "Rendering",
    "Segment",
    "Source",
    "findings_side_by_side",
    "pieces_of",
    "rendering",
    "side_by_side",
    "source_of",
]

"""An answer's text, piece by piece → parts: content, reasoning, calls, and the marks between them.

In: text in pieces of any size. Out: `Part`s whose raw texts, joined, are the text that came in: nothing is lost, whatever the
model wrote. A part is given out only when no further text could change it, so the pieces' borders make no difference, and
reading a whole answer is reading it as one piece. What begins like a call and is none becomes content, with a problem.
Left out on purpose: half a call. A call is given out when it is complete, because half of one could still turn out to be text.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sapwood.chat.calls import CallStyle, FrameStyle
from sapwood.chat.calls.scan import Tools
from sapwood.chat.turns import TAGS, closing
from sapwood.records import ToolCall

THOUGHTS = (
    *((tag, closing(tag)) for tag in TAGS),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Marks around a thought at the beginning of an answer."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the answer. The raw texts of all parts, joined, are the answer."""

    kind: Literal["content", "reasoning", "call", "mark"]
    """`mark` is what a template writes around the others: tags, headers, the line breaks beside them."""
    raw: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What a template writes around an answer, learned from its rendering of probes."""

    lead: str = ""
    """Before the content."""
    tail: str = ""
    """Behind the content, before the stop token."""
    before_call: str = ""
    """Between content and the first call."""


class Reader(ABC):
    """Reads one answer: keeps what is not certain yet, and lets the step that its kind has reached take from the beginning of it."""

    _step: Callable[[list[Part], bool], bool]
    """Appends parts; whether it took a step that another may follow. The flag says that no more text comes."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._buffer = ""

    def push(self, text: str) -> list[Part]:
        """Parts that are certain now."""
        self._buffer += text
        return self._run(final=False)

    def finish(self) -> list[Part]:
        """The rest, when no more text comes."""
        return self._run(final=True)

    def _run(self, final: bool) -> list[Part]:
        parts: list[Part] = []
        while self._step(parts, final):
            pass
        return [part for part in parts if part.raw]

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


class MarkedReader(Reader):
    """Reads answers whose thoughts and calls stand between marks, or whose calls are the whole answer."""

    def __init__(self, style: CallStyle | None, layout: Layout, tools: Tools, prompt: str) -> None:
        """`prompt` is the text before the answer: it may have opened a thought, or closed one."""
        super().__init__()
        self._style, self._layout, self._tools = style, layout, tools
        self._pending = self._scanned = ""
        self._spoken = self._called = False
        self._whole = style is not None and style.whole and bool(tools)
        self._watch = tuple(mark for mark in (layout.tail,) if mark)
        if style is not None and not style.whole:
            self._watch += (*style.opens, *(layout.before_call + mark for mark in style.opens))
        self._close = ""
        self._step = self._start
        end = prompt.rstrip()
        for opened, closed in THOUGHTS:
            if end.endswith(opened):
                self._opened, self._close, self._step = opened, closed, self._thought_start
            elif prompt.endswith(closed):
                self._step = self._after_thought

    def _start(self, parts: list[Part], final: bool) -> bool:
        """A thought, perhaps behind white space, or none."""
        bare = self._buffer.lstrip()
        for opened, closed in THOUGHTS:
            if bare.startswith(opened):
                parts.append(Part("mark", self._take(len(self._buffer) - len(bare) + len(opened))))
                self._opened, self._close, self._step = "", closed, self._thought_start
                return True
        if not final and any(opened.startswith(bare) for opened, _ in THOUGHTS):
            return False
        self._step = self._lead
        return True

    def _thought_start(self, parts: list[Part], final: bool) -> bool:
        """White space, and the opening tag once more where the prompt has written it already."""
        bare = self._buffer.lstrip()
        if not final and (not bare or (self._opened and self._opened.startswith(bare) and bare != self._opened)):
            return False
        again = len(self._opened) if self._opened and bare.startswith(self._opened) else 0
        parts.append(Part("mark", self._take(len(self._buffer) - len(bare) + again)))
        self._opened = ""
        self._step = self._thought if not again else self._thought_start
        return True

    def _thought(self, parts: list[Part], final: bool) -> bool:
        end = self._buffer.find(self._close)
        if end >= 0:
            parts.append(Part("reasoning", self._take(len(self._buffer[:end].rstrip()))))
            parts.append(Part("mark", self._take(self._buffer.find(self._close) + len(self._close))))
            self._step = self._after_thought
            return True
        sure = len(self._buffer) - (0 if final else _held(self._buffer, (self._close,)))
        parts.append(Part("reasoning", self._take(len(self._buffer[:sure].rstrip()))))
        if final:
            parts.append(Part("mark", self._take(len(self._buffer))))
            self.problems.append(f"the thought is not closed: {self._close!r} is missing")
        return False

    def _after_thought(self, parts: list[Part], final: bool) -> bool:
        bare = self._buffer.lstrip("\n")
        parts.append(Part("mark", self._take(len(self._buffer) - len(bare))))
        if not bare and not final:
            return False
        self._step = self._lead
        return True

    def _lead(self, parts: list[Part], final: bool) -> bool:
        lead = self._layout.lead
        if not final and lead.startswith(self._buffer) and lead != self._buffer:
            return False
        if lead and self._buffer.startswith(lead):
            parts.append(Part("mark", self._take(len(lead))))
        self._step = self._body
        return True

    def _body(self, parts: list[Part], final: bool) -> bool:
        """Content up to the next call, or to the end."""
        style, text = self._style, self._buffer
        bare = text.lstrip()
        if not bare:
            if final:
                self._ending(parts)
            return False
        if self._whole and style is not None and not (self._spoken or self._called):
            if bare.startswith(style.opens):
                self._step = self._hold
                return final
            if not final and any(mark.startswith(bare) for mark in style.opens):
                return False
        places = [place for mark in style.opens if (place := text.find(mark)) >= 0] if style is not None and not style.whole else []
        if places:
            self._before(parts, self._take(min(places)))
            self._step = self._call
            return True
        if final:
            self._ending(parts)
            return False
        sure = len(text) - _held(text, self._watch)
        if not (text[:sure].strip() or self._spoken):
            return False
        self._say(parts, self._take(sure))
        return False

    def _before(self, parts: list[Part], text: str) -> None:
        """Content before a call; what divides the two waits until it is known whether the call is one."""
        divider = self._layout.before_call if text.endswith(self._layout.before_call) else ""
        if not (text.strip() or self._spoken):
            divider = text
        self._say(parts, text[: len(text) - len(divider)])
        self._pending = divider

    def _say(self, parts: list[Part], text: str) -> None:
        if text:
            parts.append(Part("content", text))
            self._spoken = True

    def _ending(self, parts: list[Part]) -> None:
        """The last of the content, without what the template writes behind it."""
        tail = self._layout.tail
        length = len(self._buffer) - (len(tail) if self._buffer.endswith(tail) else 0)
        if self._called and not (self._spoken or self._buffer[:length].strip()):
            parts.append(Part("mark", self._take(length)))
        self._say(parts, self._take(length))
        parts.append(Part("mark", self._take(len(self._buffer))))

    def _call(self, parts: list[Part], final: bool) -> bool:
        """A call, or what looked like one."""
        style = self._style
        assert style is not None
        new = self._buffer[len(self._scanned) :]
        if not final and len(self._buffer) > 200 and not any(mark in new for mark in style.closers):
            return False  # nothing in it can end a call
        self._scanned = self._buffer
        scan = style.scan(self._buffer, self._tools)
        if scan.end is None and not scan.problem and not final:
            return False
        self._scanned, pending, self._pending = "", self._pending, ""
        if scan.end is None and not scan.calls:
            problem = scan.problem or "it ends in its middle, or what it holds cannot be read"
            self.problems.append(f"what begins with {_opening(self._buffer, style)!r} is no call: {problem}")
            self._say(parts, pending + self._take(len(_opening(self._buffer, style))))
        else:
            if scan.end is None:
                self.problems.append("the last call is complete, but its closing mark is missing")
            parts.append(Part("mark", pending))
            parts.append(Part("call", self._take(len(self._buffer) if scan.end is None else scan.end), scan.calls))
            self._spoken, self._called = False, True
        self._step = self._body
        return True

    def _hold(self, parts: list[Part], final: bool) -> bool:
        """An answer that may be one call as a whole: looked at when it is complete."""
        if not final:
            return False
        assert self._style is not None
        tail = self._layout.tail
        text = self._buffer[: len(self._buffer) - len(tail)] if tail and self._buffer.endswith(tail) else self._buffer
        scan = self._style.scan(text, self._tools)
        if scan.calls and scan.end is not None:
            parts.append(Part("call", self._take(len(text)), scan.calls))
            parts.append(Part("mark", self._take(len(self._buffer))))
        else:
            if '"name"' in text or not text.lstrip().startswith(("{", "[")):
                self.problems.append(f"what begins with {text.lstrip()[:16]!r} is no call: {scan.problem}")
            self._ending(parts)
        return False


class FramedReader(Reader):
    """Reads answers made of addressed messages (see `calls.frames`)."""

    def __init__(self, style: FrameStyle, tools: Tools, prompt: str) -> None:
        """`prompt` is the text before the answer: where it ends inside a header, the answer goes on there."""
        super().__init__()
        self._style, self._tools = style, tools
        begun = prompt.rfind(style.start)
        self._header = prompt[begun + len(style.start) :] if begun >= 0 else ""
        body = style.message in self._header
        self._kind, self._name = style.address(self._header) if body else ("content", "")
        self._step = self._body if body else self._head

    def _head(self, parts: list[Part], final: bool) -> bool:
        end = self._buffer.find(self._style.message)
        if end < 0:
            if final and self._buffer:
                if self._buffer.strip():
                    self.problems.append(f"the header of a message is not complete: {self._style.message!r} is missing")
                parts.append(Part("content" if self._buffer.strip() else "mark", self._take(len(self._buffer))))
            return False
        header = self._header + self._buffer[:end]
        self._kind, self._name = self._style.address(header.rpartition(self._style.start)[2])
        parts.append(Part("mark", self._take(end + len(self._style.message))))
        self._step = self._body
        return True

    def _body(self, parts: list[Part], final: bool) -> bool:
        marks = (*self._style.ends, self._style.start)
        places = [(place, mark) for mark in marks if (place := self._buffer.find(mark)) >= 0]
        if places:
            place, mark = min(places)
            self._give(parts, self._take(place))
            parts.append(Part("mark", self._take(len(mark))))
            self._header, self._step = "", self._head
            return True
        if final:
            self._give(parts, self._take(len(self._buffer)))
        elif self._kind != "call":
            text = self._take(len(self._buffer) - _held(self._buffer, marks))
            parts.append(Part(self._kind, text))
        return False

    def _give(self, parts: list[Part], body: str) -> None:
        """The (rest of the) body of a frame that has ended."""
        if self._kind != "call":
            parts.append(Part(self._kind, body))
            return
        try:
            parts.append(Part("call", body, (self._style.read(self._name, body, self._tools),)))
        except ValueError as error:
            self.problems.append(f"what is addressed to {self._name!r} is no call: {error}")
            parts.append(Part("content", body))


def reader_for(style: CallStyle | FrameStyle | None, layout: Layout, tools: Tools, prompt: str) -> Reader:
    """The reader of a style's answers behind `prompt`."""
    if isinstance(style, FrameStyle):
        return FramedReader(style, tools, prompt)
    return MarkedReader(style, layout, tools, prompt)


def _opening(text: str, style: CallStyle) -> str:
    return max((mark for mark in style.opens if text.startswith(mark)), key=len)


def beginnings(marks: Sequence[str]) -> frozenset[str]:
    """All texts with which a mark begins, the marks themselves included."""
    return frozenset(mark[:length] for mark in marks for length in range(1, len(mark) + 1))


def held(text: str, begun: frozenset[str], longest: int) -> int:
    """How much of the end of `text` could be the beginning of a mark, whose `beginnings` and greatest length are given."""
    return next((length for length in range(min(longest, len(text)), 0, -1) if text[-length:] in begun), 0)


def _held(text: str, marks: Sequence[str]) -> int:
    return held(text, beginnings(marks), max(map(len, marks), default=0))

"""What rows say, as people write it: conversations, documents, preferences, and the place each came from.

All three have `meta`, `source` and `where`; a document and a preference are no conversations, and nothing takes them for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sapwood.records.media import Media

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that a message may have once a reader has normalised it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a conversation came from, so that every message about it can name the place."""

    file: str
    line: int
    """Counted from 1; for files without lines, the record's number."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function by the assistant."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The form that chat templates read (OpenAI's, with the arguments as an object)."""
        call: dict[str, Any] = {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}
        if self.id is not None:
            call["id"] = self.id
        return call


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` is the loss weight of an assistant turn: 0 leaves it untrained."""

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    weight: float = 1.0
    media: tuple[Media, ...] = ()
    """Images and sounds, by their place in the content."""

    @property
    def plain(self) -> bool:
        """Whether role and content are all there is to read in it."""
        return not (self.tool_calls or self.media) and self.reasoning is self.tool_call_id is self.name is None

    def for_template(self) -> dict[str, Any]:
        """The dictionary that a Jinja chat template receives; absent parts are absent keys.

        The content is text, or a list of parts where there is media.
        """
        message: dict[str, Any] = {"role": self.role, "content": self.parts() if self.media else self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message

    def parts(self) -> list[dict[str, Any]]:
        """The content as parts: `{"type": "text", "text": …}` and `{"type": "image"}`, in order; no text part is empty."""
        parts: list[dict[str, Any]] = []
        begin = 0
        for medium in self.media:
            if medium.at > begin:
                parts.append({"type": "text", "text": self.content[begin : medium.at]})
            parts.append({"type": medium.kind})
            begin = medium.at
        if begin < len(self.content) or not parts:
            parts.append({"type": "text", "text": self.content[begin:]})
        return parts


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, the tools on offer, arguments for the template, and everything else the row held (`meta`)."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None

    def trained(self, last_only: bool = False) -> list[int]:
        """Places of the assistant turns with a weight above 0, or of the last of them."""
        places = [i for i, message in enumerate(self.messages) if message.role == "assistant" and message.weight > 0]
        return places[-1:] if last_only else places

    @property
    def where(self) -> str:
        """The place to name in messages about this conversation."""
        return str(self.source) if self.source else "a conversation made in code"


@dataclass(frozen=True, slots=True)
class Document:
    """A text to go on training a language model on: no turns, no prompt, no answer."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None
    tokens: tuple[int, ...] = ()
    """The ids, where a row was given as such; the text is then these numbers."""
    weights: tuple[float, ...] = ()
    """The loss weight of each of them."""

    @property
    def where(self) -> str:
        """The place to name in messages about this document."""
        return str(self.source) if self.source else "a document made in code"

    @property
    def template_arguments(self) -> Mapping[str, Any]:
        """None: no template renders a document."""
        return {}


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which one is preferred. Both are the turns behind `prompt`, the last by the assistant."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None

    @property
    def where(self) -> str:
        """The place to name in messages about this pair."""
        return str(self.source) if self.source else "a preference made in code"

    def conversation(self, answer: tuple[Message, ...]) -> Conversation:
        """The prompt with one of the two answers, in which the prompt's own assistant turns are context."""
        context = tuple(replace(message, weight=0.0) if message.role == "assistant" else message for message in self.prompt)
        return Conversation((*context, *answer), self.tools, self.template_arguments, self.meta, self.source)


Record = Conversation | Document | Preference
"""What one row of a file can be."""

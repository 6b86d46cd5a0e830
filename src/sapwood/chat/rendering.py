"""Messages → the text that a model's template makes of them, control tokens in their texts covered (see `shield`).

Prompts, turns and probes are all rendered here. Tools go to the template that knows them, or into the system message where none
does (see `tools`). Left out on purpose: tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.chat.shield import Shield
from sapwood.chat.templating import Template
from sapwood.chat.tools import Folding, fold, learn_folding
from sapwood.chat.turns import THOUGHT_TAGS
from sapwood.records import Message

COVERS = 1000
"""Covered messages that are remembered."""


class Rendering:
    """The templates of one model, by name, with what they are given beside messages."""

    def __init__(self, templates: Mapping[str, Template], shield: Shield, special: Mapping[str, str]) -> None:
        self.templates = templates
        self.folding: Folding | None = None
        """Where tools are written, if not by the template."""
        self._shield, self._special = shield, special
        self._covers: dict[int, tuple[Message, Message]] = {}

    def folded(self) -> Rendering:
        """The same, with tools in the system message, calls and results as text."""
        other = copy.copy(self)
        other.folding = learn_folding(lambda messages: self.drawn(messages, True))
        return other

    def template(self, tools: Sequence[Mapping[str, Any]] = ()) -> Template:
        """The template for tools, where the folder has one of its own and there are tools."""
        return self.templates["tool_use" if tools and "tool_use" in self.templates else "default"]

    def covered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        generation_prompt: bool,
        where: str,
    ) -> str:
        """The text of covered messages and tools, itself covered. Raises `TemplateError`."""
        messages, tools = self.laid_out(messages, tools, where)
        text = self.template(tools).render(
            messages, tools=tools, generation_prompt=generation_prompt, special=self._special, arguments=arguments, where=where
        )
        return self._shield.settle(text)

    def drawn(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The text of a probe."""
        return self.covered(messages, (), {}, generation_prompt, "a probe")

    def laid_out(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], where: str
    ) -> tuple[Sequence[Message], Sequence[Mapping[str, Any]]]:
        """Messages and tools as the template is given them: with tools folded into the messages where it has no place for them."""
        return (messages, tools) if self.folding is None else (fold(messages, tools, self.folding, where), ())

    def cover(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with control tokens in their texts covered."""
        return [self.cover_one(message) for message in messages]

    def cover_one(self, message: Message) -> Message:
        """The message covered. Each is covered for many renderings, so the last few are remembered."""
        known = self._covers.get(id(message))
        if known is not None and known[0] is message:
            return known[1]
        covered = self._shield.cover_message(message, THOUGHT_TAGS)
        if len(self._covers) >= COVERS:
            self._covers.clear()
        self._covers[id(message)] = (message, covered)
        return covered

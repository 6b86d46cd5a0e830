"""Special tokens that people write stay text.

In: texts of messages and tools. Out: the same texts with each occurrence of a control token's string (`<|im_end|>` and
the like) replaced by a two-letter placeholder that a template carries along like any other letters; and, after
rendering, the text cut into pieces: ordinary ones, and covered ones that must be tokenised as text.

A placeholder is U+E000 (private use) and a letter of plane 15 that says which token it stands for. A U+E000 that was in
the text before is covered too, so nothing can be forged or lost.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sapwood.records import Media, Message

_MARK = "\ue000"
_FIRST = 0xF0000
_LETTERS = "[\U000f0000-\U000ffffd]"
_PLACEHOLDER = re.compile(f"{_MARK}({_LETTERS})")
_ESCAPED = re.compile(r"\\ue000\\udb[89ab][0-9a-f]\\ud[c-f][0-9a-f]{2}")
"""A placeholder as JSON with ASCII only writes it."""


class Shield:
    """Covers the given strings in what people wrote. Thought tags in an assistant's own turn are left alone."""

    def __init__(self, specials: Sequence[str]) -> None:
        self._covered = [_MARK, *sorted(set(specials), key=lambda token: (-len(token), token))]
        self._number = {token: number for number, token in enumerate(self._covered)}
        self._pattern = re.compile("|".join(map(re.escape, self._covered)))

    @cached_property
    def begun(self) -> frozenset[str]:
        """All texts with which a covered string begins: what may not be decided on before more text is there."""
        return frozenset(token[:length] for token in self._covered for length in range(1, len(token) + 1))

    def count(self, texts: Any) -> int:
        """How many control tokens are written as text in a nest of strings."""
        if isinstance(texts, str):
            return sum(match[0] != _MARK for match in self._pattern.finditer(texts))
        if isinstance(texts, Mapping):
            return sum(self.count(key) + self.count(value) for key, value in texts.items())
        if isinstance(texts, list | tuple):
            return sum(map(self.count, texts))
        return 0

    def cover(self, value: Any, keep: Sequence[str] = ()) -> Any:
        """A copy of a nest of strings with every control token covered, but those in `keep`."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: match[0] if match[0] in keep else self._placeholder(match[0]), value)
        if isinstance(value, Mapping):
            return {self.cover(key, keep): self.cover(entry, keep) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.cover(entry, keep) for entry in value)
        return value

    def cover_message(self, message: Message, keep: Sequence[str] = ()) -> Message:
        """The message with all that people wrote in it covered; an assistant's own turn keeps the strings of `keep`."""
        if message.plain and self._pattern.search(message.content) is None:
            return message
        kept = keep if message.role == "assistant" else ()
        content, media = self._cover_content(message, kept)
        return dataclasses.replace(
            message,
            content=content,
            media=media,
            reasoning=self.cover(message.reasoning),
            tool_calls=tuple(
                dataclasses.replace(call, name=self.cover(call.name), arguments=self.cover(call.arguments), id=self.cover(call.id))
                for call in message.tool_calls
            ),
            tool_call_id=self.cover(message.tool_call_id),
            name=self.cover(message.name),
        )

    def _cover_content(self, message: Message, keep: Sequence[str]) -> tuple[str, tuple[Media, ...]]:
        """The content covered piece by piece: a medium ends a piece, and moves as the pieces before it grow or shrink."""
        content, begin, moved = "", 0, []
        for medium in message.media:
            content += self.cover(message.content[begin : medium.at], keep)
            begin = medium.at
            moved.append(dataclasses.replace(medium, at=len(content)))
        return content + self.cover(message.content[begin:], keep), tuple(moved)

    def settle(self, rendered: str) -> str:
        """Rendered text with placeholders that a template wrote as JSON escapes turned back into placeholders."""
        if "\\ue000" not in rendered:
            return rendered
        return _ESCAPED.sub(lambda match: str(json.loads(f'"{match[0]}"')), rendered)

    def covers(self, rendered: str) -> bool:
        """Whether something in the text is covered."""
        return _MARK in rendered

    def pieces(self, rendered: str) -> list[tuple[str, bool]]:
        """The text in order as (piece, covered): covered pieces are to be tokenised as text. No piece is empty."""
        if _MARK not in rendered:
            return [(rendered, False)] if rendered else []
        found: list[tuple[str, bool]] = []
        for number, piece in enumerate(_PLACEHOLDER.split(rendered)):
            if number % 2:
                found.append((self._meaning(piece), True))
            elif piece:
                found.append((piece, False))
        return found

    def reveal(self, rendered: str) -> str:
        """The text as a person reads it."""
        if _MARK not in rendered:
            return rendered
        return _PLACEHOLDER.sub(lambda match: self._meaning(match[1]), rendered)

    def _placeholder(self, token: str) -> str:
        return _MARK + chr(_FIRST + self._number[token])

    def _meaning(self, letter: str) -> str:
        number = ord(letter) - _FIRST
        return self._covered[number] if number < len(self._covered) else _MARK + letter

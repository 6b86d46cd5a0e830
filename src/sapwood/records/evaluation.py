"""What is asked in an evaluation and how an answer to it was judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from sapwood.records.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its reference. `conversation` ends before the answer; `reference` is the scorer's to read."""

    conversation: Conversation
    reference: Any
    cluster: str | None = None
    """Items of one cluster (a document, a user, a function) are not independent."""
    tags: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Hash of what is asked and expected: arms are paired on it, never on position."""
        asked = [message.for_template() for message in self.conversation.messages]
        media = [medium.identity for message in self.conversation.messages for medium in message.media]
        arguments = [dict(self.conversation.template_arguments)] if self.conversation.template_arguments else []
        key = orjson.dumps(
            [asked, list(self.conversation.tools), self.reference, *arguments, *media], option=orjson.OPT_SORT_KEYS, default=str
        )
        return hashlib.sha256(key).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Score:
    """One verdict on one completion. `value` is None where nothing could be judged; that is never a 0."""

    value: float | None
    answer: str | None = None
    """What the scorer took to be the answer."""
    explanation: str = ""

"""Rows of a conversation by one rendering, for templates that write message by message (see `stepwise`).

In: a conversation of plain messages. Out: the very rows that `Chat.turns` makes turn by turn, or None where only that way can say:
tools, thoughts, media, a message that stands in a frame (what the template writes around a text of its role) that has not passed
that way yet. The first conversation of each frame goes both ways; should the two ever differ, this one is closed.
Ids are those of the pieces: an added token is where every tokenizer cuts, and here each message begins in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sapwood.chat.stops import Stops
from sapwood.chat.templating import Template
from sapwood.chat.tokens import Tokens
from sapwood.chat.turns import ends_in_thought, may_think
from sapwood.errors import TemplateError
from sapwood.records import Conversation, Message, Row

Frame = tuple[str, str, str]
"""Role, what stands before the text, what stands behind it."""
MOST_FRAMES = 1000


class Steps:
    """The short way. `cover` covers a message's control tokens (see `shield`)."""

    def __init__(
        self, template: Template, tokens: Tokens, stops: Stops, special: Mapping[str, str], cover: Callable[[Message], Message]
    ) -> None:
        self._template, self._tokens, self._stops, self._special, self._cover = template, tokens, stops, special, cover
        self._frames: set[Frame] = set()
        self.open = template.stepwise and tokens.cuts_at_added and stops.turn_end is not None
        """Whether this way has agreed with the long one so far, and the template and tokenizer allow it."""

    def rows(self, conversation: Conversation, trained: Sequence[int], limit: int | None) -> tuple[Row, ...] | None:
        """A row for each trained message, by its place in the conversation; None where the long way must be gone."""
        found = self._pieces(conversation, trained[-1]) if self.open and trained else None
        if found is None:
            return None
        messages, (*pieces, opening) = found
        for message, piece in zip(messages, pieces, strict=True):
            if self._frame(message, piece) not in self._frames:
                return None
        return self._made(conversation, trained, limit, pieces, opening)

    def learn(self, conversation: Conversation, trained: Sequence[int], rows: Sequence[Row]) -> None:
        """Take the frames of a conversation whose rows were made the long way, and see whether this one makes the same."""
        found = self._pieces(conversation, trained[-1]) if self.open and len(self._frames) < MOST_FRAMES else None
        if found is None:
            return
        messages, (*pieces, opening) = found
        frames = [self._frame(message, piece) for message, piece in zip(messages, pieces, strict=True)]
        if not all(frame is not None and self._tokens.begins_in_added(frame[1]) for frame in frames):
            return
        made = self._made(conversation, trained, None, pieces, opening)
        if made is None:
            return
        if all(map(_same, made, rows)):
            self._frames.update(frame for frame in frames if frame is not None)
        else:
            self.open = False

    def _pieces(self, conversation: Conversation, last: int) -> tuple[list[Message], list[str]] | None:
        """The messages up to the `last` trained one, covered, and what the template writes for each, the generation prompt last."""
        if conversation.tools or not all(message.plain for message in conversation.messages):
            return None
        messages = [self._cover(message) for message in conversation.messages[: last + 1]]
        try:
            pieces = self._template.steps(
                messages, special=self._special, arguments=conversation.template_arguments, where=conversation.where
            )
        except TemplateError:
            return None
        return messages, [self._tokens.shield.settle(piece) for piece in pieces]

    def _frame(self, message: Message, piece: str) -> Frame | None:
        text = message.content.strip()
        place = piece.find(text)
        return None if place < 0 else (message.role, piece[:place], piece[place + len(text) :])

    def _made(
        self, conversation: Conversation, trained: Sequence[int], limit: int | None, pieces: Sequence[str], opening: str
    ) -> tuple[Row, ...] | None:
        if not self._tokens.begins_in_added(opening) or ends_in_thought(opening):
            return None
        texts = []
        for index in trained:
            text = self._completion(conversation.messages[index], pieces[index], opening) if index else None
            if text is None:
                return None
            texts.append(text)
        try:
            ids = self._tokens.encode_each([*pieces[: trained[-1]], opening, *texts])
        except TemplateError:
            return None
        *written, opened = [np.array(each, dtype=np.int64) for each in ids[: trained[-1] + 1]]
        rows = []
        for index, completion in zip(trained, ids[trained[-1] + 1 :], strict=True):
            if not completion or completion[-1] not in self._stops.ids or not self._stops.ids.isdisjoint(completion[:-1]):
                return None
            weights_T = np.full(len(completion), conversation.messages[index].weight, dtype=np.float32)
            row = Row(np.concatenate([*written[:index], opened]), np.array(completion, dtype=np.int64), weights_T)
            if limit is not None and row.length > limit:
                return None
            rows.append(row)
        return tuple(rows)

    def _completion(self, message: Message, piece: str, opening: str) -> str | None:
        """What the model must write for a message: its piece behind the generation prompt, up to its first stop token."""
        if may_think(message.content) or not message.content.strip() or not piece.startswith(opening):
            return None
        behind = piece[len(opening) :]
        match = self._stops.pattern.search(behind)
        # what the template inserts before the text (an empty thought, say) is the long way's to judge
        if match is None or not behind[: match.end()].lstrip().startswith(self._cover(message).content.strip()):
            return None
        return behind[: match.end()]


def _same(left: Row, right: Row) -> bool:
    pairs = ((left.prompt_T, right.prompt_T), (left.completion_T, right.completion_T), (left.weights_T, right.weights_T))
    return all(np.array_equal(one, other) for one, other in pairs)

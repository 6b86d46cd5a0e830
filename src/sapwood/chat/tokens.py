"""Text ⇄ tokens, by the model's own `tokenizer.json`.

In: rendered text whose placeholders say which control tokens are only text (see `shield`). Out: token ids; and from
ids the text again, at once or as a stream that never shows half a letter. No BOS is ever added here: templates write it.
Left out on purpose: slow tokenizers, padding, truncation (switched off if the file asks for it).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from sapwood.chat.shield import Shield
from sapwood.chat.words import Words
from sapwood.errors import TemplateError

_ANCHORS = ("\n", "a", ".", "]", "0")
"""Texts put before a piece from the middle, so that a tokenizer with a dummy space does not put it there."""


class Tokens:
    """A tokenizer that can also be told to read control tokens as plain text."""

    def __init__(self, content: dict[str, Any], extra_special: frozenset[int] = frozenset()) -> None:
        """`content` is `tokenizer.json`; `extra_special` are added tokens to be guarded although it does not mark them special."""
        self._content = {**content, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(self._content))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special or number in extra_special)
        """Ids of control tokens."""
        self.control_ids = {str(added[number].content): int(number) for number in sorted(self.special_ids)}
        """Each control token's string and id."""
        self.shield = Shield(list(self.control_ids))
        first = self._tokenizer.encode("a", add_special_tokens=False).tokens
        self.dummy_space = bool(first) and first[0][:1] in ("▁", "Ġ")
        """Whether the tokenizer puts a space before a text that has none (SentencePiece style)."""

    @cached_property
    def _literal(self) -> Tokenizer:
        """The same tokenizer with control tokens read as text."""
        marked = [{**token, "special": token["special"] or token["id"] in self.special_ids} for token in self._content["added_tokens"]]
        tokenizer = Tokenizer.from_str(json.dumps({**self._content, "added_tokens": marked}))
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _words(self) -> Words:
        return Words(self._tokenizer, self._content)

    @property
    def content(self) -> str:
        """`tokenizer.json`, without cutting and padding."""
        return json.dumps(self._content)

    @property
    def vocabulary(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """Ids that the tokenizer itself puts before a plain text: a BOS token, or nothing. Templates write theirs themselves."""
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        places = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        return tuple(whole[: next(places, 0)])

    def id_of(self, token: str) -> int | None:
        """The id of a token's string, if there is one."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def token_of(self, token_id: int) -> str | None:
        """The string of an id, if there is one."""
        token = self._tokenizer.id_to_token(token_id)
        return None if token is None else str(token)

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered text. Raises `TemplateError` if the vocabulary makes a control token out of plain text."""
        ids: list[int] = []
        for piece, covered in self.shield.pieces(rendered):
            part = self._encode(piece, literal=covered, inside=bool(ids))
            if covered and not self.special_ids.isdisjoint(part):
                raise TemplateError(
                    f"The text {piece!r} cannot be told apart from the control token: this tokenizer has no other way to write it. Remove "
                    "it from the message."
                )
            ids += part
        return ids

    @property
    def cuts_at_added(self) -> bool:
        """Whether an added token is a border: ids on one side do not depend on what stands on the other."""
        return not self.dummy_space and self._words.serves

    def begins_in_added(self, text: str) -> bool:
        """Whether a text begins in an added token."""
        return self._words.begins_in_added(text)

    def encode_each(self, rendered: Sequence[str]) -> list[list[int]]:
        """`encode` of several texts; new words are looked up together."""
        known = self._words.ids_of_each(rendered)
        return [self.encode(text) if ids is None or self.shield.covers(text) else ids for text, ids in zip(rendered, known, strict=True)]

    def ends(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text read as a whole, control tokens included, and the letter behind which each ends."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), [end for _, end in encoding.offsets]

    def continuation(self, prompt: str, prompt_ids: Sequence[int], completion: str) -> list[int]:
        """Ids of what is generated behind a prompt: apart from it, but for tokenizers with a dummy space, from the whole."""
        if not self.dummy_space:
            return self.encode(completion)
        whole = self.encode(prompt + completion)
        if whole[: len(prompt_ids)] == list(prompt_ids):
            return whole[len(prompt_ids) :]
        first, *rest = self.shield.pieces(completion)
        ids = self._encode(first[0], literal=first[1], inside=True)
        for piece, covered in rest:
            ids += self._encode(piece, literal=covered, inside=True)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids; bytes that are no whole letter become U+FFFD."""
        return str(self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens))

    def _encode(self, text: str, *, literal: bool, inside: bool) -> list[int]:
        tokenizer = self._literal if literal else self._tokenizer
        if inside and self.dummy_space:
            for anchor in _ANCHORS:
                lead = tokenizer.encode(anchor, add_special_tokens=False).ids
                whole = tokenizer.encode(anchor + text, add_special_tokens=False).ids
                if whole[: len(lead)] == lead:
                    return list(whole[len(lead) :])
        remembered = None if literal else self._words.ids(text)
        return list(tokenizer.encode(text, add_special_tokens=False).ids) if remembered is None else remembered


class StreamDecoder:
    """Text of ids that arrive one at a time. The pieces, joined, are the decoded whole.

    A piece is empty while the last letter is not complete. `skip` ids give no text.
    """

    def __init__(self, tokens: Tokens, skip: frozenset[int] = frozenset()) -> None:
        self._tokens, self._skip = tokens, skip
        self._window: list[int] = []
        self._shown = 0  # ids of the window whose text was given out

    def push(self, token_id: int) -> str:
        """The text that has become complete with this id."""
        if token_id in self._skip:
            return ""
        self._window.append(int(token_id))
        text = self._tokens.decode(self._window)
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._tokens.decode(self._window[: self._shown])) :]
        # One shown stretch stays in the window: a decoder may treat the first token of a text differently.
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return new

    def finish(self) -> str:
        """What is left when no more ids come: half letters appear as U+FFFD."""
        text = self._tokens.decode(self._window)[len(self._tokens.decode(self._window[: self._shown])) :]
        self._window, self._shown = [], 0
        return text


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put the conversation's place before a tokenizer's refusal."""
    try:
        yield
    except TemplateError as error:
        raise TemplateError(f"{where}: {error}") from None

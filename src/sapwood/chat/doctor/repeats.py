"""Rows that repeat each other, found at the end from digests: duplicates, contradictions, answers that are out of line.

In: for each row three 64-bit digests (whole, prompt, answer) and its place. Out: `RowNote`s. At 32 bytes a row a million
rows fit into 32 MB; two different rows of a million share a digest by chance once in some 30 million files.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sapwood.chat.doctor.row_checks import RowNote, quoted
from sapwood.chat.trained import Turn
from sapwood.records import Conversation, Document, Source

SHORT, USUAL = 3, 30
"""An answer of at most `SHORT` tokens is out of line where the median answer has at least `USUAL`."""
_TEXTS = 10_000


class Repeats:
    """Feed it each row that can be trained; ask for `notes` at the end."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file, self._line, self._answer_tokens = array("I"), array("Q"), array("I")
        self._whole, self._prompt, self._answer = array("Q"), array("Q"), array("Q")
        self._texts: dict[int, str] = {}

    def add(self, conversation: Conversation, last: Turn) -> None:
        """Enter a conversation; `last` is its last trained turn."""
        messages = [message.for_template() for message in conversation.messages]
        prompt = _digest([_loose(messages[: last.index]), _rest(conversation)])
        answer = _digest(_loose([messages[last.index]]))
        if len(self._texts) < _TEXTS:
            self._texts.setdefault(answer, conversation.messages[last.index].content[:80])
        self._enter(conversation.source, digest_of(conversation), prompt, answer, len(last.ids))

    def add_document(self, document: Document, tokens: int) -> None:
        """Enter a text without turns: it can be repeated, and contradicts nothing."""
        digest = digest_of(document)
        self._enter(document.source, digest, digest, digest, tokens)

    def _enter(self, source: Source | None, whole: int, prompt: int, answer: int, tokens: int) -> None:
        source = source or Source("a row made in code", len(self._line) + 1)
        self._file.append(self._files.setdefault(source.file, len(self._files)))
        self._line.append(source.line)
        self._answer_tokens.append(tokens)
        self._whole.append(whole)
        self._prompt.append(prompt)
        self._answer.append(answer)

    def most_common_answer(self) -> tuple[str, float] | None:
        """The last answer that most rows give and its share, where it is at least a tenth of ten rows or more."""
        if len(self._answer) < 10:
            return None
        values, counts = np.unique(np.frombuffer(self._answer, dtype=np.uint64), return_counts=True)
        best = int(counts.argmax())
        share = float(counts[best]) / len(self._answer)
        text = self._texts.get(int(values[best]), "")
        return (text, share) if share >= 0.1 and text.strip() else None

    def prompts(self) -> int:
        """How many prompts differ."""
        return len(np.unique(np.frombuffer(self._prompt, dtype=np.uint64)))

    def notes(self) -> Iterator[RowNote]:
        """Duplicates and contradictions, by the first row that they repeat; then answers that are far too short."""
        whole, prompt, answer = (np.frombuffer(a, dtype=np.uint64) for a in (self._whole, self._prompt, self._answer))
        first_whole, first_prompt = _firsts(whole), _firsts(prompt)
        repeated = first_whole != np.arange(len(whole))
        for place in np.flatnonzero(repeated):
            yield RowNote("duplicate", self._where(int(place)), f"the same as {self._where(int(first_whole[place]))}")
        for place in np.flatnonzero((first_prompt != np.arange(len(prompt))) & (answer != answer[first_prompt]) & ~repeated):
            first = int(first_prompt[place])
            texts = [self._texts.get(int(answer[i])) for i in (int(place), first)]
            said = f": {quoted(texts[0], 30)}, there {quoted(texts[1], 30)}" if all(texts) and texts[0] and texts[1] else ""
            yield RowNote("contradiction", self._where(int(place)), f"the prompt of {self._where(first)}, another answer{said}")
        tokens = np.frombuffer(self._answer_tokens, dtype=np.uint32)
        if len(tokens) and np.median(tokens) >= USUAL:
            for place in np.flatnonzero(tokens <= SHORT):
                yield RowNote("short-answer", self._where(int(place)), f"{tokens[place]} tokens; the median is {int(np.median(tokens))}")

    def _where(self, place: int) -> str:
        return str(Source(list(self._files)[self._file[place]], self._line[place]))


def digest_of(conversation: Conversation | Document) -> int:
    """64 bits of all that a model is given and must say; metadata, weights and the place do not count."""
    if isinstance(conversation, Document):
        return _digest(conversation.text)
    return _digest([[message.for_template() for message in conversation.messages], _rest(conversation)])


def _rest(conversation: Conversation) -> list[Any]:
    media = [part.uri for message in conversation.messages for part in message.media]
    return [list(conversation.tools), dict(conversation.template_arguments), media]


def _firsts(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) for each value the place of its first occurrence."""
    _, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(firsts[inverse], dtype=np.int64)


def _digest(content: Any) -> int:
    data = orjson.dumps(content, option=orjson.OPT_SORT_KEYS, default=str)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _loose(messages: list[dict[str, Any]]) -> list[Any]:
    """Messages with case and white space of their texts left out of account, and without the ids of calls."""
    return [[m["role"], " ".join(str(m["content"]).casefold().split()), [c["function"] for c in m.get("tool_calls", ())]] for m in messages]

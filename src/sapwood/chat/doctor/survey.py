"""The doctor's pass over data: every row is rendered, tokenised, counted and checked; none is sampled.

In: conversations, one after the other, and rows that could not even be read. Out: a `Survey`: tokens by who wrote them,
lengths, shares trained, what sharing saves, and the rows with something to know, by place. Memory holds some twenty
bytes a row (digests and lengths), and of each kind of trouble the first places in words.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sapwood.chat.chat import Chat
from sapwood.chat.doctor.repeats import Repeats
from sapwood.chat.doctor.row_checks import ROW_KINDS, RowNote, features_of, row_notes
from sapwood.chat.doctor.sharing import Ids, Sharing, SharingCount, common_beginning
from sapwood.chat.doctor.spans import KINDS, Kinds, document_kinds, kinds_of_rows
from sapwood.chat.other_rows import document_example
from sapwood.chat.trained import Turn
from sapwood.errors import SapwoodError
from sapwood.records import Conversation, Document

KEPT = 200
"""Rows of each kind that are named one by one; the rest is counted."""
BINS = 24


@dataclass(slots=True)
class KindCount:
    """One kind of trouble: how many rows have it, and the first of them. Kinds are described in `ROW_KINDS`."""

    rows: int = 0
    first: list[RowNote] = field(default_factory=list)
    last_where: str = ""


@dataclass(frozen=True)
class Tokens:
    """Token counts. `own` counts the tokens of a conversation once, however many of its rows begin with them."""

    rows: int
    """Training rows: one a trained turn."""
    row_tokens: int
    trained: int
    own: int
    by_kind: dict[str, int]
    """Of `own`: by who wrote them, as in `KINDS`."""
    trained_by_kind: dict[str, int]


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens of each conversation's longest row, as counts in equal bins from 0 to `top`."""

    counts: list[int]
    top: int
    shortest: int
    median: int
    ninety: int
    longest: int
    longest_at: str
    limit: int | None
    """Tokens that the model can attend to, or that were allowed."""


@dataclass(frozen=True)
class Survey:
    """Everything found out about the rows. `rows_in` = `taken` + the rows refused."""

    rows_in: int
    taken: int
    tokens: Tokens
    lengths: Lengths | None
    sharing: Sharing
    kinds: dict[str, KindCount]
    """By kind, in the order of `ROW_KINDS`; only kinds that were met."""
    features: frozenset[str]
    """What the rows make use of: `tools`, `reasoning`, `system`, `no system` (rows without one), `turns` (several trained), `spaces`
    (at the ends of texts). Rows that the template refuses count; those that could not be read are unknown."""
    prompts: int
    """Prompts that differ, of the rows taken; upper and lower case and white space do not count."""
    most_common_answer: tuple[str, float] | None
    """The last answer that most rows share and their share of all rows, where it is at least a tenth."""

    @property
    def refused(self) -> int:
        """Rows that cannot be trained."""
        return self.kinds["refused"].rows if "refused" in self.kinds else 0


class Surveyor:
    """Takes rows one by one; `survey` sums up. `context` is the longest row allowed, by default the model's own."""

    def __init__(self, chat: Chat, *, context: int | None = None, batch: int = 8, kept: int = KEPT) -> None:
        self._chat, self._context, self._kept = chat, context, kept
        self._limit = context if context is not None else chat.context_length
        self._kinds: dict[str, KindCount] = {}
        self._rows_in = self._rows = self._row_tokens = self._trained = 0
        self._by_kind = np.zeros(len(KINDS), dtype=np.int64)
        self._trained_by_kind = np.zeros(len(KINDS), dtype=np.int64)
        self._lengths = array("I")
        self._longest = 0
        self._longest_at = ""
        self._features: set[str] = set()
        self._repeats = Repeats()
        self._sharing = SharingCount(batch=batch)

    def refuse(self, where: str, sentence: str, next_step: str = "") -> None:
        """Enter a row that no conversation could be made of."""
        self._rows_in += 1
        self.note(RowNote("refused", where, sentence, next_step))

    def note(self, note: RowNote) -> None:
        """Enter something about a row that was found elsewhere. Notes of one kind on one row, one behind the other, count once."""
        count = self._kinds.setdefault(note.kind, KindCount())
        if count.last_where == note.where:
            return
        count.rows, count.last_where = count.rows + 1, note.where
        if len(count.first) < self._kept:
            count.first.append(note)

    def add(self, conversation: Conversation, turns: Sequence[Turn] | None = None) -> Sequence[Turn] | None:
        """Render (unless `turns` are given), count and check one conversation. Its turns, or None where it cannot be trained."""
        self._features |= features_of(conversation)
        try:
            turns = self._chat.turns(conversation, context=self._context) if turns is None else turns
        except SapwoodError as error:
            self.refuse(conversation.where, *split_refusal(conversation.where, str(error)))
            return None
        self._rows_in += 1
        self._count(conversation, turns)
        self._repeats.add(conversation, turns[-1])
        for note in row_notes(self._chat, conversation, turns, self._limit):
            self.note(note)
        return turns

    def add_document(self, document: Document) -> None:
        """The same for a text without turns: all of it is trained, and counts as an answer."""
        try:
            row = document_example(self._chat, document, context=self._context).rows[0]
        except SapwoodError as error:
            self.refuse(document.where, *split_refusal(document.where, str(error)))
            return
        self._rows_in += 1
        ids = np.concatenate([row.prompt_T, row.completion_T])
        self._enter([(ids, document_kinds(row), len(row.completion_T))], document.where)
        self._repeats.add_document(document, len(row.completion_T))

    def survey(self) -> Survey:
        """All that was found; call it once, at the end."""
        for note in self._repeats.notes():
            self.note(note)
        tokens = Tokens(
            self._rows, self._row_tokens, self._trained, int(self._by_kind.sum()), _named(self._by_kind), _named(self._trained_by_kind)
        )
        return Survey(
            self._rows_in,
            len(self._lengths),
            tokens,
            self._length_counts(),
            self._sharing.result(),
            {kind: self._kinds[kind] for kind in ROW_KINDS if kind in self._kinds},
            frozenset(self._features),
            self._repeats.prompts(),
            self._repeats.most_common_answer(),
        )

    def _count(self, conversation: Conversation, turns: Sequence[Turn]) -> None:
        """Tokens by kind: of each turn those that do not stand in the turn before."""
        kinds = kinds_of_rows(self._chat, conversation, turns)
        ids = [np.array([*turn.prompt.ids, *turn.ids], dtype=np.int64) for turn in turns]
        self._enter([(row, kinds_T, len(turn.ids)) for row, kinds_T, turn in zip(ids, kinds, turns, strict=True)], conversation.where)

    def _enter(self, rows: Sequence[tuple[Ids, Kinds, int]], where: str) -> None:
        """Rows of one example as (ids, kinds, trained tokens at the end)."""
        before: Ids = np.empty(0, dtype=np.int64)
        for ids, kinds_T, trained in rows:
            self._by_kind += np.bincount(kinds_T[common_beginning(before, ids) :], minlength=len(KINDS))
            self._trained_by_kind += np.bincount(kinds_T[len(ids) - trained :], minlength=len(KINDS))
            self._rows += 1
            self._row_tokens += len(ids)
            self._trained += trained
            before = ids
        longest = max(len(ids) for ids, _, _ in rows)
        self._lengths.append(longest)
        if longest > self._longest:
            self._longest, self._longest_at = longest, where
        self._sharing.add([ids[:-1] for ids, _, _ in rows])

    def _length_counts(self) -> Lengths | None:
        if not self._lengths:
            return None
        lengths = np.frombuffer(self._lengths, dtype=np.uint32)
        top = _round_up(self._longest)
        counts, _ = np.histogram(lengths, bins=BINS, range=(0, top))
        shortest, median, ninety = (int(value) for value in np.percentile(lengths, [0, 50, 90]))
        return Lengths(counts.tolist(), top, shortest, median, ninety, self._longest, self._longest_at, self._limit)


def split_refusal(where: str, text: str) -> tuple[str, str]:
    """A refusal's paragraph, "place: what, what to do", as a sentence without its place, and the next step."""
    reason = text.removeprefix(where).lstrip(", :")
    head, dot, rest = reason.partition(". ")
    return head + dot.rstrip(), rest


def _named(counts: Ids) -> dict[str, int]:
    return {kind: int(count) for kind, count in zip(KINDS, counts, strict=True) if count}


def _round_up(length: int) -> int:
    """A round number not below `length` that `BINS` divides, so that bins have round borders."""
    step = 1
    while True:
        for factor in (1, 2, 3, 4, 5, 8):
            if BINS * step * factor >= length:
                return BINS * step * factor
        step *= 10

"""One conversation as the small tree that training computes: its rows, and where they part.

In: a chat, a conversation, its trained turns. Out: `Branch`es in depth-first order; each token of a beginning that rows
share stands in one branch only, as in the forest. For pages and terminals; nothing is computed on this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sapwood.chat.chat import Chat
from sapwood.chat.colour import letters, visible
from sapwood.chat.doctor.sharing import Ids, common_beginning
from sapwood.chat.doctor.spans import KINDS, Kinds, kinds_of_rows
from sapwood.chat.trained import Turn
from sapwood.records import Conversation, Row


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest run of tokens that makes whole letters; mostly one token."""

    text: str
    """With control letters as pictures, and an arrow before each line end."""
    ids: tuple[int, ...]
    kind: str
    """One of `KINDS`."""
    trained: bool
    control: bool


@dataclass(frozen=True, slots=True)
class Branch:
    """A stretch of tokens that the rows in `rows` (from 1) have in common. `parent` is a place in the list; -1 is none."""

    parent: int
    rows: tuple[int, ...]
    tokens: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    rows: list[int]
    start: int
    parent: int


def tree(chat: Chat, conversation: Conversation, turns: Sequence[Turn]) -> list[Branch]:
    """The branches of a conversation's rows; every row is the path from a root to the last branch that names it."""
    return branches_of(chat, [turn.row for turn in turns], kinds_of_rows(chat, conversation, turns))


def branches_of(chat: Chat, given: Sequence[Row], kinds: Sequence[Kinds]) -> list[Branch]:
    """The same for any rows; `kinds` holds for each row the kind of each of its tokens."""
    rows = [np.concatenate([row.prompt_T, row.completion_T]) for row in given]
    trained = [np.concatenate([np.zeros(len(row.prompt_T), dtype=bool), row.weights_T > 0]) for row in given]
    branches: list[Branch] = []
    waiting = [_Part(group, 0, -1) for group in reversed(_by_next(rows, list(range(len(rows))), 0))]
    while waiting:
        part = waiting.pop()
        first = part.rows[0]
        end = min(common_beginning(rows[first], rows[row]) for row in part.rows)
        marks = np.logical_or.reduce([trained[row][part.start : end] for row in part.rows])
        stretch = slice(part.start, end)
        pieces = tuple(_pieces(chat, rows[first][stretch], kinds[first][stretch], marks.tolist()))
        branches.append(Branch(part.parent, tuple(row + 1 for row in part.rows), end - part.start, pieces))
        longer = [row for row in part.rows if len(rows[row]) > end]
        waiting += [_Part(group, end, len(branches) - 1) for group in reversed(_by_next(rows, longer, end))]
    return branches


def _by_next(rows: Sequence[Ids], some: Sequence[int], depth: int) -> list[list[int]]:
    """Rows grouped by their token at `depth`, in the order in which they come."""
    groups: dict[int, list[int]] = {}
    for row in some:
        groups.setdefault(int(rows[row][depth]), []).append(row)
    return list(groups.values())


def _pieces(chat: Chat, ids: Ids, kinds: Kinds, trained: Sequence[bool]) -> Iterator[Piece]:
    numbers = ids.tolist()
    for text, places in letters(chat, numbers, trained):
        last = places[-1]
        control = numbers[last] in chat.tokens.special_ids
        own = tuple(numbers[place] for place in places)
        yield Piece(visible(text), own, KINDS[int(kinds[last])], trained[last], control)

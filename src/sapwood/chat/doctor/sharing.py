"""What the forest would save on a data set: unique tokens against row tokens, in batches as training draws them.

In: the rows of one conversation after the other. Out: two counts. A window of some thousand conversations stands in for
the whole file, so that memory stays bounded: batches are drawn at random from the window, by a fixed seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Tokens of the rows as given, and those that remain when each beginning is computed once a batch."""

    row_tokens: int
    unique_tokens: int
    batch: int
    """Conversations a batch."""

    @property
    def factor(self) -> float:
        """How many row tokens one computed token stands for; 1 where nothing is shared."""
        return self.row_tokens / self.unique_tokens if self.unique_tokens else 1.0


class SharingCount:
    """Feed it the rows of every conversation; ask for `result` at the end."""

    def __init__(self, *, batch: int = 8, window: int = 2048, most_tokens: int = 4_000_000, seed: int = 0) -> None:
        self._batch, self._window, self._most_tokens = batch, window, most_tokens
        self._random = random.Random(seed)
        self._waiting: list[list[Ids]] = []
        self._tokens = self._row_tokens = self._unique = 0

    def add(self, rows: Sequence[Ids]) -> None:
        """The inputs of all rows of one conversation."""
        self._waiting.append([row.astype(np.int32) for row in rows])
        self._tokens += sum(map(len, rows))
        while len(self._waiting) > self._window or (self._tokens > self._most_tokens and len(self._waiting) >= self._batch):
            self._draw()

    def result(self) -> Sharing:
        """The counts over everything fed."""
        while self._waiting:
            self._draw()
        return Sharing(self._row_tokens, self._unique, self._batch)

    def _draw(self) -> None:
        rows: list[Ids] = []
        for _ in range(min(self._batch, len(self._waiting))):
            place = self._random.randrange(len(self._waiting))
            self._waiting[place], self._waiting[-1] = self._waiting[-1], self._waiting[place]
            rows += self._waiting.pop()
        length = sum(map(len, rows))
        self._tokens -= length
        self._row_tokens += length
        self._unique += unique_tokens(rows)


def unique_tokens(rows: Sequence[Ids]) -> int:
    """Tokens of the prefix tree over `rows`: in sorted order, each adds what it does not share with the one before."""
    ordered = sorted(rows, key=lambda row: row.astype(">u4").tobytes())
    shared = sum(common_beginning(left, right) for left, right in itertools.pairwise(ordered))
    return sum(map(len, rows)) - shared


def common_beginning(left: Ids, right: Ids) -> int:
    """How many ids two rows have in common at their beginning."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length

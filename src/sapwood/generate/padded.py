"""The decode step whose shapes are those that are needed: rows of a padded cache that grows by blocks, and kept nodes above them.

In: places in the tree that enter. Out: logits. What lies below a row's anchor is copied into it (see `tree`). Memory is counted as so many
rows of one length, that of the longest sequence at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.generate.decode import BLOCK, DecodeAttention, OwnCache
from sapwood.generate.kept import Apart, Layers
from sapwood.generate.steps import Place
from sapwood.generate.tree import Node, Tree, anchor_of
from sapwood.model import LanguageModel
from sapwood.model.routes import Routes

Ints = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Row:
    """One running sequence."""

    place: Place
    anchor: Node | None
    """The deepest node it attends to in place; what lies below is in its row."""
    length: int = 0
    """Tokens in its row."""

    @property
    def base(self) -> int:
        """Depth of the first token in its row."""
        return 0 if self.anchor is None else self.anchor.end

    @property
    def pinned(self) -> list[Node]:
        """Nodes that it attends to in place."""
        return [] if self.anchor is None else self.anchor.path


class PaddedStep:
    """See `steps.DecodeStep`."""

    keep = staticmethod(Apart.keep)

    def __init__(
        self, model: LanguageModel, tree: Tree, routes: Routes, one_token: Layers, *, slots: int, keep_from: int, tokens: int
    ) -> None:
        """At most `slots` rows; `keep_from` is `tree.KEEP_FROM`, `tokens` what may be in memory."""
        self._model, self._tree, self._routes = model, tree, routes
        self._slots, self._keep_from, self.tokens = slots, keep_from, tokens
        self.cache = OwnCache(one_token)
        self._rows: list[_Row] = []
        self._row_count = 0
        """Rows that memory was found for."""
        self._groups: list[tuple[Node, Tensor | None]] = []

    def alone(self, length: int, limit: int) -> int:
        return length + _padded(length + limit)

    def fits(self, entering: Sequence[Place], path: set[Node]) -> bool:
        rows = len(self._rows) + len(entering)
        return self._pinned(path) + rows * self._longest(entering) <= self.tokens

    def prepare(self, entering: Sequence[Place], behind: int, path: set[Node]) -> int:
        self._row_count = self._rows_with(entering, behind, path)
        longest = self._longest(entering)
        self.cache.resize(min(self.cache.rows, self._row_count), min(self.cache.capacity, longest))  # of those that have left
        return self.tokens - self._row_count * longest

    def enter(self, places: Sequence[Place]) -> None:
        rows = [_Row(place, anchor_of(place.end, self._slots, self._keep_from)) for place in places]
        for row in rows:
            for node in row.pinned:
                node.pins += 1
        if rows:
            self._make_room(rows)
        for row in rows:
            row.length = self.cache.place(len(self._rows), [node for node in row.place.end.path if node.depth >= row.base])
            self._rows.append(row)

    def forward(self, tokens_N: Ints) -> Tensor:
        length_N = np.array([row.length for row in self._rows])
        base_N = np.array([row.base for row in self._rows])
        shift_N = np.array([row.place.prompt.shift for row in self._rows])
        self.cache.reserve(int(length_N.max()) + 1)
        device = self._model.device
        attention = DecodeAttention(self.cache, torch.from_numpy(length_N).to(device), torch.from_numpy(base_N).to(device), self._groups)
        with self._routes.of([row.place.prompt.adapter for row in self._rows]):
            logits_NV = self._model.logits(self._model.hidden(tokens_N, base_N + length_N + shift_N, attention))
        for row in self._rows:
            row.length += 1
        return logits_NV

    def leave(self, row: int) -> None:
        for node in self._rows[row].pinned:
            node.pins -= 1
        self.cache.clean(row, self._rows[row].length)
        last = self._rows.pop()
        if row < len(self._rows):
            self.cache.move(len(self._rows), row, last.length)
            self._rows[row] = last

    def regroup(self) -> None:
        """Which rows lie below which node that is attended to in place."""
        below: dict[Node, list[int]] = {}
        for index, row in enumerate(self._rows):
            for node in row.pinned:
                below.setdefault(node, []).append(index)
        everyone = len(self._rows)
        self._groups = [
            (node, None if len(rows) == everyone else torch.tensor(rows, device=self._model.device)) for node, rows in below.items()
        ]
        if not self._rows:
            self.cache.resize(0, 0)

    def _rows_with(self, entering: Sequence[Place], behind: int, path: set[Node]) -> int:
        """Rows to hold: by quarters of the slots where there is memory for it, so that they are not copied with each that enters; for those
        that wait behind as well, where nothing need leave the tree for it."""
        rows, longest = len(self._rows) + len(entering), self._longest(entering)
        everyone, quarter = min(self._slots, rows + behind), max(1, self._slots // 4)
        if self._tree.held() + everyone * longest <= self.tokens:
            rows = everyone
        more = min(self._slots, -(-rows // quarter) * quarter)
        return more if self._pinned(path) + more * longest <= self.tokens else rows

    def _pinned(self, path: set[Node]) -> int:
        """Tokens of the tree that must stay for these paths and for those that run."""
        return sum(len(node.tokens_T) for node in path.union(node for node, _ in self._groups))

    def _longest(self, entering: Sequence[Place]) -> int:
        """Tokens that a row may come to hold, padding included."""
        ends = [(row.place, row.base) for row in self._rows] + [(place, 0) for place in entering]
        return _padded(max((place.end.end - base + place.limit for place, base in ends), default=0))

    def _make_room(self, entering: Sequence[_Row]) -> None:
        """Rows for those that run and enter, of the length they have now: they grow by blocks."""
        rows = [*self._rows, *entering]
        length = max(row.length or row.place.end.end - row.base for row in rows) + 1
        longest = _padded(max(row.place.end.end - row.base + row.place.limit for row in rows))
        self.cache.resize(self._row_count, min(max(length, self.cache.capacity), longest))


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK

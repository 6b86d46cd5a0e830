"""Sequences over the tree: which may run, what is computed for them, and where their keys and values lie.

In: answers that wait. Out: the logits behind each prompt that is let in, and behind each token that was sampled. Memory is bounded: a
sequence is let in only if it fits at its greatest length beside those that run, what stays of the tree for them included; what others
left in the tree is dropped for it, oldest first. So nothing that was let in is ever sent away again.
Left out on purpose: preemption, and the activations of a forward, which `budget` bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood.generate.answer import Answer
from sapwood.generate.decode import BLOCK, DecodeAttention, OwnCache
from sapwood.generate.media import PromptInput
from sapwood.generate.prefill import compute
from sapwood.generate.tree import Layers, Node, Tree, anchor_of
from sapwood.model import LanguageModel
from sapwood.model.routes import Routes


@dataclass(slots=True, eq=False)
class _Place:
    """Where one sequence stands in the tree, and in the rows."""

    prompt: PromptInput
    end: Node
    limit: int
    """Tokens that may be sampled."""
    anchor: Node | None = None
    """The deepest node it attends to in place; what lies below is in its row."""
    length: int = 0
    """Tokens in its row."""

    @property
    def base(self) -> int:
        """Depth of the first token in its row."""
        return 0 if self.anchor is None else self.anchor.end

    @property
    def room(self) -> int:
        """Tokens its row may come to hold."""
        return self.end.end - self.base + self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What `ForestRows` may take."""

    slots: int
    """Sequences that run at a time."""
    budget: int
    """Tokens of one prefill."""
    keep_from: int
    """See `tree.KEEP_FROM`."""
    tokens: int
    """Tokens whose keys and values may be in memory, in the tree and in the rows."""


class ForestRows:
    """The running sequences of one session, over a tree that outlives it."""

    def __init__(self, model: LanguageModel, tree: Tree, routes: Routes, one_token: Layers, limits: Limits) -> None:
        self._model, self._tree, self._routes, self._limits = model, tree, routes, limits
        self.slots = limits.slots
        self.running: list[Answer] = []
        """The sequence in row i of the cache is the i-th."""
        self._cache = OwnCache(one_token)
        self._places: dict[Answer, _Place] = {}
        self._row_count = 0
        """Rows that memory was found for."""
        self._groups: list[tuple[Node, Tensor | None]] = []
        self._bytes = sum(side.nbytes for layer in one_token for side in layer)

    def refusal(self, answer: Answer) -> str | None:
        """Why a prompt can never be answered, if it cannot: alone, it would need more memory than there is."""
        length = len(answer.prompt.ids)
        need = length + _padded(length + answer.limit)
        if need <= self._limits.tokens:
            return None
        megabytes, allowed = need * self._bytes / 1e6, self._limits.tokens * self._bytes / 1e6
        return (
            f"A prompt of {length} tokens with up to {answer.limit} new ones needs {megabytes:,.1f} MB of cache, and the engine may take "
            f"{allowed:,.1f} MB. Ask for fewer new tokens, shorten the prompt, or give the engine more memory."
        )

    def plan(self, answers: Sequence[Answer]) -> list[Answer]:
        """Find each its place in the tree; returns them in an order in which what they share is computed once."""
        order: list[Answer] = []
        for adapter in dict.fromkeys(answer.adapter for answer in answers):
            some = [answer for answer in answers if answer.adapter == adapter]
            inputs = [PromptInput(answer.prompt, adapter) for answer in some]
            for index, end in self._tree.insert([prompt.keys_T for prompt in inputs], adapter):
                self._places[some[index]] = _Place(inputs[index], end, some[index].limit)
                order.append(some[index])
        self._regroup()  # nodes may have been split
        return order

    def withdraw(self, answer: Answer) -> None:
        """A waiting answer was cancelled."""
        self._tree.withdraw(self._places.pop(answer).end)

    def fits(self, answer: Answer) -> bool:
        """Is there a slot, and memory for one more sequence at its greatest length?"""
        return self._fits([answer], set(self._places[answer].end.path))

    def admit(self, waiting: Sequence[Answer]) -> tuple[list[Answer], Tensor | None]:
        """One forward for the first of those that wait; returns those whose paths are computed, and the logits (N, V) behind them."""
        entering, nodes, path = self._next(waiting)
        self._tree.touch(path)
        self._row_count = self._rows_with(entering, len(waiting) - len(entering), path)
        longest = self._longest(entering)
        self._cache.resize(min(self._cache.rows, self._row_count), min(self._cache.capacity, longest))  # of those that have left
        self._tree.evict(self._limits.tokens - self._row_count * longest - _uncomputed(nodes), keep=path)
        if nodes:
            compute(self._model, nodes, self._routes)
        if not entering:
            return [], None
        hidden = [self._places[answer].end.end_hidden_D for answer in entering]
        with self._routes.of([answer.adapter for answer in entering]):
            return entering, self._model.logits(torch.stack([state for state in hidden if state is not None]))

    def settle(self, entered: Sequence[Answer]) -> None:
        """Give each that goes on a row; the others leave."""
        stay = [answer for answer in entered if answer.ended is None]
        for answer in entered:
            if answer.ended is not None:
                self.withdraw(answer)
        for answer in stay:
            place = self._places[answer]
            place.anchor = anchor_of(place.end, self.slots, self._limits.keep_from)
            for node in [] if place.anchor is None else place.anchor.path:
                node.pins += 1
        if stay:
            self._make_room(stay)
        for answer in stay:
            place = self._places[answer]
            place.length = self._cache.place(len(self.running), [node for node in place.end.path if node.depth >= place.base])
            self.running.append(answer)
        self._regroup()

    def decode(self) -> Tensor:
        """One forward of the last token of each running sequence; returns the logits (N, V) behind it."""
        places = [self._places[answer] for answer in self.running]
        length_N = np.array([place.length for place in places])
        base_N = np.array([place.base for place in places])
        shift_N = np.array([place.prompt.shift for place in places])
        tokens_N = np.array([answer.ids[-1] for answer in self.running])
        self._cache.reserve(int(length_N.max()) + 1)
        device = self._model.device
        attention = DecodeAttention(self._cache, torch.from_numpy(length_N).to(device), torch.from_numpy(base_N).to(device), self._groups)
        with self._routes.of([answer.adapter for answer in self.running]):
            logits_NV = self._model.logits(self._model.hidden(tokens_N, base_N + length_N + shift_N, attention))
        for place in places:
            place.length += 1
        return logits_NV

    def leave(self) -> None:
        """Let ended sequences go; the last rows of the cache move into the places they leave."""
        ended = [row for row, answer in enumerate(self.running) if answer.ended is not None]
        for row in reversed(ended):
            place = self._places[self.running[row]]
            for node in [] if place.anchor is None else place.anchor.path:
                node.pins -= 1
            self.withdraw(self.running[row])
            last = self.running.pop()
            if row < len(self.running):
                self._cache.move(len(self.running), row, self._places[last].length)
                self.running[row] = last
        if ended:
            self._regroup()
        if not self.running:
            self._cache.resize(0, 0)

    def _next(self, waiting: Sequence[Answer]) -> tuple[list[Answer], dict[Node, PromptInput], set[Node]]:
        """The next sequences to let in, what to compute for them (at most `budget` tokens), and all nodes on their paths.

        A path longer than the budget is computed over several forwards; its sequence enters with the last.
        """
        entering: list[Answer] = []
        nodes: dict[Node, PromptInput] = {}
        path: set[Node] = set()
        tokens = 0
        for answer in waiting:
            place = self._places[answer]
            if not self._fits([*entering, answer], path.union(place.end.path)):
                break
            self._reopen(place.end, nodes)
            path.update(place.end.path)
            for node in place.end.path:
                if node not in nodes and (node.layers is None or (node is place.end and node.end_hidden_D is None)):
                    if nodes and tokens + len(node.tokens_T) > self._limits.budget:
                        return entering, nodes, path
                    nodes[node] = place.prompt
                    tokens += len(node.tokens_T)
            entering.append(answer)
        return entering, nodes, path

    def _reopen(self, end: Node, nodes: dict[Node, PromptInput]) -> None:
        """A prompt may end where another went on, of which the last hidden state was not kept: its last token is computed once more."""
        if end.layers is not None and end.end_hidden_D is None and end not in nodes and len(end.tokens_T) > 1:
            self._tree.split(end, len(end.tokens_T) - 1)

    def _fits(self, entering: Sequence[Answer], path: set[Node]) -> bool:
        """Is there room for these beside those that run, if all else is dropped from the tree?"""
        if len(self.running) + len(entering) > self.slots:
            return False
        rows = len(self.running) + len(entering)
        return self._pinned(path) + rows * self._longest(entering) <= self._limits.tokens

    def _rows_with(self, entering: Sequence[Answer], behind: int, path: set[Node]) -> int:
        """Rows to hold: by quarters of the slots where there is memory for it, so that they are not copied with each that enters; for those
        that wait behind as well, where nothing need leave the tree for it."""
        rows, longest = len(self.running) + len(entering), self._longest(entering)
        everyone, quarter = min(self.slots, rows + behind), max(1, self.slots // 4)
        if self._tree.held() + everyone * longest <= self._limits.tokens:
            rows = everyone
        more = min(self.slots, -(-rows // quarter) * quarter)
        return more if self._pinned(path) + more * longest <= self._limits.tokens else rows

    def _pinned(self, path: set[Node]) -> int:
        """Tokens of the tree that must stay for these paths and for those that run."""
        return sum(len(node.tokens_T) for node in path.union(node for node, _ in self._groups))

    def _longest(self, entering: Sequence[Answer]) -> int:
        """Tokens that a row may come to hold, padding included."""
        return _padded(max((self._places[answer].room for answer in (*self.running, *entering)), default=0))

    def _make_room(self, entering: Sequence[Answer]) -> None:
        """Rows for those that run and enter, of the length they have now: they grow by blocks."""
        places = [self._places[answer] for answer in (*self.running, *entering)]
        length = max(place.length or place.end.end - place.base for place in places) + 1
        self._cache.resize(self._row_count, min(max(length, self._cache.capacity), self._longest(entering)))

    def _regroup(self) -> None:
        """Which rows lie below which node that is attended to in place."""
        rows: dict[Node, list[int]] = {}
        for row, answer in enumerate(self.running):
            anchor = self._places[answer].anchor
            for node in [] if anchor is None else anchor.path:
                rows.setdefault(node, []).append(row)
        everyone = len(self.running)
        self._groups = [
            (node, None if len(below) == everyone else torch.tensor(below, device=self._model.device)) for node, below in rows.items()
        ]


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _uncomputed(nodes: dict[Node, PromptInput]) -> int:
    return sum(len(node.tokens_T) for node in nodes if node.layers is None)

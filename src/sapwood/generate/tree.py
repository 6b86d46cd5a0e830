"""Prompts in, a radix tree of nodes out: each beginning that pays is computed once for all prompts that share it, now or later.

A `Node` is a stretch of tokens and, once computed, its keys and values in every layer. The tree outlives the calls that grew it: a
prompt hangs itself below the longest beginning that is there, and splits a node where that pays. Memory is bounded by `evict`, which
drops what was used longest ago and no running sequence attends to; a node without keys is computed again when it is next needed.
Sequences that run with different adapters have different keys, so each adapter has a root of its own.

On a CPU a sequence attends to the upper part of its path in place, up to its *anchor*, and the keys and values below are copied into its
own row, because one more attention call a layer costs more than reading a short stretch several times. On a GPU all of its path stays in
place (see `static`).
The order of nodes and the meaning of "shares a beginning" are those of `sapwood.forest`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sapwood.forest import common_prefix, sort_key
from sapwood.generate.kept import Kept

Ints = NDArray[np.int64]

KEEP_FROM = 2048
"""Tokens of one node, counted once for each sequence that can run below it at a time, from which it is attended to in place.

Measured on two CPU cores: one more attention call a layer, with its join, costs as much as reading 2,000 to 3,000 tokens.
"""


@dataclass(slots=True, eq=False)
class Node:
    """A stretch of tokens of one or more prompts. A root has no tokens and no parent."""

    tokens_T: Ints
    """Its tokens, as they are compared: a medium's places hold its content's key (see `media`)."""
    depth: int
    """Tokens in front of it."""
    parent: Node | None
    children: dict[int, list[Node]] = field(default_factory=dict)
    """By their first token; several may begin alike where a node of their own would not have paid."""
    active: int = 0
    """Sequences, waiting or running, that pass through it or end in it."""
    pins: int = 0
    """Running sequences that attend to it in place."""
    used: int = 0
    """When it was last used, on the tree's clock."""
    layers: Kept | None = None
    """Its keys and values. None before it is computed and after it was evicted."""
    end_hidden_D: Tensor | None = None
    """The last hidden state of its last token, from which a prompt that ends here is continued."""

    @property
    def end(self) -> int:
        """Depth behind its last token."""
        return self.depth + len(self.tokens_T)

    @property
    def path(self) -> list[Node]:
        """Nodes from below the root down to this one."""
        found: list[Node] = []
        node = self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def hang(self, child: Node) -> None:
        """Make it a child."""
        self.children.setdefault(int(child.tokens_T[0]), []).append(child)


@dataclass(frozen=True, slots=True)
class _Branch:
    """Prompts `order[first:last]`, which agree up to the end of `parent`."""

    first: int
    last: int
    parent: Node


class Tree:
    """All nodes, below one root for each adapter."""

    def __init__(self, *, longest: int, min_saving: int) -> None:
        """Stretches over `longest` tokens are cut into several nodes. A node is made only if it saves `min_saving` tokens."""
        self._longest, self._min_saving = longest, min_saving
        self._roots: dict[str | None, Node] = {}
        self._clock = 0

    def insert(self, prompts: Sequence[Ints], adapter: str | None = None) -> list[tuple[int, Node]]:
        """(index of the prompt, node in which it ends) of all prompts, in depth-first order. No prompt may be empty.

        Each is counted as active on its path until `withdraw`.
        """
        root = self._roots.setdefault(adapter, Node(np.empty(0, dtype=np.int64), 0, None))
        order = sorted(range(len(prompts)), key=lambda index: sort_key(prompts[index]))
        below: dict[Node, list[int]] = {}
        for index in order:
            below.setdefault(self._attach(root, prompts[index]), []).append(index)
        ends: dict[int, Node] = {}
        for node, some in below.items():
            ends.update(self._grow(node, some, prompts))
        for index in order:
            for node in ends[index].path:
                node.active += 1
        return [(index, ends[index]) for index in order]

    @staticmethod
    def withdraw(end: Node) -> None:
        """A sequence that ends in this node is no longer waiting or running."""
        for node in end.path:
            node.active -= 1

    def touch(self, nodes: Collection[Node]) -> None:
        """They are in use now."""
        self._clock += 1
        for node in nodes:
            node.used = self._clock

    def split(self, node: Node, length: int) -> Node:
        """Cut a node behind its first `length` tokens; returns the upper part, which is new. The lower part stays the same object."""
        assert node.parent is not None, "a root has no tokens"
        upper = Node(node.tokens_T[:length], node.depth, node.parent, {}, node.active, node.pins, node.used)
        siblings = node.parent.children[int(node.tokens_T[0])]
        siblings[siblings.index(node)] = upper
        node.tokens_T, node.depth, node.parent = node.tokens_T[length:], node.depth + length, upper
        upper.hang(node)
        if node.layers is not None:
            upper.layers, node.layers = node.layers.split(length)
        return upper

    def held(self) -> int:
        """Tokens whose keys and values are in memory."""
        return sum(len(node.tokens_T) for node in self._nodes() if node.layers is not None)

    def evict(self, tokens: int, keep: Collection[Node] = ()) -> None:
        """Drop keys and values until at most `tokens` are held, if that is possible without those of `keep` and of pinned nodes.

        First goes what nobody waits for, then what was used longest ago, children before their parents.
        """
        excess = self.held() - tokens
        free = [node for node in self._nodes() if node.layers is not None and not node.pins and node not in keep] if excess > 0 else []
        for node in sorted(free, key=lambda node: (node.active > 0, node.used, -node.depth)):
            if excess <= 0:
                break
            excess -= len(node.tokens_T)
            assert node.layers is not None, "only nodes with keys are free"
            node.layers.drop()
            node.layers = node.end_hidden_D = None
        for root in self._roots.values():
            _prune(root)

    @property
    def pinned(self) -> bool:
        """Does any running sequence attend to a node in place?"""
        return any(node.pins for node in self._nodes())

    def _nodes(self) -> Iterator[Node]:
        left = list(self._roots.values())
        while left:
            node = left.pop()
            left.extend(itertools.chain.from_iterable(node.children.values()))
            yield node

    def _attach(self, root: Node, prompt: Ints) -> Node:
        """The node below which the prompt hangs, or in which it ends: all above it agrees. A node is split where that pays."""
        node = root
        while node.end < len(prompt):
            rest_T = prompt[node.end :]
            candidates = [(common_prefix(child.tokens_T, rest_T), child) for child in node.children.get(int(rest_T[0]), ())]
            length, child = max(candidates, key=lambda found: found[0], default=(0, node))
            if child is not node and length == len(child.tokens_T):
                node = child
                continue
            return self.split(child, length) if length >= self._min_saving else node
        return node

    def _grow(self, top: Node, order: list[int], prompts: Sequence[Ints]) -> Iterator[tuple[int, Node]]:
        """Hang the prompts `order`, which are sorted and agree up to the end of `top`, below it."""
        shared = np.array([0, *(common_prefix(prompts[a], prompts[b]) for a, b in itertools.pairwise(order))], dtype=np.int64)
        branches = [_Branch(0, len(order), top)]
        while branches:
            branch = branches.pop()
            first, last, parent = branch.first, branch.last, branch.parent
            prompt = prompts[order[first]]
            if last - first == 1:
                yield order[first], self._chain(prompt[parent.end :], parent)
                continue
            end = int(shared[first + 1 : last].min())
            if (end - parent.end) * (last - first - 1) >= self._min_saving:
                parent = self._chain(prompt[parent.end : end], parent)
            starts = [first, *(place for place in range(first + 1, last) if shared[place] == end)]
            branches.extend(_Branch(a, b, parent) for a, b in zip(starts, [*starts[1:], last], strict=True))

    def _chain(self, tokens_T: Ints, node: Node) -> Node:
        """Hang tokens below a node, in nodes of at most `longest`; the last of them, or the node itself if there are no tokens."""
        for start in range(0, len(tokens_T), self._longest):
            child = Node(tokens_T[start : start + self._longest], node.end, node)
            node.hang(child)
            node = child
        return node


def anchor_of(end: Node, slots: int, keep_from: int) -> Node | None:
    """The deepest node on the path of `end` that is worth attending to in place (see `KEEP_FROM`). At most `slots` sequences run."""
    for node in reversed(end.path):
        if node.active > 1 and min(node.active, slots) * len(node.tokens_T) >= keep_from:
            return node
    return None


def _prune(root: Node) -> None:
    """Remove nodes that hold nothing and that nobody needs."""
    order = [root]
    for node in order:
        order.extend(itertools.chain.from_iterable(node.children.values()))
    for node in reversed(order):
        for first, siblings in list(node.children.items()):
            left = [child for child in siblings if child.children or child.active or child.layers is not None]
            if left:
                node.children[first] = left
            else:
                del node.children[first]

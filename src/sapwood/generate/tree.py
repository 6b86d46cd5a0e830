"""Prompts in, a radix tree of nodes out: each beginning that pays is computed once for all prompts that share it.

A `Node` is a stretch of tokens and, once computed, its keys and values in every layer. It is mutable: it gains its keys
and values when it is computed and loses them when no sequence needs them any more. A node is `kept` if running sequences
attend to it in place; the keys and values of other nodes are copied into the cache of each sequence, because one more
attention call a layer costs more than reading a short stretch several times. What is above a kept node is kept too, so
that the rest of a sequence lies at consecutive depths.
The order of nodes and the meaning of "shares a beginning" are those of `sapwood.forest`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sapwood.forest import common_prefix, sort_key

Ints = NDArray[np.int64]
Layers = list[tuple[Tensor, Tensor]]
"""Keys (Hkv, L, K) and values (Hkv, L, K of the values) of each layer, for L tokens."""

KEEP_FROM = 2048
"""Tokens of one node, counted once for each sequence that can run below it at a time, from which it is attended to in place.

Measured on two CPU cores: one more attention call a layer, with its join, costs as much as reading 2,000 to 3,000 tokens.
"""


@dataclass(slots=True, eq=False)
class Node:
    """A stretch of tokens of one or more prompts."""

    tokens_T: Ints
    """Its tokens, as they are compared: a medium's places hold its content's key (see `media`)."""
    depth: int
    """Tokens in front of it."""
    parent: Node | None
    below: int
    """Sequences that pass through it or end in it."""
    uses: int
    """Sequences that still need its keys and values."""
    sample: int = 0
    """Index of one of the prompts that pass through it."""
    kept: bool = False
    layers: Layers | None = None
    """None before it is computed and after its last use."""
    end_hidden_D: Tensor | None = None
    """The last hidden state of its last token, from which a prompt that ends here is continued."""

    @property
    def end(self) -> int:
        """Depth behind its last token."""
        return self.depth + len(self.tokens_T)

    @property
    def path(self) -> list[Node]:
        """Nodes from the root down to this one."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def release(self) -> None:
        """One sequence needs it no more; with the last one its memory is given back."""
        self.uses -= 1
        if self.uses == 0:
            self.layers = None


@dataclass(frozen=True, slots=True)
class _Branch:
    """Prompts `order[first:last]`, which agree up to the end of `parent` (at `depth`)."""

    first: int
    last: int
    depth: int
    parent: Node | None


def grow(prompts: Sequence[Ints], *, slots: int, longest: int, min_saving: int, keep_from: int) -> list[tuple[int, Node]]:
    """(index of the prompt, node in which it ends) of all prompts, in depth-first order. No prompt may be empty.

    At most `slots` sequences run at a time. Stretches over `longest` tokens are cut into several nodes. A node is made only if
    it saves `min_saving` tokens, and kept from `keep_from` tokens on (see `KEEP_FROM`).
    """
    order = sorted(range(len(prompts)), key=lambda index: sort_key(prompts[index]))
    shared = np.array([0, *(common_prefix(prompts[a], prompts[b]) for a, b in itertools.pairwise(order))], dtype=np.int64)
    ends: list[tuple[int, Node]] = []
    branches = [_Branch(0, len(order), 0, None)] if order else []
    while branches:
        branch = branches.pop()
        first, last, parent = branch.first, branch.last, branch.parent
        prompt = prompts[order[first]]
        if last - first == 1:
            node = _chain(prompt[branch.depth :], branch, longest, order[first])
            assert node is not None, "a prompt has at least one token"
            ends.append((order[first], node))
            continue
        end = int(shared[first + 1 : last].min())
        depth = branch.depth
        if (end - depth) * (last - first - 1) >= min_saving:
            parent, depth = _chain(prompt[depth:end], branch, longest, order[first]), end
        starts = [first, *(place for place in range(first + 1, last) if shared[place] == end)]
        children = [_Branch(a, b, depth, parent) for a, b in zip(starts, [*starts[1:], last], strict=True)]
        branches.extend(reversed(children))
    for _, node in ends:
        _mark_kept(node, slots, keep_from)
    return ends


def _chain(tokens_T: Ints, branch: _Branch, longest: int, sample: int) -> Node | None:
    """Hang tokens below the branch's parent, in nodes of at most `longest`; the last node, or the parent if there are none."""
    node, below = branch.parent, branch.last - branch.first
    for start in range(0, len(tokens_T), longest):
        node = Node(tokens_T[start : start + longest], branch.depth + start, node, below, below, sample)
    return node


def _mark_kept(end: Node, slots: int, keep_from: int) -> None:
    kept = False
    for node in reversed(end.path):
        kept = kept or (node.below > 1 and min(node.below, slots) * len(node.tokens_T) >= keep_from)
        node.kept = node.kept or kept

"""Rows in, one `Forest` out.

Rows are sorted by their tokens, so that equal beginnings are neighbours; the tree then follows from the lengths
of the neighbours' common beginnings alone. Nodes come out in depth-first order: the descendants of a node lie right
behind it, which is what lets ancestor attention run on contiguous slices.
Left out on purpose: edges that share too little to pay for a kernel call of their own are not made (`min_saving`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sapwood.forest.keys import common_prefix, sort_key
from sapwood.forest.media import ForestMedia, axis_positions, gather_media, needs_axes
from sapwood.records import Row

Ints = NDArray[np.int64]

MIN_SAVING = 16
"""A branching is made only if sharing the node in front of it saves at least this many tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """All tokens of one micro-batch in one flat row of length T. M nodes, N targets, E uses."""

    tokens_T: Ints
    """Token ids; each shared token once."""
    positions_T: Ints
    """Depth of each token in its own sequence, from 0."""
    nodes_M: NDArray[np.int64]
    """(M, 3): start, end and parent of each segment; parent -1 is a root; parents stand before their children."""
    subtree_end_M: Ints
    """Place behind the last descendant of each node."""
    hidden_N: Ints
    """Place in the flat row from which a target is predicted."""
    token_N: Ints
    """The token that is predicted there; each distinct (place, next token) once."""
    target_E: Ints
    """Which target a use refers to."""
    row_E: Ints
    """Index, in the order the rows were given, of the row that uses it."""
    weight_E: NDArray[np.float32]
    """Loss weight of the use."""
    place_E: Ints
    """Position of the use in its row's completion."""
    num_rows: int
    row_tokens: int
    """Tokens of the rows as given: shared ones counted in every row, the last token of each included."""
    media: tuple[ForestMedia, ...] = ()
    """Images and sounds, each distinct one once."""
    axes_3T: Ints | None = None
    """Positions in time, height and width, where a row holds media that need them; `positions_T` stays the depth."""

    @property
    def num_tokens(self) -> int:
        """Unique tokens: the length T of the flat row."""
        return len(self.tokens_T)

    def ancestors(self, node: int) -> list[int]:
        """Nodes from the root down to the parent of `node`."""
        path: list[int] = []
        parent = int(self.nodes_M[node, 2])
        while parent >= 0:
            path.append(parent)
            parent = int(self.nodes_M[parent, 2])
        return path[::-1]


@dataclass(slots=True)
class _Branch:
    """Rows `order[first:last]`, which agree up to `depth` tokens and hang below node `parent`."""

    first: int
    last: int
    depth: int
    parent: int


def plant(rows: Sequence[Row], *, min_saving: int = MIN_SAVING, share: bool = True) -> Forest:
    """Build the forest of `rows`. `min_saving=1` shares every common token (used by tests); without `share` each row stands alone."""
    inputs = [row.keys_T for row in rows]
    order = sorted(range(len(rows)), key=lambda row: sort_key(inputs[row]))
    shared = np.zeros(len(rows), dtype=np.int64)
    if share:
        shared[1:] = [common_prefix(inputs[a], inputs[b]) for a, b in itertools.pairwise(order)]

    nodes: list[tuple[int, int, int]] = []
    depths: list[int] = []
    tokens: list[Ints] = []
    axes = [axis_positions(len(row.inputs_T), row.media) for row in rows] if needs_axes(rows) else None
    axes_of_nodes: list[Ints] = []
    node_of_row = np.full(len(rows), -1, dtype=np.int64)
    length = 0
    branches = [_Branch(0, len(rows), 0, -1)] if rows else []
    while branches:
        branch = branches.pop()
        end, children = _follow(branch, [len(inputs[row]) for row in order], shared)
        if children and (end - branch.depth) * (len(children) - 1) < min_saving:
            # too little is shared: each child carries this beginning itself; rows that end here follow the first child
            children[0].first = branch.first
            node = branch.parent
            for child in children:
                child.depth = branch.depth
        else:
            node = len(nodes)
            longest = order[branch.last - 1]
            nodes.append((length, length + end - branch.depth, branch.parent))
            depths.append(branch.depth)
            tokens.append(rows[longest].inputs_T[branch.depth : end])
            if axes is not None:
                axes_of_nodes.append(axes[longest][:, branch.depth : end])
            length += end - branch.depth
            for place in range(branch.first, children[0].first if children else branch.last):
                node_of_row[order[place]] = node
        for child in reversed(children):
            child.parent = node
            branches.append(child)

    nodes_M = np.array(nodes, dtype=np.int64).reshape(-1, 3)
    hidden_N, token_N, target_E = _targets(rows, node_of_row, nodes_M)
    media = [(row, int(node)) for row, node in zip(rows, node_of_row, strict=True) if row.media]
    return Forest(
        tokens_T=_flat(tokens),
        positions_T=_flat([np.arange(depth, depth + end - start) for depth, (start, end, _) in zip(depths, nodes, strict=True)]),
        nodes_M=nodes_M,
        subtree_end_M=_subtree_ends(nodes_M),
        hidden_N=hidden_N,
        token_N=token_N,
        target_E=target_E,
        row_E=np.repeat(np.arange(len(rows)), [len(row.completion_T) for row in rows]),
        weight_E=np.concatenate([np.empty(0, np.float32), *(row.weights_T for row in rows)]),
        place_E=_flat([np.arange(len(row.completion_T)) for row in rows]),
        num_rows=len(rows),
        row_tokens=sum(row.length for row in rows),
        media=gather_media([row for row, _ in media], (_places(node, nodes_M) for _, node in media)),
        axes_3T=None if axes is None else np.concatenate(axes_of_nodes, axis=1),
    )


def _flat(parts: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _follow(branch: _Branch, lengths: list[int], shared: Ints) -> tuple[int, list[_Branch]]:
    """Where the common path of a branch ends, and the branches that part there (none: the path just ends)."""
    first, last = branch.first, branch.last
    while True:
        if last - first == 1:
            return lengths[first], []
        end = int(shared[first + 1 : last].min())
        while first < last and lengths[first] == end:
            first += 1  # rows that end on the path itself: what sorts first is what is shortest
        if first == last:
            return end, []
        starts = [first, *(place for place in range(first + 1, last) if shared[place] == end)]
        if len(starts) > 1:
            return end, [_Branch(a, b, end, -1) for a, b in zip(starts, [*starts[1:], last], strict=True)]
        # one continuation only: the path goes on


def _subtree_ends(nodes_M: NDArray[np.int64]) -> Ints:
    ends = nodes_M[:, 1].copy()
    for node in range(len(nodes_M) - 1, -1, -1):
        parent = nodes_M[node, 2]
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[node])
    return ends


def _targets(rows: Sequence[Row], node_of_row: Ints, nodes_M: NDArray[np.int64]) -> tuple[Ints, Ints, Ints]:
    """Targets (place and next token, each pair once) and the target of each use, rows in order."""
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for index, row in enumerate(rows):
        begin = len(row.prompt_T) - 1
        places_T = _places(int(node_of_row[index]), nodes_M)[begin : begin + len(row.completion_T)]
        pairs.append(np.stack([places_T, row.completion_T], axis=1))
    distinct, target_E = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    return np.ascontiguousarray(distinct[:, 0]), np.ascontiguousarray(distinct[:, 1]), target_E.reshape(-1).astype(np.int64)


def _places(node: int, nodes_M: NDArray[np.int64]) -> Ints:
    """Places in the flat row of the path from the root through `node`, by depth."""
    segments = []
    while node >= 0:
        start, end, node = (int(value) for value in nodes_M[node])
        segments.append(np.arange(start, end))
    return np.concatenate(segments[::-1])

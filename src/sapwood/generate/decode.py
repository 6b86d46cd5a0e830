"""One token for each running sequence: the attention of a decode step.

Each sequence has a row of a padded cache for what belongs to it alone (its own end of the prompt, and what it sampled).
A layer attends to that cache in one call for all sequences, and to each kept node in one product for all sequences below it;
the parts are joined by log-sum-exp. On a CPU all of it is one call of a kernel of our own where it serves (`sapwood.kernels`): torch's
operator pads each sequence to the longest, and makes a matrix product of every few queries.
Query heads that share a key head are stacked as queries of that head, so nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sapwood import kernels
from sapwood.attention.interface import LayerCall
from sapwood.generate.kept import Kept, Layers
from sapwood.generate.parts import Sight, attend_part, drain_into_sinks, join, sees, within
from sapwood.generate.tree import Node

BLOCK = 128
"""Tokens by which the cache grows."""

WIDTHS = frozenset(16 * registers for registers in (1, 2, 3, 4, 5, 6, 8, 12, 16))
"""Heads that the kernel serves."""


class OwnCache:
    """Padded keys and values of running sequences: rows [0, n) are in use, one a sequence."""

    def __init__(self, one_token: Layers) -> None:
        """`one_token` holds the keys and values of one token, for their shapes and types."""
        self.keys = [key.new_zeros((0, key.shape[0], 0, key.shape[2])) for key, _ in one_token]
        """(slots, Hkv, S, K) of each layer."""
        self.values = [value.new_zeros((0, value.shape[0], 0, value.shape[2])) for _, value in one_token]
        self.rows = 0
        """Sequences that fit without growing."""
        self.capacity = 0
        """S: the longest sequence that fits without growing."""

    def resize(self, rows: int, length: int) -> None:
        """Hold so many sequences of this length, rounded up to a block. What is masked out must be finite: blocks are zeroed."""
        capacity = -(-length // BLOCK) * BLOCK
        if (rows, capacity) == (self.rows, self.capacity):
            return
        both = slice(min(rows, self.rows)), slice(None), slice(min(capacity, self.capacity))
        for side in (self.keys, self.values):
            for layer, old in enumerate(side):
                side[layer] = old.new_zeros((rows, old.shape[1], capacity, old.shape[3]))
                side[layer][both] = old[both]
        self.rows, self.capacity = rows, capacity

    def reserve(self, length: int) -> None:
        """Make room for sequences of this length."""
        if length > self.capacity:
            self.resize(self.rows, length)

    def place(self, row: int, nodes: Sequence[Node]) -> int:
        """Copy the nodes into a row, one behind the other, where there is room for them; returns their length."""
        length = 0
        for node in nodes:
            assert node.layers is not None, "a node is computed before it is copied"
            end = length + len(node.tokens_T)
            for layer in range(len(self.keys)):
                self.keys[layer][row, :, length:end], self.values[layer][row, :, length:end] = node.layers[layer]
            length = end
        return length

    def clean(self, row: int, length: int) -> None:
        """Zero a row whose numbers broke: who gets it next weighs what is left in it with 0, and 0 · NaN is NaN.

        What breaks in any layer has reached the last one, whose values for the last of `length` tokens are looked at.
        """
        if length and not bool(torch.isfinite(self.values[-1][row, :, length - 1]).all()):
            for side in (*self.keys, *self.values):
                side[row] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row over another."""
        for side in (*self.keys, *self.values):
            side[target, :, :length] = side[source, :, :length]


class DecodeAttention:
    """The keyword `forest` of one decode step of n sequences, which hold the first n rows of the cache.

    `length_N` are the tokens in each row before the step, `base_N` the depth of each row's first token. `groups` are kept
    nodes, each with the rows of the sequences below it (None: all of them).
    """

    def __init__(self, cache: OwnCache, length_N: Tensor, base_N: Tensor, groups: Sequence[tuple[Node, Tensor | None]]) -> None:
        self._cache = cache
        self._length_N, self._depth_N = length_N, base_N + length_N
        self._groups = groups
        self._row_N = torch.arange(len(length_N), device=length_N.device)
        self._span = int(length_N.max()) + 1
        self._uniform = int(length_N.min()) + 1 == self._span
        self._deepest = int(self._depth_N.max())
        self._own: dict[int | None, Sight | None] = {}
        self._above: dict[tuple[int, int], Sight | bool] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        """(1, H, N, K) and keys and values of the new tokens → (1, N, H, K of the values)."""
        _, heads, num, width = query.shape
        kv_heads = key.shape[1]
        keys, values = self._cache.keys[call.layer], self._cache.values[call.layer]
        grouped = query[0].view(kv_heads, heads // kv_heads, num, width).permute(2, 0, 1, 3)  # (N, Hkv, G, K)
        groups = list(enumerate(self._groups))
        if (kernel := _kernel(query, key, value, call)) is not None:
            fully = [self._node_sight(index, *group, grouped, call) is True for index, group in groups]
            whole = [group for (_, group), all_of_it in zip(groups, fully, strict=True) if all_of_it]
            groups = [group for group, all_of_it in zip(groups, fully, strict=True) if not all_of_it]
            layers = [_layers(node)[call.layer] for node, _ in whole]
            above = [side[0] for side in layers], [side[1] for side in layers], [self._row_N if rows is None else rows for _, rows in whole]
            own = query[0], key[0], value[0], keys, values, self._length_N, call.window or 0, call.scale
            flat, flat_lse = kernel(*own, *above)
            out, lse = flat.view(num, kv_heads, -1, width), flat_lse.view(num, kv_heads, -1)
        else:
            keys[self._row_N, :, self._length_N] = key[0].transpose(0, 1)
            values[self._row_N, :, self._length_N] = value[0].transpose(0, 1)
            seen = keys[:num, :, : self._span], values[:num, :, : self._span]
            out, lse = attend_part(grouped, *seen, call, sight=self._own_sight(call, query.dtype))
        if groups or call.sinks_H is not None:
            out = out.to(torch.promote_types(out.dtype, torch.float32))
            for index, (node, rows) in groups:
                self._join_node(index, node, rows, grouped, out, lse, call)
            if call.sinks_H is not None:
                drain_into_sinks(out, lse, call.sinks_H.view(1, kv_heads, -1))
        return out.to(query.dtype).reshape(1, num, heads, -1)

    def _own_sight(self, call: LayerCall, dtype: torch.dtype) -> Sight | None:
        window = call.window if call.window is not None and self._deepest >= call.window else None
        if window not in self._own:
            if self._uniform and window is None:
                self._own[window] = None
            else:
                distance_NS = self._length_N[:, None] - torch.arange(self._span, device=self._length_N.device)[None, :]
                visible = distance_NS >= 0
                if window is not None:
                    visible &= distance_NS < window
                self._own[window] = sees(visible[:, None], dtype)
        return self._own[window]

    def _join_node(self, index: int, node: Node, rows: Tensor | None, grouped: Tensor, out: Tensor, lse: Tensor, call: LayerCall) -> None:
        """Attend to one kept node and join the result into `out` (N, Hkv, G, K) and `lse` (N, Hkv, G)."""
        sight = self._node_sight(index, node, rows, grouped, call)
        if sight is False:
            return
        key, value = (part[None] for part in _layers(node)[call.layer])
        mine = grouped if rows is None else grouped[rows]
        num, kv_heads, groups, _ = mine.shape
        stacked = mine.transpose(0, 1).reshape(1, kv_heads, num * groups, -1)
        part, part_lse = attend_part(stacked, key, value, call, sight=sight if isinstance(sight, Sight) else None)
        part = part.view(kv_heads, num, groups, -1).transpose(0, 1)
        part_lse = part_lse.view(kv_heads, num, groups).transpose(0, 1)
        if rows is None:
            join(out, lse, part, part_lse)
        else:
            sums, sums_lse = out[rows], lse[rows]
            join(sums, sums_lse, part, part_lse)
            out[rows], lse[rows] = sums, sums_lse

    def _node_sight(self, index: int, node: Node, rows: Tensor | None, grouped: Tensor, call: LayerCall) -> Sight | bool:
        """What the sequences below a node see of it: True is everything, False is nothing."""
        if call.window is None:
            return True
        name = (index, call.window)
        if name not in self._above:
            depth_Q = (self._depth_N if rows is None else self._depth_N[rows]).repeat_interleave(grouped.shape[2])
            visible = within(call.window, depth_Q, node.depth, len(node.tokens_T))
            if visible is None:
                self._above[name] = True
            else:
                self._above[name] = sees(visible[None], grouped.dtype) if bool(visible.any()) else False
        return self._above[name]


def _layers(node: Node) -> Kept:
    assert node.layers is not None, "a kept node lives as long as a sequence below it"
    return node.layers


def _kernel(query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What attends to the rows at once and writes into them, where it serves."""
    served = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float32) and call.softcap is None
    side_by_side = all(part.stride(-1) == 1 and part.shape[-1] == query.shape[-1] for part in (query, key, value))
    if not (served and side_by_side and query.shape[-1] in WIDTHS):
        return None
    found = kernels.cpu_kernels()
    return None if found is None else found.decode_attention

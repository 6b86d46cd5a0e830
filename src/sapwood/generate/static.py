"""The decode step whose shapes are few: rows filled up to a bucket, a table of slots a row, nothing that moves. It can be a CUDA graph.

    table (B, S) int32   the slots of a row's tokens, all of its path in the tree and its own: column = depth
    write                 the new token's slot into the table, its keys and values into the arena
    attend                to the S slots that are gathered, under a mask made of the lengths

In: places in the tree that enter. Out: logits. What rows share is shared by its slots: nothing is copied when a sequence enters, and
nothing when it leaves. B and S are taken from few sizes (`Bucket`), so that few shapes ever run. What a step is told (tokens, positions,
lengths, slots, adapters) lies in one small tensor that is written in one copy; it asks nothing of the host.
Why a gather and not a kernel that reads slots in place: docs/generation.md, "On a GPU".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from sapwood.attention.interface import LayerCall
from sapwood.generate.arena import NOTHING, PADDING, Arena, Slots
from sapwood.generate.capture import Graphs
from sapwood.generate.crossing import onto
from sapwood.generate.kept import Layers
from sapwood.generate.parts import BACKENDS, Sight, attend_written, drain_into_sinks
from sapwood.generate.steps import Place
from sapwood.generate.tree import Node, Tree
from sapwood.model import LanguageModel
from sapwood.model.routes import Routes

Ints = NDArray[np.int64]

NARROWEST = 256
"""Columns of the narrowest table."""

ALIGNED = 16
"""Tables are as wide as a multiple of this: a GPU's kernel would copy other masks to make them so."""


class Bucket(NamedTuple):
    """All that the kernels of a step depend on, but for the content of tensors."""

    rows: int
    width: int
    adapters: tuple[str | None, ...]
    """Those that run in it, in an order of their own (see `model.routes`)."""


class StaticMemory:
    """What the static steps of one engine read and write, at addresses that stay. Made of no memory until the first step."""

    def __init__(self, one_token: Layers, device: torch.device, *, slots: int, tokens: int, longest: int | None) -> None:
        """At most `slots` sequences of at most `longest` tokens (None: as many as fit), `tokens` in all."""
        self.arena = Arena(one_token, tokens)
        self.graphs = Graphs(device)
        self.device, self.slots, self._longest = device, slots, longest
        self.holder: object = None
        """Whose rows the table holds."""
        self.claims: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        """Tokens that cannot be had while each session's sequences run."""
        self.numbers_5B = self.table_BS = torch.empty(0)
        """Token, position, length, slot and adapter of each row; the slots of its tokens."""

    def ready(self) -> None:
        """Make the tensors, if they are not there."""
        if not len(self.table_BS):
            width = self.arena.tokens if self._longest is None else min(self._longest, self.arena.tokens)
            width = -(-width // ALIGNED) * ALIGNED
            with torch.inference_mode(False):
                self.numbers_5B = torch.zeros((5, self.slots), dtype=torch.int64, device=self.device)
                self.table_BS = torch.zeros((self.slots, width), dtype=torch.int32, device=self.device)

    def release(self) -> None:
        """Give all memory back. No sequence may run, and no node hold slots."""
        self.graphs.drop()
        self.arena.release()
        self.numbers_5B = self.table_BS = torch.empty(0)
        self.holder = None


@dataclass(slots=True, eq=False)
class _Row:
    """One running sequence."""

    place: Place
    slots_L: Ints
    """Of all tokens that it may come to hold."""
    length: int
    """Tokens it holds."""


class StaticStep:
    """See `steps.DecodeStep`."""

    def __init__(self, model: LanguageModel, tree: Tree, routes: Routes, memory: StaticMemory) -> None:
        self._model, self._tree, self._routes, self._memory = model, tree, routes, memory
        self.keep = memory.arena.keep
        self._rows: list[_Row] = []
        self._stale: set[int] = set()
        """Rows that the table does not hold yet."""

    @property
    def tokens(self) -> int:
        return self._memory.arena.tokens

    def alone(self, length: int, limit: int) -> int:
        return length + limit

    def fits(self, entering: Sequence[Place], path: set[Node]) -> bool:
        claims = self._memory.claims.items()
        others = sum(claim for step, claim in claims if step is not self)
        return self._claim(path) + sum(place.limit for place in entering) + others <= self.tokens

    def prepare(self, entering: Sequence[Place], behind: int, path: set[Node]) -> int:
        arena = self._memory.arena
        in_rows = arena.tokens - arena.free - self._tree.held() if arena.keys else 0
        return self.tokens - in_rows - sum(place.limit for place in entering)

    def enter(self, places: Sequence[Place]) -> None:
        for place in places:
            slots: list[Ints] = []
            for node in place.end.path:
                assert isinstance(node.layers, Slots), "a path is computed, into the arena, before its sequence runs"
                node.pins += 1
                slots.append(node.layers.slots_L)
            slots.append(self._memory.arena.take(place.limit))
            self._stale.add(len(self._rows))
            self._rows.append(_Row(place, np.concatenate(slots), place.end.end))
        self._memory.claims[self] = self._claim(set())

    def regroup(self) -> None:
        """Nodes that are split keep their slots."""

    def forward(self, tokens_N: Ints) -> Tensor:
        memory, num = self._memory, len(self._rows)
        memory.ready()
        adapters = [row.place.prompt.adapter for row in self._rows]
        kinds = tuple(sorted(set(adapters), key=lambda name: (name is not None, name)))
        longest = max(row.length for row in self._rows) + 1
        bucket = Bucket(_bucket(num, 1, memory.slots), _bucket(longest, NARROWEST, memory.table_BS.shape[1]), kinds)
        if memory.holder is not self:
            memory.holder, self._stale = self, set(range(num))
        if self._stale:
            self._write_table(sorted(self._stale), bucket.width)
        numbers_5B = np.zeros((5, memory.slots), dtype=np.int64)
        numbers_5B[3] = PADDING
        for index, row in enumerate(self._rows):
            position, slot = row.length + row.place.prompt.shift, row.slots_L[row.length]
            numbers_5B[:, index] = tokens_N[index], position, row.length, slot, kinds.index(adapters[index])
            row.length += 1
        memory.numbers_5B.copy_(onto(memory.device, numbers_5B))
        return memory.graphs.run(bucket, partial(self._compute, bucket))[:num]

    def leave(self, row: int) -> None:
        left = self._rows[row]
        for node in left.place.end.path:
            node.pins -= 1
        self._memory.arena.give(left.slots_L[left.place.end.end :])
        last = self._rows.pop()
        self._stale.discard(len(self._rows))
        if row < len(self._rows):
            self._rows[row] = last
            self._stale.add(row)
        self._memory.claims[self] = self._claim(set())

    def _claim(self, path: set[Node]) -> int:
        """Tokens that cannot be had while these rows run: those of this path, of their own paths, and their own."""
        held = path.union(*(row.place.end.path for row in self._rows))
        return sum(len(node.tokens_T) for node in held) + sum(row.place.limit for row in self._rows)

    def _write_table(self, stale: Sequence[int], width: int) -> None:
        """Whole rows, so that nothing is left of who held them before."""
        table_BS, device = self._memory.table_BS, self._memory.device
        slots_NS = np.full((len(stale), width), NOTHING, dtype=np.int32)
        for index, row in enumerate(stale):
            slots_NS[index, : self._rows[row].length] = self._rows[row].slots_L[: self._rows[row].length]
        rows_N = onto(device, np.array(stale))
        table_BS.index_fill_(0, rows_N, NOTHING)
        table_BS[:, :width].index_copy_(0, rows_N, onto(device, slots_NS))
        self._stale.clear()

    def _compute(self, bucket: Bucket) -> Tensor:
        """Logits (B, V): all that a graph holds. Reads and writes tensors of `StaticMemory` and of the model alone, and may run again."""
        token_B, position_B, length_B, slot_B, kind_B = self._memory.numbers_5B[:, : bucket.rows]
        table_BS = self._memory.table_BS[: bucket.rows, : bucket.width]
        table_BS.scatter_(1, length_B[:, None], slot_B[:, None].to(table_BS.dtype))
        attention = StaticAttention(self._memory.arena, table_BS, length_B, slot_B)
        one = len(bucket.adapters) == 1
        masks = {name: None if one else kind_B == index for index, name in enumerate(bucket.adapters)}
        with self._routes.masked(masks), sdpa_kernel(BACKENDS):
            return self._model.logits(self._model.hidden(token_B, position_B, attention))


class StaticAttention:
    """The keyword `forest` of a static step: B rows to the S slots of a table each."""

    def __init__(self, arena: Arena, table_BS: Tensor, length_B: Tensor, slot_B: Tensor) -> None:
        """`length_B` tokens lie before each new one, whose slot is `slot_B`."""
        self._arena, self._slot_B = arena, slot_B
        self._slots_N = table_BS.flatten()
        self._distance_BS = length_B[:, None] - torch.arange(table_BS.shape[1], device=length_B.device)
        self._masks: dict[tuple[int | None, int, torch.dtype], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        """(1, H, B, K) and keys and values of the new tokens → (1, B, H, K of the values)."""
        keys, values = self._arena.keys[call.layer], self._arena.values[call.layer]
        keys.index_copy_(1, self._slot_B, key[0])
        values.index_copy_(1, self._slot_B, value[0])
        kv_heads, (rows, width) = len(keys), self._distance_BS.shape
        all_keys, all_values = (side.index_select(1, self._slots_N).view(kv_heads, rows, width, -1) for side in (keys, values))
        grouped = query[0].view(kv_heads, -1, rows, query.shape[-1]).transpose(1, 2)  # (Hkv, B, G, K): each key is read once for its group
        out = self._attend(grouped, all_keys, all_values, call)
        return out.transpose(0, 1).reshape(1, rows, query.shape[1], -1)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, call: LayerCall) -> Tensor:
        """(Hkv, B, G, K) × (Hkv, B, S, K) → (Hkv, B, G, K of the values). torch's own operator, but for soft caps and sinks."""
        if call.softcap is None and call.sinks_H is None:
            mask = self._mask(call.window, query.shape[2], query.dtype)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=call.scale)
        wide = torch.promote_types(query.dtype, torch.float32)  # scores in bf16 would be rounded before they are capped
        sight = Sight(self._mask(call.window, query.shape[2], wide), None)
        out, lse = attend_written(query.to(wide), keys.to(wide), values.to(wide), call, sight=sight)
        if call.sinks_H is not None:
            drain_into_sinks(out, lse, call.sinks_H.view(len(query), 1, -1))
        return out.to(values.dtype)

    def _mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """(1, B, G, S), added to the scores: a token sees itself, and what is before it and less than `window` above it."""
        name = (window, groups, dtype)
        if name not in self._masks:
            hidden_BS = self._distance_BS < 0
            if window is not None:
                hidden_BS = hidden_BS | (self._distance_BS >= window)
            zeros_BGS = torch.zeros((len(hidden_BS), groups, hidden_BS.shape[1]), dtype=dtype, device=hidden_BS.device)
            self._masks[name] = zeros_BGS.masked_fill_(hidden_BS[:, None], float("-inf"))[None]
        return self._masks[name]


def _bucket(count: int, least: int, most: int) -> int:
    """The smallest of least, 2 · least, 4 · least, … and `most` that holds the count."""
    size = least
    while size < count:
        size *= 2
    return min(size, most)

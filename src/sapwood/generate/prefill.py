"""Nodes of the prompts in, their keys and values and last hidden states out: one forward for many nodes.

The new nodes lie in one flat row in depth-first order. Each attends causally inside itself, and to each of its ancestors:
new ones by a slice of the row, computed ones by their stored keys and values. In bf16 on a CPU the kernel that training uses goes through
all of that at once, where it serves (`sapwood.kernels`); elsewhere the parts are computed one by one and joined by log-sum-exp. On a GPU
all of it is one call under a mask (`masked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sapwood import kernels
from sapwood.attention.interface import LayerCall
from sapwood.generate.kept import Store
from sapwood.generate.masked import MaskedPrefill, in_one_call, record
from sapwood.generate.media import Stretches, adapters_of, media_of, positions_of, tokens_of
from sapwood.generate.parts import Sight, attend_part, drain_into_sinks, join, sees, within
from sapwood.generate.tree import Node
from sapwood.model import LanguageModel
from sapwood.model.routes import Routes


def compute(model: LanguageModel, stretches: Stretches, routes: Routes, store: Store) -> None:
    """Give each node its layers, if it has none, and its last hidden state. Every ancestor is among the nodes or computed already."""
    stretches = _depth_first(stretches)
    nodes = list(stretches)
    attention = MaskedPrefill(nodes, model.device) if in_one_call(model.device) else PrefillAttention(nodes, model.device)
    with routes.of(adapters_of(stretches)):
        hidden_TD = model.hidden(tokens_of(stretches), positions_of(stretches), attention, media_of(stretches))
    new = [node for node in nodes if node.layers is None]
    if new:
        found = store.keep([attention.found[layer] for layer in sorted(attention.found)], [attention.places[node] for node in new])
        for node, layers in zip(new, found, strict=True):
            node.layers = layers
    for node in nodes:
        node.end_hidden_D = hidden_TD[attention.places[node][1] - 1].clone()


def _depth_first(stretches: Stretches) -> Stretches:
    """Parents first, and all below one node side by side: those below it may have come at different times, with others between."""
    seen: dict[Node, int] = {}
    for node in stretches:
        for ancestor in node.path:
            seen.setdefault(ancestor, len(seen))
    return {node: stretches[node] for node in sorted(stretches, key=lambda node: [seen[ancestor] for ancestor in node.path])}


@dataclass(frozen=True, slots=True)
class _Reach:
    """The queries [start, end) of the flat row: those that lie below `ancestor`, and no others."""

    ancestor: Node
    start: int
    end: int


class PrefillAttention:
    """The keyword `forest` of a prefill. Records every layer's keys and values in `found`."""

    def __init__(self, nodes: Sequence[Node], device: torch.device) -> None:
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys (Hkv, T, K) and values of the flat row, by layer."""
        self.places: dict[Node, tuple[int, int]] = {}
        """Start and end of each new node in the flat row."""
        self._depth_T = torch.from_numpy(np.concatenate([np.arange(node.depth, node.end) for node in nodes])).to(device)
        self._sights: dict[tuple[int, int | None], Sight | None] = {}
        start = 0
        reaches: dict[Node, _Reach] = {}
        for node in nodes:
            end = start + len(node.tokens_T)
            self.places[node] = (start, end)
            for ancestor in node.path[:-1]:
                begun = reaches.get(ancestor)
                reaches[ancestor] = _Reach(ancestor, begun.start if begun else start, end)
            start = end
        self._reaches = list(reaches.values())
        self._deepest = max(node.end for node in nodes)
        self._behind = [reach.ancestor for reach in self._reaches if reach.ancestor not in self.places]
        """Ancestors that were computed before; their keys stand behind those of the row."""
        self._parts_P5 = self._parts(start)

    def _parts(self, length: int) -> Tensor:
        """What the kernel goes through: of each part, its queries, its keys, and whether it is causal."""
        places = dict(self.places)
        for ancestor in self._behind:
            places[ancestor] = length, length + len(ancestor.tokens_T)
            length += len(ancestor.tokens_T)
        own = [(*place, *place, 1) for place in self.places.values()]
        return torch.tensor([*own, *((reach.start, reach.end, *places[reach.ancestor], 0) for reach in self._reaches)])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        """(1, H, T, K) → (1, T, H, K of the values)."""
        record(self.found, key, value, call)
        if (kernel := self._kernel(query, key, value, call)) is not None:
            behind = [ancestor.layers[call.layer] for ancestor in self._behind if ancestor.layers is not None]
            keys, values = key[0], value[0]
            if behind:
                keys, values = (torch.cat([mine, *stored], 1) for mine, *stored in zip((keys, values), *behind, strict=True))
            return kernel(query[0], keys, values, self._parts_P5, call.scale)[0].transpose(0, 1)[None]
        wide = torch.promote_types(query.dtype, torch.float32)
        joins = bool(self._reaches) or call.sinks_H is not None
        sums = query.new_empty((1, query.shape[2], query.shape[1], value.shape[-1]), dtype=wide if joins else query.dtype).transpose(1, 2)
        lse_BHT = query.new_empty(query.shape[:3], dtype=wide)
        for index, (start, end) in enumerate(self.places.values()):
            sight = self._inside(index, start, end, call, query.dtype)
            here = slice(start, end)
            sums[:, :, here], lse_BHT[:, :, here] = attend_part(
                query[:, :, here], key[:, :, here], value[:, :, here], call, causal=sight is None, sight=sight
            )
        for index, reach in enumerate(self._reaches):
            part = self._above(index, reach, query, key, value, call)
            if part is not None:
                join(sums[:, :, reach.start : reach.end], lse_BHT[:, :, reach.start : reach.end], *part)
        if call.sinks_H is not None:
            drain_into_sinks(sums, lse_BHT, call.sinks_H.view(1, -1, 1))
        return sums.transpose(1, 2).to(query.dtype)

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """What attends to everything at once, where it serves."""
        plain = call.softcap is None and call.sinks_H is None and (call.window is None or self._deepest <= call.window)
        heads = query.shape[-1] == key.shape[-1] == value.shape[-1] and query.shape[-1] % 32 == 0
        if not (plain and heads and all(side.stride(-1) == 1 for side in (query, key, value))):
            return None
        found = kernels.serves(query, key, value)
        return None if found is None else found.tree_forward

    def _inside(self, index: int, start: int, end: int, call: LayerCall, dtype: torch.dtype) -> Sight | None:
        """What a node's tokens see of their own node; None is plainly causal."""
        if call.window is None or end - start <= call.window:
            return None
        name = (index, call.window)
        if name not in self._sights:
            above = torch.arange(end - start, device=self._depth_T.device)
            distance = above[:, None] - above[None, :]
            self._sights[name] = sees(((distance >= 0) & (distance < call.window))[None], dtype)
        return self._sights[name]

    def _above(self, index: int, reach: _Reach, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> tuple[Tensor, Tensor] | None:
        """The part of one ancestor; None if it is out of reach."""
        ancestor, here = reach.ancestor, slice(reach.start, reach.end)
        sight = None
        if call.window is not None:
            depth_Q = self._depth_T[here]
            if int(depth_Q.min()) - (ancestor.end - 1) >= call.window:
                return None
            name = (-1 - index, call.window)
            if name not in self._sights:
                visible = within(call.window, depth_Q, ancestor.depth, len(ancestor.tokens_T))
                self._sights[name] = None if visible is None else sees(visible[None], query.dtype)
            sight = self._sights[name]
        if ancestor in self.places:
            start, end = self.places[ancestor]
            keys, values = key[:, :, start:end], value[:, :, start:end]
        else:
            assert ancestor.layers is not None, "an ancestor is computed before its descendants and kept for them"
            keys, values = (part[None] for part in ancestor.layers[call.layer])
        return attend_part(query[:, :, here], keys, values, call, sight=sight)

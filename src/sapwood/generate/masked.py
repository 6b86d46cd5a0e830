"""A prefill on a GPU: all nodes and all their ancestors in one attention call a layer, under a mask of who sees whom.

In and out as in `prefill`. Scores that are masked out are computed in vain. On a CPU that would be most of the work, so there each node is
attended to by itself; on a GPU it is less than the launches that it saves. The mask is made on the device, of a few numbers a node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from sapwood.attention.interface import LayerCall
from sapwood.errors import ModelError
from sapwood.generate.crossing import onto
from sapwood.generate.parts import BACKENDS, Sight, attend_written, drain_into_sinks
from sapwood.generate.tree import Node


def in_one_call(device: torch.device) -> bool:
    """Is that the way of this device?"""
    return device.type != "cpu"


def record(found: dict[int, tuple[Tensor, Tensor]], key: Tensor, value: Tensor, call: LayerCall) -> None:
    """Note a layer's keys and values. Raises `ModelError` for a second layer of that number."""
    if call.layer in found:
        raise ModelError(
            f"Two attention layers of this model call themselves layer {call.layer}, so their keys cannot be told apart. "
            "Choose a model whose layers are numbered."
        )
    found[call.layer] = (key[0], value[0])


class MaskedPrefill:
    """The keyword `forest` of a prefill. Records every layer's keys and values in `found`."""

    def __init__(self, nodes: Sequence[Node], device: torch.device) -> None:
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys (Hkv, T, K) and values of the flat row, by layer."""
        ends = np.cumsum([len(node.tokens_T) for node in nodes]).tolist()
        self.places = dict(zip(nodes, zip([0, *ends[:-1]], ends, strict=True), strict=True))
        """Start and end of each new node in the flat row."""
        self._behind = list(dict.fromkeys(above for node in nodes for above in node.path if above not in self.places))
        """Ancestors that were computed before; their keys stand behind those of the row."""
        order = {node: index for index, node in enumerate([*nodes, *self._behind])}
        related_MN = np.zeros((len(nodes), len(order)), dtype=np.bool_)
        for index, node in enumerate(nodes):
            related_MN[index, [order[above] for above in node.path]] = True
        node_S = np.concatenate([np.full(len(node.tokens_T), index) for node, index in order.items()])
        depth_S = onto(device, np.concatenate([np.arange(node.depth, node.end, dtype=np.int32) for node in order]))
        self._distance_TS = depth_S[: ends[-1], None] - depth_S
        places_S = onto(device, node_S)
        self._visible_TS = onto(device, related_MN)[places_S[: ends[-1], None], places_S] & (self._distance_TS >= 0)
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        """(1, H, T, K) → (1, T, H, K of the values)."""
        record(self.found, key, value, call)
        behind = [above.layers[call.layer] for above in self._behind if above.layers is not None]
        keys, values = (torch.cat([mine, *stored], 1) for mine, *stored in zip((key[0], value[0]), *behind, strict=True))
        if call.softcap is not None or call.sinks_H is not None:
            return self._written(query, keys, values, call)
        grouped = query[0].view(len(keys), -1, *query.shape[2:])  # (Hkv, G, T, K)
        keys, values = (side[:, None].expand(-1, grouped.shape[1], -1, -1) for side in (keys, values))
        with sdpa_kernel(BACKENDS):
            out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask(call.window, query.dtype), scale=call.scale)
        return out.flatten(0, 1).transpose(0, 1)[None]

    def _written(self, query: Tensor, keys: Tensor, values: Tensor, call: LayerCall) -> Tensor:
        """Soft caps and sinks, which torch's operator does not know."""
        wide = torch.promote_types(query.dtype, torch.float32)  # scores in bf16 would be rounded before they are capped
        sight = Sight(self._mask(call.window, wide), None)
        out, lse = attend_written(query.to(wide), keys[None].to(wide), values[None].to(wide), call, sight=sight)
        if call.sinks_H is not None:
            drain_into_sinks(out, lse, call.sinks_H.view(1, -1, 1))
        return out.transpose(1, 2).to(query.dtype)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(1, 1, T, S), added to the scores."""
        name = (window, dtype)
        if name not in self._masks:
            visible_TS = self._visible_TS if window is None else self._visible_TS & (self._distance_TS < window)
            zeros_TS = torch.zeros(visible_TS.shape, dtype=dtype, device=visible_TS.device)
            self._masks[name] = zeros_TS.masked_fill_(~visible_TS, float("-inf"))[None, None]
        return self._masks[name]

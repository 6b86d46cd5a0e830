"""Ancestor attention by ordinary scaled-dot-product calls: one a node, on the keys of its path.

Runs on every device, dtype and head shape; gradients are autograd's. Windows, soft caps and sinks are exact: the band of
a window is cut by depth, and ancestors out of reach are not even gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood.attention.dense import masked_attention
from sapwood.attention.interface import LayerCall
from sapwood.forest import Forest


def plain_attention(query: Tensor, key: Tensor, value: Tensor, forest: Forest, call: LayerCall) -> Tensor:
    """(1, H, T, K) → (1, H, T, K of the values)."""
    outputs = []
    depth = torch.from_numpy(forest.positions_T).to(query.device)
    for node, (start, end, _) in enumerate(forest.nodes_M.tolist()):
        path = _path(forest, node, call.window).to(query.device)
        mask = depth[path][None, :] <= depth[start:end, None]
        if call.window is not None:
            mask &= depth[start:end, None] - depth[path][None, :] < call.window
        queries, keys, values = query[:, :, start:end], key[:, :, path], value[:, :, path]
        if call.softcap is None and call.sinks_H is None:
            part = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=call.scale, enable_gqa=True)
        else:
            part = masked_attention(queries, keys, values, mask, call)
        outputs.append(part)
    return torch.cat(outputs, dim=2)


def _path(forest: Forest, node: int, window: int | None) -> Tensor:
    """Places of the keys a node may see: its ancestors' within reach of its first token, then its own."""
    start, end, _ = forest.nodes_M[node].tolist()
    segments = [torch.arange(*forest.nodes_M[ancestor, :2].tolist()) for ancestor in forest.ancestors(node)]
    path = torch.cat([*segments, torch.arange(start, end)])
    if window is None:
        return path
    first_depth = int(forest.positions_T[start])
    return path[max(0, first_depth - window + 1) :]

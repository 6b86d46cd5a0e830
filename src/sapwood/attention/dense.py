"""Ancestor attention by one dense mask: the reference that the other paths are tested against. O(T²) memory."""

from __future__ import annotations

import torch
from torch import Tensor

from sapwood.attention.interface import LayerCall
from sapwood.forest import Forest


def _ancestor_mask(forest: Forest, window: int | None = None) -> Tensor:
    """(T, T) booleans: may the token in this row see the token in that column? The window counts depth."""
    length = forest.num_tokens
    mask = torch.zeros(length, length, dtype=torch.bool)
    for node, (start, end, _) in enumerate(forest.nodes_M.tolist()):
        mask[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        for ancestor in forest.ancestors(node):
            first, last, _ = forest.nodes_M[ancestor].tolist()
            mask[start:end, first:last] = True
    if window is not None:
        depth = torch.from_numpy(forest.positions_T)
        mask &= depth[:, None] - depth[None, :] < window
    return mask


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, call: LayerCall) -> Tensor:
    """Attention written out: (B, H, Q, K) × (B, Hkv, S, K) under a (Q, S) mask → (B, H, Q, K of the values).

    Serves what no kernel does: soft caps (Gemma 2, arXiv:2408.00118 §2) and sinks (gpt-oss). Softmax in fp32 or wider.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * call.scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if call.sinks_H is not None:
        sinks = call.sinks_H.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights.to(value.dtype) @ value


def dense_attention(query: Tensor, key: Tensor, value: Tensor, forest: Forest, call: LayerCall) -> Tensor:
    """The reference: (1, H, T, K) → (1, H, T, K)."""
    return masked_attention(query, key, value, _ancestor_mask(forest, call.window).to(query.device), call)

"""One part of an attention: some queries to some keys, with the log-sum-exp by which parts are joined.

In: queries, keys, values, and which keys each query sees. Out: output and log-sum-exp. The CPU's flash kernel computes a
part where it can; elsewhere (other devices, soft caps, value heads of another width) it is written out, which is exact too.
A query may see nothing of a part: its log-sum-exp is then minus infinity, so that it takes nothing from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from sapwood.attention import flash_is_available
from sapwood.attention.flash import join
from sapwood.attention.interface import LayerCall

__all__ = ["BACKENDS", "Sight", "attend_part", "attend_written", "drain_into_sinks", "join", "sees", "within"]

BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Of torch's own operator, where a mask is given: on a GPU the first serves and the last, on a CPU the second. cuDNN is left out, for it
makes a plan for each new shape."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Which keys each query sees: `mask` is added to the scores, (B, 1, Q, L); `blind` queries (B, 1, Q) see none, if any."""

    mask: Tensor
    blind: Tensor | None


def sees(visible_BQL: Tensor, dtype: torch.dtype) -> Sight:
    """The sight of booleans (B, Q, L)."""
    mask = torch.zeros(visible_BQL.shape, dtype=dtype, device=visible_BQL.device).masked_fill_(~visible_BQL, float("-inf"))
    blind = ~visible_BQL.any(-1)
    return Sight(mask[:, None], blind[:, None] if bool(blind.any()) else None)


def within(window: int, query_depth_Q: Tensor, first: int, length: int) -> Tensor | None:
    """Which of the keys at depths [first, first + length) are less than `window` above each query: (Q, L); None if all are.

    Keys behind a query are not looked at here.
    """
    if int(query_depth_Q.max()) - first < window:
        return None
    depth_L = torch.arange(first, first + length, device=query_depth_Q.device)
    return query_depth_Q[:, None] - depth_L[None, :] < window


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, call: LayerCall, *, causal: bool = False, sight: Sight | None = None
) -> tuple[Tensor, Tensor]:
    """(B, H, Q, K) × (B, Hkv, L, K) → output (B, H, Q, K of the values) and log-sum-exp (B, H, Q), fp32 or wider.

    `causal` is for as many queries as keys, and excludes `sight`.
    """
    if _flash_serves(query, value, call):
        operator: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mask = None if sight is None else sight.mask
        out, lse = operator(query, key, value, 0.0, causal, attn_mask=mask, scale=call.scale)
    else:
        out, lse = attend_written(query, key, value, call, causal, sight)
    if sight is not None and sight.blind is not None:
        out = out.masked_fill(sight.blind[..., None], 0.0)
        lse = lse.masked_fill(sight.blind, float("-inf"))
    return out, lse


def drain_into_sinks(sums: Tensor, lse: Tensor, sinks: Tensor) -> None:
    """Sinks are keys without values: they take their share of each query's attention. In place; shapes as in `join`.

    `sinks` has one logit a head, in a shape that broadcasts to `lse`. Source: gpt-oss model card, arXiv:2508.10925 §2.
    """
    together = torch.logaddexp(lse, sinks.to(lse.dtype))
    sums.mul_((lse - together).exp_().unsqueeze(-1))


def _flash_serves(query: Tensor, value: Tensor, call: LayerCall) -> bool:
    return (
        call.softcap is None
        and query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float64)
        and query.shape[-1] == value.shape[-1]
        and flash_is_available()
    )


def attend_written(
    query: Tensor, key: Tensor, value: Tensor, call: LayerCall, causal: bool = False, sight: Sight | None = None
) -> tuple[Tensor, Tensor]:
    """`attend_part` by plain operators, for any device; blind queries are left to the caller."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    stacked = query.reshape(batch, key.shape[1], groups * length, width)  # heads of one group are more queries to one key head
    scores = (stacked @ key.transpose(-1, -2)).view(batch, heads, length, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if causal:
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool, device=scores.device).tril(), float("-inf"))
    if sight is not None:
        scores = scores + sight.mask
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp_().to(value.dtype).view(batch, key.shape[1], groups * length, -1)
    return (weights @ value).view(batch, heads, length, -1), lse

"""Ancestor attention on the CPU's flash kernel, without masks and without gathers.

    for each node:          causal attention inside the node
    for each inner node:    full attention from its descendants (one slice) to the node (one slice)

The parts are joined by their log-sum-exp in fp32. The backward of each part is the ordinary flash backward, called with
the *joined* output and log-sum-exp, which is exact: with out and lse of the whole row, exp(score - lse) is the row's own
probability, and rowsum(grad · out) its own correction term (FlashAttention-2, arXiv:2307.08691, algorithm 2). In bf16 two of our
own kernels go through all parts at once, there and back, where they serve (`sapwood.kernels`).

The operator is private to torch, so `flash_is_available` tries it against the plain call once, and the plain path serves
where it is missing or disagrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sapwood import kernels
from sapwood.forest import Forest

Part = tuple[int, int, int, int, bool, bool]
"""Queries [a, b) attend to keys [c, d); causally (inside a node) or fully (to an ancestor); is it the queries' first part?"""

WIDE_QUERIES = 400
"""Parts of at most this many queries to an ancestor go back in fp32, as nodes do; wider ones stay in bf16.

The kernel's backward is slow on short bf16 blocks: nodes of 50 tokens take 2.8 times as long as in fp32, of 110 2.7 times, of
250 1.2 times, and from 400 on it is a draw, while wide parts to an ancestor are faster in bf16. fp32 is also nearer to the
truth: all its error is the last rounding."""


def parts_of(forest: Forest) -> list[Part]:
    """The slices of one forest. In depth-first order a token's first part is the one with its root."""
    parts: list[Part] = []
    for (start, end, parent), behind in zip(forest.nodes_M.tolist(), forest.subtree_end_M.tolist(), strict=True):
        parts.append((start, end, start, end, True, parent < 0))
        if behind > end:
            parts.append((end, behind, start, end, False, parent < 0))
    return parts


@cache
def flash_is_available() -> bool:
    """Does this torch have the kernel, with the signature and the results, forward and backward, that the fast path relies on?"""
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator("cpu").manual_seed(0)
        query, key, value = inputs = [
            torch.randn(1, heads, 5, 8, generator=generator, device="cpu", requires_grad=True) for heads in (4, 2, 2)
        ]
        expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
        grads = torch.autograd.grad(expected.sum(), inputs)
    try:
        with torch.no_grad():
            out, lse = attend_part(query, key, value, True, 0.3)
            found = (out, *_backward(torch.ones_like(out), query, key, value, out, lse, True, 0.3))
        return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, (expected, *grads), strict=True))
    except (AttributeError, RuntimeError, ValueError):  # no such operator, another signature, another number of results
        return False


def flash_tree_attention(query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """(1, H, T, K) and grouped keys and values → (1, H, T, K), differentiable."""
    out: Tensor = _TreeFlash.apply(query, key, value, parts, scale)  # type: ignore[no-untyped-call]
    return out


def attend_part(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """One part: output (B, H, Q, K) and log-sum-exp (B, H, Q) in fp32, or fp64 for fp64."""
    operator: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = operator(query, key, value, 0.0, causal, scale=scale)
    return out, lse


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    operator: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grads: tuple[Tensor, Tensor, Tensor] = operator(grad, query, key, value, out, lse, 0.0, causal, scale=scale)
    return grads


class _TreeFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
        ctx.parts, ctx.scale = parts, scale
        ctx.served = kernels.serves(query) if len(query) == 1 and query.shape[-1] % 32 == 0 else None  # heads that fill a register
        if ctx.served is not None:
            ctx.parts = torch.tensor([part[:5] for part in parts])
            inputs = [_side_by_side(tensor[0]) for tensor in (query, key, value)]
            out, lse = ctx.served.tree_forward(*inputs, ctx.parts, scale)
            ctx.save_for_backward(query, key, value, out[None], lse[None])
            return out[None]  # type: ignore[no-any-return]
        wide = torch.promote_types(query.dtype, torch.float32)
        shape = (query.shape[0], query.shape[2], query.shape[1], query.shape[3])
        joined = query.new_empty(shape).transpose(1, 2)  # laid out (B, T, H, K), as the next layer reads it
        lse_BHT = query.new_empty(query.shape[:3], dtype=wide)
        sums = torch.empty_like(joined, dtype=wide) if len(parts) > 1 and not all(first for *_, first in parts) else joined
        for a, b, c, d, causal, first in parts:
            out, lse = attend_part(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], causal, scale)
            if first:
                sums[:, :, a:b], lse_BHT[:, :, a:b] = out, lse
            else:
                join(sums[:, :, a:b], lse_BHT[:, :, a:b], out, lse)
        if sums is not joined:
            joined.copy_(sums)
        ctx.save_for_backward(query, key, value, joined, lse_BHT)
        return joined

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, joined, lse_BHT = ctx.saved_tensors
        if ctx.served is not None:
            inputs = (_side_by_side(tensor[0]) for tensor in (grads[0], query, key, value, joined))
            d_query, d_key, d_value = ctx.served.tree_backward(*inputs, lse_BHT[0], ctx.parts, ctx.scale)
            return d_query[None], d_key[None], d_value[None], None, None
        narrow = (grads[0], query, key, value, joined)
        wide = tuple(tensor.to(lse_BHT.dtype) for tensor in narrow)
        d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in wide[1:4])
        for a, b, c, d, causal, first in ctx.parts:
            grad, q, k, v, out = wide if causal or b - a <= WIDE_QUERIES else narrow
            dq, dk, dv = _backward(
                grad[:, :, a:b], q[:, :, a:b], k[:, :, c:d], v[:, :, c:d], out[:, :, a:b], lse_BHT[:, :, a:b], causal, ctx.scale
            )
            _gather(d_query[:, :, a:b], dq, first)
            _gather(d_key[:, :, c:d], dk, causal)  # a node's own part comes before those of its descendants
            _gather(d_value[:, :, c:d], dv, causal)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), None, None


def _side_by_side(tensor: Tensor) -> Tensor:
    """With the numbers of a head side by side, as they nearly always are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _gather(sums: Tensor, part: Tensor, first: bool) -> None:
    if first:
        sums.copy_(part)
    else:
        sums.add_(part)


def join(sums: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Join one more part into `sums` (B, H, Q, K) and `lse` (B, H, Q), in place and in the type of `sums`.

    Each part is weighted by its share of the softmax's denominator, exp(lse of the part - lse of all).
    """
    together = torch.logaddexp(lse, part_lse)
    sums.mul_((lse - together).exp_().unsqueeze(-1)).add_(part * (part_lse - together).exp_().unsqueeze(-1))
    lse.copy_(together)

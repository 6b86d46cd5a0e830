"""The language-model head on target places only, in chunks, never a full matrix of logits.

    log p(token | place)     = logit[token] - lse
    d log p / d logit[v]     = 1[v = token] - exp(logit[v] - lse)
    d log p / d hidden       = W[token] - Σ exp(logit[v] - lse) W[v]

The last line does not know what comes after the log-probability, so where the head is frozen the forward pass computes it while
it has the logits: one vector a target is kept, the backward pass scales it, and no logit is computed twice. Where the head, or
rows of it, are trained, the backward pass computes each chunk's logits again. Memory is chunk × V whatever the number of targets.
A few rows of the head may be trained while the rest is frozen (see
`new_tokens`): they come as a small matrix of their own, and no copy of the head is made. A head with a bias is served; one
that scales or caps its logits is not, and is called through the model instead (`LanguageModel` finds out at load).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sapwood import kernels

CHUNK_ELEMENTS = 1 << 25
"""Most logits that a chunk holds: 64 MiB in bf16, 128 MiB in fp32. All chunks are written to one place: the system gives pages once."""
ON_A_GPU = 4
"""Times as many where products need more rows at once to fill a device: 900 places of a vocabulary of 150,000. Not measured."""


def chunk_elements(device: torch.device) -> int:
    """Most logits that a chunk holds on a device."""
    return CHUNK_ELEMENTS * (ON_A_GPU if device.type == "cuda" else 1)


def head_logprobs(
    hidden_UD: Tensor, head: nn.Linear, place_N: Tensor, token_N: Tensor, index_K: Tensor | None = None, rows_KD: Tensor | None = None
) -> Tensor:
    """Log-probabilities (N,), in fp32 or wider, of `token_N` at rows `place_N` (ascending) of the distinct places `hidden_UD`.

    `place_N` may lie on the CPU whatever the device: the chunks' edges are read off it, and reading it on a GPU waits for all that is
    under way there. The rows `index_K` of the head's weight are `rows_KD`, rounded to its type, where they are given. Differentiable once.
    """
    out: Tensor = _HeadLogProbs.apply(hidden_UD, head.weight, head.bias, place_N, token_N, index_K, rows_KD)  # type: ignore[no-untyped-call]
    return out


class _HeadLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        place_N: Tensor,
        token_N: Tensor,
        index_K: Tensor | None,
        rows_KD: Tensor | None,
    ) -> Tensor:
        wide = torch.promote_types(hidden_UD.dtype, torch.float32)
        lse_U = hidden_UD.new_empty(len(hidden_UD), dtype=wide)
        logprob_N = hidden_UD.new_empty(len(place_N), dtype=wide)
        frozen = rows_KD is None and not any(ctx.needs_input_grad[1:3])
        pull_ND = hidden_UD.new_empty((len(place_N), hidden_UD.shape[1])) if frozen and ctx.needs_input_grad[0] else None
        ctx.chunks = chunks = _chunks(len(hidden_UD), len(weight_VD), place_N, chunk_elements(hidden_UD.device))
        place_N = place_N.to(hidden_UD.device, non_blocking=True)
        room_CV = hidden_UD.new_empty((max((last - first for first, last, *_ in chunks), default=0), len(weight_VD)))
        for first, last, begin, end in chunks:
            logits = _logits(hidden_UD[first:last], weight_VD, bias_V, index_K, rows_KD, room_CV[: last - first])
            places, tokens = place_N[begin:end] - first, token_N[begin:end]
            lse_U[first:last] = lse = _lse(logits)
            logprob_N[begin:end] = logits[places, tokens].to(wide) - lse[places]
            if pull_ND is not None:
                torch.mm(_softmax_minus_token(logits, lse, places, tokens), weight_VD, out=pull_ND[begin:end])
        if pull_ND is not None:
            ctx.places = len(hidden_UD)
            ctx.save_for_backward(pull_ND, place_N)
        else:
            ctx.save_for_backward(hidden_UD, weight_VD, bias_V, place_N, token_N, index_K, rows_KD, lse_U)
        return logprob_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, Tensor | None]:
        grad_N = grads[0]
        if len(ctx.saved_tensors) == 2:
            pull_ND, place_N = ctx.saved_tensors
            sums = grad_N.new_zeros((ctx.places, pull_ND.shape[1])).index_add_(0, place_N, pull_ND * -grad_N[:, None])
            return sums.to(pull_ND.dtype), None, None, None, None, None, None
        hidden_UD, weight_VD, bias_V, place_N, token_N, index_K, rows_KD, lse_U = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden_UD)
        d_weight = torch.zeros_like(weight_VD, dtype=lse_U.dtype) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias_V, dtype=lse_U.dtype) if bias_V is not None and ctx.needs_input_grad[2] else None
        d_rows = torch.zeros_like(rows_KD, dtype=lse_U.dtype) if rows_KD is not None else None
        for first, last, begin, end in ctx.chunks:
            places, tokens, grad = place_N[begin:end] - first, token_N[begin:end], grad_N[begin:end]
            logits = _logits(hidden_UD[first:last], weight_VD, bias_V, index_K, rows_KD).to(lse_U.dtype)
            total = torch.zeros(last - first, dtype=lse_U.dtype, device=logits.device).index_add_(0, places, grad)
            d_logits = logits.sub_(lse_U[first:last, None]).exp_().mul_(-total[:, None])
            d_logits.index_put_((places, tokens), grad, accumulate=True)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            narrow = d_logits.to(hidden_UD.dtype)
            if d_rows is not None:
                d_rows += d_logits[:, index_K].T @ hidden_UD[first:last].to(lse_U.dtype)
                trained = narrow[:, index_K] @ rows_KD.to(narrow.dtype)
                narrow = narrow.index_fill(1, index_K, 0)  # the head's own rows have no part in these logits
                d_hidden[first:last] = trained.addmm_(narrow, weight_VD)
            else:
                d_hidden[first:last] = narrow @ weight_VD
            if d_weight is not None:
                d_weight += narrow.T @ hidden_UD[first:last]
        return d_hidden, _like(d_weight, weight_VD), _like(d_bias, bias_V), None, None, None, _like(d_rows, rows_KD)


def _logits(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    index_K: Tensor | None,
    rows_KD: Tensor | None,
    out_NV: Tensor | None = None,
) -> Tensor:
    """Logits (N, V), written to `out_NV` where it is given."""
    weight_DV = weight_VD.T
    logits_NV = torch.mm(hidden_ND, weight_DV, out=out_NV) if bias_V is None else torch.addmm(bias_V, hidden_ND, weight_DV, out=out_NV)
    if index_K is None or rows_KD is None:
        return logits_NV
    bias_K = None if bias_V is None else bias_V[index_K]
    return logits_NV.index_copy_(1, index_K, nn.functional.linear(hidden_ND, rows_KD.to(hidden_ND.dtype), bias_K))


def _lse(logits_NV: Tensor) -> Tensor:
    """Log-sum-exp of each row, in fp32 or wider."""
    if (served := kernels.serves(logits_NV)) is not None:
        return served.row_lse(logits_NV)  # type: ignore[no-any-return]
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).logsumexp(-1)


def _softmax_minus_token(logits_UV: Tensor, lse_U: Tensor, place_N: Tensor, token_N: Tensor) -> Tensor:
    """Of each target, the probabilities of its place, less 1 at its token: (N, V), in the type of the logits, which may be overwritten."""
    if (served := kernels.serves(logits_UV)) is not None:
        if torch.equal(place_N, torch.arange(len(logits_UV))):  # one target each, as nearly always
            return served.pull_(logits_UV, lse_U, token_N)  # type: ignore[no-any-return]
        return served.pull(logits_UV, lse_U, place_N, token_N)  # type: ignore[no-any-return]
    probability_NV = (logits_UV[place_N].to(lse_U.dtype) - lse_U[place_N, None]).exp_()
    probability_NV[torch.arange(len(place_N), device=place_N.device), token_N] -= 1
    return probability_NV.to(logits_UV.dtype)


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return grad.to(parameter.dtype) if grad is not None and parameter is not None else None


def _chunks(num_places: int, vocabulary: int, place_N: Tensor, most: int) -> list[tuple[int, int, int, int]]:
    """(first place, last place, first target, last target) of each chunk; targets are in order of their places."""
    count = max(1, -(-num_places // max(1, most // vocabulary)))
    size = max(1, -(-num_places // count))  # of about one size: a short last one costs nearly as much as a whole one
    firsts = list(range(0, num_places, size))
    edges = np.searchsorted(place_N.cpu().numpy(), [*firsts, num_places]).tolist()
    return [(first, min(first + size, num_places), edges[i], edges[i + 1]) for i, first in enumerate(firsts)]

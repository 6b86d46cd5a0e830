"""Logits and uniform numbers in, one token a row out, with its log-probability.

Each row is sampled by itself: row r of the result depends on row r of the logits and on `uniform_N[r]` alone. The token is
found by inverting the cumulative distribution over the kept tokens in order of their ids. Ids, not ranks: where rounding
swaps the ranks of two nearly equal tokens, the order of ids stays, so that only a draw on the edge itself can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood import kernels
from sapwood.generate.crossing import onto
from sapwood.generate.penalties import Edits
from sapwood.records import SamplingParams

BLOCK = 64
"""Width of the blocks in which the largest logit is looked for."""

CANDIDATES = 256
"""Most likely tokens that are sorted first; the whole vocabulary is sorted only for rows whose filters keep more."""


def uniforms(seed: int, index: int, count: int) -> NDArray[np.float64]:
    """The numbers in [0, 1) that sequence `index` of a call draws, one a token: a stream of its own.

    Philox is counter based: streams of different keys are independent (Salmon et al., SC'11, doi:10.1145/2063384.2063405).
    """
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def sample(
    logits_NV: Tensor, params: SamplingParams, uniform_N: NDArray[np.float64], edited_NV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids (N,) and their log-probabilities (N,) at the sampling temperature before truncation (temperature 0: at 1).

    Tokens are drawn from `edited_NV` (penalties and constraints done) where that is given; the log-probabilities are those of the
    logits as the model made them. That of a row whose logits hold a NaN or plus infinity is NaN, and its token has no meaning.
    """
    found = sample_from_few(logits_NV, params, uniform_N, edited_NV)
    if bool(found.unsure):
        found = sample_from_few(logits_NV, params, uniform_N, edited_NV, few=logits_NV.shape[1])
    return found.token_N, found.logprob_N


class Sampled(NamedTuple):
    """What was drawn, and whether it counts: nothing of it was looked at yet."""

    token_N: Tensor
    logprob_N: Tensor
    unsure: Tensor
    """() did a filter of some row keep more tokens than were looked at? Then all are to be drawn anew from the whole vocabulary."""


def sample_from_few(
    logits_NV: Tensor, params: SamplingParams, uniform_N: NDArray[np.float64], edited_NV: Tensor | None = None, few: int | None = None
) -> Sampled:
    """`sample` that asks nothing of the host: filters look at the `few` most likely tokens (None: `CANDIDATES`)."""
    scaled_NV = tempered(logits_NV, params)
    drawn_NV = scaled_NV if edited_NV is None else tempered(edited_NV, params)
    unsure = torch.zeros((), dtype=torch.bool, device=logits_NV.device)
    if params.temperature == 0:
        token_N = _argmax(drawn_NV)
    else:
        uniform = onto(drawn_NV.device, uniform_N)
        if _is_filtered(params):
            token_N, unsure = _filtered(drawn_NV, params, uniform, few or CANDIDATES)
        else:
            token_N = _inverse(_probabilities(drawn_NV), uniform)
    logprob_N = scaled_NV.gather(1, token_N[:, None])[:, 0] - scaled_NV.logsumexp(-1)
    return Sampled(token_N, logprob_N, unsure)


def sample_at_once(
    logits_NV: Tensor,
    params: Sequence[SamplingParams],
    uniform_N: NDArray[np.float64],
    bits_NW: NDArray[np.int32] | None = None,
    edits: Edits | None = None,
) -> tuple[Tensor, Tensor] | None:
    """What `sample` gives, each row by its own parameters, by a kernel that writes no probabilities and sorts no vocabulary; None where
    it does not serve: it does for bf16 on a CPU.

    Of each row only tokens whose bit of `bits_NW` is set are drawn, by the logits that `edits` put in the place of the model's.
    """
    served = None if logits_NV.stride(-1) != 1 else kernels.serves(logits_NV)
    if served is None:
        return None
    filters = [(one.temperature, one.top_k, one.top_p, one.min_p) for one in params]
    settings_N5 = torch.from_numpy(np.concatenate([uniform_N[:, None], np.array(filters, dtype=np.float64)], axis=1))
    bits = None if bits_NW is None else torch.from_numpy(bits_NW)
    starts, ids, values = None, None, None
    if edits is not None:
        starts = torch.searchsorted(edits.row_E, torch.arange(len(logits_NV) + 1))
        ids, values = edits.id_E, edits.value_E
    found: tuple[Tensor, Tensor] = served.draw_tokens(logits_NV, settings_N5, bits, starts, ids, values)
    return found


def tempered(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Logits at the sampling temperature (temperature 0: at 1), in fp32 or wider."""
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return wide_NV / params.temperature if params.temperature > 0 and params.temperature != 1 else wide_NV


def _is_filtered(params: SamplingParams) -> bool:
    return params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def _argmax(logits_NV: Tensor) -> Tensor:
    """The first of the largest logits of each row. By blocks: torch's argmax along a long row is an order of magnitude slower than amax."""
    rows, width = logits_NV.shape
    if width % BLOCK:
        return logits_NV.argmax(-1)
    blocks = logits_NV.view(rows, width // BLOCK, BLOCK)
    block_N = blocks.amax(-1).argmax(-1)
    inside_N = blocks[torch.arange(rows, device=logits_NV.device), block_N].argmax(-1)
    return block_N * BLOCK + inside_N


def kept(scaled_NV: Tensor, params: SamplingParams) -> Tensor:
    """(N, V) booleans: which tokens the filters leave. Equal tokens rank in order of their ids."""
    ids_NC, _, keep_NC, unsure = _candidates(scaled_NV, params, CANDIDATES)
    if bool(unsure):
        ids_NC, _, keep_NC, _ = _candidates(scaled_NV, params, scaled_NV.shape[1])
    return torch.zeros_like(scaled_NV, dtype=torch.bool).scatter_(1, ids_NC, keep_NC)


def _filtered(scaled_NV: Tensor, params: SamplingParams, uniform_N: Tensor, few: int) -> tuple[Tensor, Tensor]:
    """Tokens (N,), and whether more than `few` were kept somewhere ()."""
    ids_NC, scaled_NC, keep_NC, unsure = _candidates(scaled_NV, params, few)
    by_id = ids_NC.argsort(-1)
    ids_NC, scaled_NC, keep_NC = (part.gather(1, by_id) for part in (ids_NC, scaled_NC, keep_NC))
    picked = _inverse(_probabilities(scaled_NC.masked_fill(~keep_NC, float("-inf"))), uniform_N)
    return ids_NC.gather(1, picked[:, None])[:, 0], unsure


def _candidates(scaled_NV: Tensor, params: SamplingParams, few: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and logits (N, C) in order of falling probability, then rising id; which of them are kept; and () whether one that is kept may
    be left out, which is never so where all tokens are looked at."""
    width = scaled_NV.shape[1]
    lse_N1 = scaled_NV.logsumexp(-1, keepdim=True)
    if width <= few or params.top_k > few:
        top_NC, ids_NC = scaled_NV.sort(dim=-1, descending=True, stable=True)
        return ids_NC, top_NC, _keep(top_NC, lse_N1, params), torch.zeros((), dtype=torch.bool, device=scaled_NV.device)
    top_NC, ids_NC = scaled_NV.topk(few, dim=-1)
    by_id = ids_NC.argsort(-1)
    ids_NC, top_NC = ids_NC.gather(1, by_id), top_NC.gather(1, by_id)
    top_NC, by_rank = top_NC.sort(dim=-1, descending=True, stable=True)
    ids_NC = ids_NC.gather(1, by_rank)
    keep_NC = _keep(top_NC, lse_N1, params)
    # tokens equal to the last candidate may be missing: then nothing from there on may be kept
    return ids_NC, top_NC, keep_NC, (keep_NC & (top_NC <= top_NC[:, -1:])).any()


def _keep(top_NC: Tensor, lse_N1: Tensor, params: SamplingParams) -> Tensor:
    """The filters on sorted logits, each on what the one before left: top_k, top_p (arXiv:1904.09751), min_p (arXiv:2407.01082)."""
    keep_NC = torch.ones_like(top_NC, dtype=torch.bool)
    probability_NC = (top_NC - lse_N1).double().exp_()
    total_N1: Tensor | float = 1.0
    if params.top_k > 0:
        keep_NC[:, params.top_k :] = False
        total_N1 = probability_NC[:, : params.top_k].sum(-1, keepdim=True)
    if params.top_p < 1:
        before_NC = probability_NC.cumsum(-1) - probability_NC
        keep_NC &= before_NC < params.top_p * total_N1
    if params.min_p > 0:
        keep_NC &= probability_NC >= params.min_p * probability_NC[:, :1]
    keep_NC[:, 0] = True
    return keep_NC


def _probabilities(scaled_NV: Tensor) -> Tensor:
    """Proportional to the probabilities; the largest is 1."""
    return (scaled_NV - scaled_NV.amax(-1, keepdim=True)).exp_()


def _inverse(weight_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first place of each row at which the cumulative weight exceeds `uniform` of the whole."""
    sums_NV = weight_NV.cumsum(-1, dtype=torch.float64)
    total_N = sums_NV[:, -1]
    aim_N = torch.minimum(uniform_N * total_N, torch.nextafter(total_N, torch.zeros_like(total_N)))
    return torch.searchsorted(sums_NV, aim_N[:, None], right=True)[:, 0].clamp_(max=weight_NV.shape[1] - 1)

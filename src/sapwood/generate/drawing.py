"""One step's logits in, one token for each answer out: each by its own parameters, history and random numbers.

In bf16 on a CPU one call draws them all. Elsewhere answers with equal settings are drawn together; a row's token depends on that row
alone, so grouping changes nothing. All that is drawn comes back from a device in one read; a second one is made where a filter kept more
tokens than were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.generate.answer import Answer
from sapwood.generate.crossing import onto
from sapwood.generate.penalties import Edits, edited, edits
from sapwood.generate.sampling import Sampled, sample_at_once, sample_from_few
from sapwood.generate.steering import Steering
from sapwood.records.sampling import Alternatives

Drawn = tuple[int, float, Alternatives]
"""A token, its log-probability, and the most likely tokens where they were asked for."""

_Group = tuple[Sequence[int], Callable[[int | None], Sampled]]
"""Rows, and what draws them: by a look at so many of the most likely tokens (None: as many as usual)."""


def draw(logits_NV: Tensor, answers: Sequence[Answer]) -> list[Drawn]:
    """The next token of each answer; row i of the logits is the i-th answer's."""
    groups = _groups(logits_NV, answers)
    asking, likely = _likely(logits_NV, answers)
    numbers = iter(_read([*(part for _, drawing in groups for part in drawing(None)), *likely]))
    drawn: dict[int, tuple[int, float]] = {}
    for rows, drawing in groups:
        token_N, logprob_N, unsure = next(numbers), next(numbers), next(numbers)
        if unsure:
            token_N, logprob_N, _ = _read(drawing(logits_NV.shape[1]))
        drawn |= zip(rows, zip(token_N.astype(np.int64).tolist(), logprob_N.tolist(), strict=True), strict=True)
    tops: dict[int, Alternatives] = {}
    if asking:
        for row, tokens, values in zip(asking, next(numbers).astype(np.int64).tolist(), next(numbers).tolist(), strict=True):
            count = answers[row].params.top_logprobs
            tops[row] = tuple(zip(tokens[:count], values[:count], strict=True))
    return [(*drawn[row], tops.get(row, ())) for row in range(len(answers))]


def _read(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """The numbers of all tensors, in one copy. fp64 holds token ids and numbers of every type as they are."""
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(np.split(flat, ends[:-1]), tensors, strict=True)]


def _groups(logits_NV: Tensor, answers: Sequence[Answer]) -> list[_Group]:
    """All at once where a kernel serves; else those with equal settings together."""
    uniform_N = np.array([answer.uniform_T[len(answer.ids)] if answer.params.temperature > 0 else 0.0 for answer in answers])
    changed, bits_NW = _changed(logits_NV, answers), _bits(answers)
    found = sample_at_once(logits_NV, [answer.params for answer in answers], uniform_N, bits_NW, changed)
    if found is not None:
        sampled = Sampled(*found, torch.zeros((), dtype=torch.bool))
        return [(range(len(answers)), lambda few: sampled)]
    edited_NV = _edited(logits_NV, changed, bits_NW)
    rows_of: dict[tuple[float, int, float, float], list[int]] = {}
    for row, answer in enumerate(answers):
        params = answer.params
        rows_of.setdefault((params.temperature, params.top_k, params.top_p, params.min_p), []).append(row)
    groups: list[_Group] = []
    for rows in rows_of.values():
        place = slice(None) if len(rows_of) == 1 else onto(logits_NV.device, np.array(rows))
        own_NV = None if edited_NV is None else edited_NV[place]
        groups.append((rows, partial(sample_from_few, logits_NV[place], answers[rows[0]].params, uniform_N[rows], own_NV)))
    return groups


def _likely(logits_NV: Tensor, answers: Sequence[Answer]) -> tuple[list[int], list[Tensor]]:
    """Rows of those who want to know what else was likely; the tokens (M, K), as many as any of them wants, and their log-probabilities."""
    asking = [row for row, answer in enumerate(answers) if answer.params.top_logprobs]
    if not asking:
        return [], []
    device, some = logits_NV.device, [answers[row].params for row in asking]
    wide_MV = logits_NV[onto(device, np.array(asking))].to(torch.promote_types(logits_NV.dtype, torch.float32))
    scaled_MV = wide_MV / onto(device, np.array([[params.temperature or 1.0] for params in some])).to(wide_MV.dtype)
    value_MK, token_MK = scaled_MV.topk(min(max(params.top_logprobs for params in some), scaled_MV.shape[1]))
    return asking, [token_MK, value_MK - scaled_MV.logsumexp(-1, keepdim=True)]


def _steered(answers: Sequence[Answer]) -> list[tuple[int, Steering]]:
    return [(row, answer.steering) for row, answer in enumerate(answers) if answer.steering is not None and answer.ended is None]


def _bits(answers: Sequence[Answer]) -> NDArray[np.int32] | None:
    """Which tokens constraints allow, a bit a token; None if nobody asks for that."""
    steered = _steered(answers)
    if not steered:
        return None
    bits_NW = np.full((len(answers), len(steered[0][1].bits_W)), -1, dtype=np.int32)
    for row, steering in steered:
        bits_NW[row] = steering.bits()
    return bits_NW


def _changed(logits_NV: Tensor, answers: Sequence[Answer]) -> Edits | None:
    """The logits that biases and penalties change; None if nobody asks for any."""
    rows = [row for row, answer in enumerate(answers) if edits(answer.params)]
    for row in rows:
        answers[row].seen.take(answers[row].ids)
    return edited(logits_NV, rows, [answers[row].seen for row in rows], [answers[row].params for row in rows]) if rows else None


def _edited(logits_NV: Tensor, changed: Edits | None, bits_NW: NDArray[np.int32] | None) -> Tensor | None:
    """The logits with edits done, and minus infinity where a constraint allows no token; None if nobody asks for either."""
    if changed is None and bits_NW is None:
        return None
    edited_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32), copy=True)
    if changed is not None:
        edited_NV[changed.row_E, changed.id_E] = changed.value_E
    if bits_NW is not None:
        bits = onto(edited_NV.device, bits_NW)
        allowed_NV = (bits[:, :, None] >> torch.arange(32, dtype=torch.int32, device=bits.device)).flatten(1)[:, : edited_NV.shape[1]] & 1
        edited_NV.masked_fill_(allowed_NV == 0, float("-inf"))
    return edited_NV

"""One step's logits in, one token for each answer out: each by its own parameters, history and random numbers.

Answers with equal settings are drawn together. A row's token depends on that row alone, so grouping changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.generate.answer import Answer
from sapwood.generate.penalties import punishes
from sapwood.generate.sampling import sample, sample_at_once, tempered
from sapwood.records import SamplingParams
from sapwood.records.sampling import Alternatives

Drawn = tuple[int, float, Alternatives]
"""A token, its log-probability, and the most likely tokens where they were asked for."""


def draw(logits_NV: Tensor, answers: Sequence[Answer]) -> list[Drawn]:
    """The next token of each answer; row i of the logits is the i-th answer's."""
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for row, answer in enumerate(answers):
        params = answer.params
        groups.setdefault((params.temperature, params.top_k, params.top_p, params.min_p), []).append(row)
    drawn: list[Drawn] = [(0, 0.0, ())] * len(answers)
    for rows in groups.values():
        some = [answers[row] for row in rows]
        part_NV = logits_NV if len(rows) == len(answers) else logits_NV[torch.tensor(rows, device=logits_NV.device)]
        uniform_N = np.array([answer.uniform_T[len(answer.ids)] if answer.params.temperature > 0 else 0.0 for answer in some])
        token_N, logprob_N = _drawn(part_NV, some, uniform_N)
        top = [_alternatives(part_NV[place], answer.params) for place, answer in enumerate(some)]
        for row, token, logprob, alternatives in zip(rows, token_N.tolist(), logprob_N.tolist(), top, strict=True):
            drawn[row] = token, logprob, alternatives
    return drawn


def _drawn(logits_NV: Tensor, answers: Sequence[Answer], uniform_N: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities (N,) of answers with equal settings."""
    params = answers[0].params
    if not any(punishes(answer.params) for answer in answers):
        found = sample_at_once(logits_NV, params, uniform_N, _bits(answers))
        if found is not None:
            return found
    return sample(logits_NV, params, uniform_N, _edited(logits_NV, answers))


def _bits(answers: Sequence[Answer]) -> NDArray[np.int32] | None:
    """Which tokens constraints allow, a bit a token; None if nobody asks for that."""
    steered = [(row, answer.steering) for row, answer in enumerate(answers) if answer.steering is not None and answer.ended is None]
    if not steered:
        return None
    bits_NW = np.full((len(answers), len(steered[0][1].bits_W)), -1, dtype=np.int32)
    for row, steering in steered:
        bits_NW[row] = steering.bits()
    return bits_NW


def _edited(logits_NV: Tensor, answers: Sequence[Answer]) -> Tensor | None:
    """The logits with penalties done, and minus infinity where a constraint allows no token; None if nobody asks for either."""
    punished = [row for row, answer in enumerate(answers) if punishes(answer.params)]
    steered = [(row, answer.steering) for row, answer in enumerate(answers) if answer.steering is not None and answer.ended is None]
    if not (punished or steered):
        return None
    edited_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32), copy=True)
    for row in punished:
        answers[row].seen.take(answers[row].ids)
        answers[row].seen.punish(edited_NV[row], answers[row].params)
    for row, steering in steered:
        refused_V = torch.from_numpy(~steering.allowed(edited_NV.shape[1])).to(edited_NV.device)
        edited_NV[row].masked_fill_(refused_V, float("-inf"))
    return edited_NV


def _alternatives(logits_V: Tensor, params: SamplingParams) -> Alternatives:
    if not params.top_logprobs:
        return ()
    scaled_V = tempered(logits_V, params)
    value_K, token_K = scaled_V.topk(min(params.top_logprobs, len(scaled_V)))
    return tuple(zip(token_K.tolist(), (value_K - scaled_V.logsumexp(-1)).tolist(), strict=True))

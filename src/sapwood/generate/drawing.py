"""One step's logits in, one token for each answer out: each by its own parameters, history and random numbers.

In bf16 on a CPU one call draws them all. Elsewhere answers with equal settings are drawn together; a row's token depends on that row
alone, so grouping changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.generate.answer import Answer
from sapwood.generate.penalties import Edits, edited, edits
from sapwood.generate.sampling import sample, sample_at_once, tempered
from sapwood.generate.steering import Steering
from sapwood.records import SamplingParams
from sapwood.records.sampling import Alternatives

Drawn = tuple[int, float, Alternatives]
"""A token, its log-probability, and the most likely tokens where they were asked for."""


def draw(logits_NV: Tensor, answers: Sequence[Answer]) -> list[Drawn]:
    """The next token of each answer; row i of the logits is the i-th answer's."""
    uniform_N = np.array([answer.uniform_T[len(answer.ids)] if answer.params.temperature > 0 else 0.0 for answer in answers])
    changed = _changed(logits_NV, answers)
    found = sample_at_once(logits_NV, [answer.params for answer in answers], uniform_N, _bits(answers), changed)
    token_N, logprob_N = found if found is not None else _in_groups(logits_NV, answers, uniform_N, changed)
    top = (_alternatives(logits_NV[row], answer.params) for row, answer in enumerate(answers))
    return list(zip(token_N.tolist(), logprob_N.tolist(), top, strict=True))


def _in_groups(
    logits_NV: Tensor, answers: Sequence[Answer], uniform_N: NDArray[np.float64], changed: Edits | None
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities (N,) by torch."""
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for row, answer in enumerate(answers):
        params = answer.params
        groups.setdefault((params.temperature, params.top_k, params.top_p, params.min_p), []).append(row)
    edited_NV = _edited(logits_NV, answers, changed)
    parts = []
    for rows in groups.values():
        place = slice(None) if len(groups) == 1 else torch.tensor(rows, device=logits_NV.device)
        parts.append(sample(logits_NV[place], answers[rows[0]].params, uniform_N[rows], None if edited_NV is None else edited_NV[place]))
    place_N = torch.tensor([row for rows in groups.values() for row in rows], device=logits_NV.device).argsort()
    token_N, logprob_N = (torch.cat(part)[place_N] for part in zip(*parts, strict=True))
    return token_N, logprob_N


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


def _edited(logits_NV: Tensor, answers: Sequence[Answer], changed: Edits | None) -> Tensor | None:
    """The logits with edits done, and minus infinity where a constraint allows no token; None if nobody asks for either."""
    steered = _steered(answers)
    if changed is None and not steered:
        return None
    edited_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32), copy=True)
    if changed is not None:
        edited_NV[changed.row_E, changed.id_E] = changed.value_E
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

"""Logits of tokens that were seen already, made smaller: repetition, presence and frequency penalties.

In: the tokens of a prompt and of the completion so far. Out: a row of logits changed in place, only where a token was seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sapwood.records import SamplingParams


class Seen:
    """The distinct tokens of one sequence, each with the times it was sampled."""

    def __init__(self, prompt: Sequence[int], limit: int) -> None:
        """At most `limit` tokens will be sampled."""
        distinct = np.unique(np.array(prompt, dtype=np.int64))
        self._ids = np.concatenate([distinct, np.zeros(limit, dtype=np.int64)])
        self._times = np.zeros(len(self._ids))
        self._place = {int(token): place for place, token in enumerate(distinct)}
        self._taken = 0

    def take(self, ids: Sequence[int]) -> None:
        """Count what was sampled since the last time; `ids` are all that were sampled."""
        for token in ids[self._taken :]:
            place = self._place.setdefault(token, len(self._place))
            self._ids[place] = token
            self._times[place] += 1
        self._taken = len(ids)

    def punish(self, logits_V: Tensor, params: SamplingParams) -> None:
        """Change a row of logits in place: repetition first, as in transformers, then presence and frequency, as in OpenAI's API."""
        num = len(self._place)
        ids = torch.from_numpy(self._ids[:num]).to(logits_V.device)
        times = torch.from_numpy(self._times[:num]).to(logits_V)
        found = logits_V[ids]
        if params.repetition_penalty != 1:
            found = torch.where(found < 0, found * params.repetition_penalty, found / params.repetition_penalty)
        logits_V[ids] = found - params.presence_penalty * (times > 0).to(times.dtype) - params.frequency_penalty * times


def punishes(params: SamplingParams) -> bool:
    """Is any penalty asked for?"""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

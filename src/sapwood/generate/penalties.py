"""Logits that are changed before a token is drawn: biases, then repetition, presence and frequency penalties.

In: the biases asked for, the tokens of a prompt and of the completion so far. Out: new logits for those tokens alone; a row of logits is
never copied for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.generate.crossing import onto
from sapwood.records import SamplingParams


class Edits(NamedTuple):
    """Logits that take the place of the model's, in order of their rows."""

    row_E: Tensor
    id_E: Tensor
    value_E: Tensor
    """In fp32 or wider."""


class Seen:
    """The distinct tokens of one sequence and those that have a bias; the first E of each array are in use."""

    def __init__(self, prompt: Sequence[int], limit: int, bias: Sequence[tuple[int, float]] = ()) -> None:
        """At most `limit` tokens will be sampled."""
        distinct = np.unique(np.array(prompt, dtype=np.int64))
        self._place = {int(token): place for place, token in enumerate(distinct)}
        room = len(distinct) + len(bias) + limit
        self._ids, self._said = np.zeros(room, dtype=np.int64), np.zeros(room, dtype=np.bool_)
        self._ids[: len(distinct)], self._said[: len(distinct)] = distinct, True
        self._times, self._bias = np.zeros(room), np.zeros(room)
        self._taken = 0
        for token, value in bias:
            self._bias[self._place_of(token)] = value

    def take(self, ids: Sequence[int]) -> None:
        """Count what was sampled since the last time; `ids` are all that were sampled."""
        for token in ids[self._taken :]:
            place = self._place_of(token)
            self._said[place] = True
            self._times[place] += 1
        self._taken = len(ids)

    def _place_of(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        self._ids[place] = token
        return place

    @property
    def ids_E(self) -> NDArray[np.int64]:
        """The tokens."""
        return self._ids[: len(self._place)]

    @property
    def said_E(self) -> NDArray[np.bool_]:
        """Whether each stands in the prompt or the completion."""
        return self._said[: len(self._place)]

    @property
    def times_E(self) -> NDArray[np.float64]:
        """How often each was sampled."""
        return self._times[: len(self._place)]

    @property
    def bias_E(self) -> NDArray[np.float64]:
        """What is added to the logit of each."""
        return self._bias[: len(self._place)]


def edited(logits_NV: Tensor, rows: Sequence[int], seen: Sequence[Seen], params: Sequence[SamplingParams]) -> Edits:
    """The new logits of these rows, which rise: bias first, as in vLLM, then repetition, as in transformers, then presence and
    frequency, as in OpenAI's API."""
    counts = [len(one.ids_E) for one in seen]
    wide = torch.promote_types(logits_NV.dtype, torch.float32)

    def joined(parts: Sequence[NDArray[np.generic]], dtype: torch.dtype) -> Tensor:
        return onto(logits_NV.device, np.concatenate(parts)).to(dtype)

    def each(values: Sequence[float]) -> Tensor:
        return onto(logits_NV.device, np.repeat(np.array(values, dtype=np.float64), counts)).to(wide)

    row_E = onto(logits_NV.device, np.repeat(np.array(rows, dtype=np.int64), counts))
    id_E, times_E = joined([one.ids_E for one in seen], torch.int64), joined([one.times_E for one in seen], wide)
    repetition_E = each([one.repetition_penalty for one in params])
    found_E = logits_NV[row_E, id_E].to(wide) + joined([one.bias_E for one in seen], wide)
    repeated_E = torch.where(found_E < 0, found_E * repetition_E, found_E / repetition_E)
    found_E = torch.where(joined([one.said_E for one in seen], torch.bool), repeated_E, found_E)
    presence_E = each([one.presence_penalty for one in params]) * (times_E > 0).to(wide)
    return Edits(row_E, id_E, found_E - presence_E - each([one.frequency_penalty for one in params]) * times_E)


def edits(params: SamplingParams) -> bool:
    """Is any bias or penalty asked for?"""
    return bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty or params.logit_bias)

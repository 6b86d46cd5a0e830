"""Models whose layers cannot share prefixes: one prompt at a time, with transformers' own cache.

In: the ids of a prompt. Out: the logits behind it and behind each token that is pushed. A model that returns no cache is
computed anew for each token, which is slow and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sapwood.model import LanguageModel

CACHES = ("past_key_values", "cache_params")
"""Names under which models of transformers return their cache, and take it."""


class RowByRow:
    """One sequence and its cache."""

    def __init__(self, model: LanguageModel, ids: Sequence[int]) -> None:
        self._model = model
        self._ids = list(ids)
        self._cache: dict[str, Any] = {}
        self._seen = 0

    def logits(self) -> Tensor:
        """Logits (1, V) behind the last token."""
        fresh = torch.tensor([self._ids[self._seen :]], device=self._model.device)
        out = self._model.base.get_decoder()(input_ids=fresh, use_cache=True, **self._cache)
        self._cache = {name: out[name] for name in CACHES if out.get(name) is not None}
        if self._cache:
            self._seen = len(self._ids)
        return self._model.logits(out.last_hidden_state[:, -1])

    def extend(self, ids: Sequence[int]) -> None:
        """Take what was sampled."""
        self._ids.extend(ids)

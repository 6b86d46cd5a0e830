"""Models whose layers cannot share prefixes: one prompt at a time, with transformers' own cache.

In: answers that wait. Out: the logits behind a prompt, and behind each token that was sampled. A model that returns no cache is
computed anew for each token, which is slow and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sapwood.generate.answer import Answer
from sapwood.model import LanguageModel
from sapwood.model.routes import Routes

CACHES = ("past_key_values", "cache_params")
"""Names under which models of transformers return their cache, and take it."""


class PlainRows:
    """One running sequence and its cache. The same face as `ForestRows`."""

    slots = 1

    def __init__(self, model: LanguageModel, routes: Routes) -> None:
        self._model, self._routes = model, routes
        self.running: list[Answer] = []
        self._cache: dict[str, Any] = {}
        self._seen = 0

    def refusal(self, answer: Answer) -> str | None:
        """Why a prompt can never be answered, if it cannot."""
        if not answer.prompt.media:
            return None
        kind = type(self._model.base).__name__
        return f"{kind} cannot share prefixes, and answers prompts of text alone. Choose another model."

    def plan(self, answers: Sequence[Answer]) -> list[Answer]:
        """In the order in which they came."""
        return list(answers)

    def withdraw(self, answer: Answer) -> None:
        """A waiting answer was cancelled: nothing was kept for it."""

    def fits(self, answer: Answer) -> bool:
        """One sequence runs at a time."""
        return not self.running

    def admit(self, waiting: Sequence[Answer]) -> tuple[list[Answer], Tensor | None]:
        """Compute the first prompt; returns it, and the logits (1, V) behind it."""
        self._cache, self._seen = {}, 0
        return [waiting[0]], self._logits(waiting[0])

    def settle(self, entered: Sequence[Answer]) -> None:
        """It runs, unless it has ended with its first token."""
        self.running = [answer for answer in entered if answer.ended is None]

    def decode(self) -> Tensor:
        """Logits (1, V) behind the last token."""
        return self._logits(self.running[0])

    def leave(self) -> None:
        """Let an ended sequence go."""
        self.running = [answer for answer in self.running if answer.ended is None]

    def _logits(self, answer: Answer) -> Tensor:
        ids = [*answer.prompt.ids, *answer.ids]
        fresh = torch.tensor([ids[self._seen :]], device=self._model.device)
        with self._routes.of([answer.adapter] * fresh.shape[1]):
            out = self._model.base.get_decoder()(input_ids=fresh, use_cache=True, **self._cache)
        self._cache = {name: out[name] for name in CACHES if out.get(name) is not None}
        if self._cache:
            self._seen = len(ids)
        with self._routes.of([answer.adapter]):
            return self._model.logits(out.last_hidden_state[:, -1])

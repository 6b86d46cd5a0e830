"""One trained turn: what `Chat.turns` gives, and what a training row is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sapwood.records import Prompt, Row


@dataclass(frozen=True)
class Turn:
    """One trained turn: the prompt, and what the model must write, as text and as ids with the stop token last."""

    index: int
    """Place of the message in the conversation, from 0."""
    prompt: Prompt
    text: str
    ids: tuple[int, ...]
    weight: float
    added_arguments: Mapping[str, Any]
    """Template arguments that the turn needed and the conversation did not give."""

    @property
    def row(self) -> Row:
        """The training row."""
        weights_T = np.full(len(self.ids), self.weight, dtype=np.float32)
        return Row(np.array(self.prompt.ids, dtype=np.int64), np.array(self.ids, dtype=np.int64), weights_T, self.prompt.media)

"""The one kind of training row: (prompt tokens, completion tokens, weights)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.records.conversation import Source
from sapwood.records.media import MediaSpan

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What inference sends, what the model must produce, and how much each produced token counts.

    The first completion token is predicted from the last prompt token, so a prompt has at least one token.
    """

    prompt_T: Ids
    completion_T: Ids
    weights_T: Weights
    """One loss weight for each completion token."""
    media: tuple[MediaSpan, ...] = ()
    """Images and sounds of the prompt. They stand at tokens that are never trained."""

    def __post_init__(self) -> None:
        assert len(self.prompt_T) > 0, "a row needs at least one prompt token to predict from"
        assert len(self.completion_T) == len(self.weights_T) > 0, "one weight a completion token, and at least one"
        assert all(span.start >= 0 and span.places_F[-1] < len(self.prompt_T) for span in self.media), "media stands in the prompt"

    @property
    def inputs_T(self) -> Ids:
        """The tokens that go through the model: all but the last, which nothing is predicted from."""
        return np.concatenate([self.prompt_T, self.completion_T[:-1]])

    @property
    def keys_T(self) -> Ids:
        """What is compared where rows share beginnings: the tokens, and at a medium's places its content's hash."""
        keys_T = self.inputs_T
        for span in self.media:
            keys_T[span.places_F] = span.content.key
        return keys_T

    @property
    def length(self) -> int:
        """Tokens of the row as given, prompt and completion."""
        return len(self.prompt_T) + len(self.completion_T)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """All rows of one conversation, pair, group or item: the unit that is split, shuffled and batched.

    An example is never cut across micro-batches.
    """

    rows: tuple[Row, ...]
    source: Source | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Sum of the loss weights of all rows."""
        return float(sum(float(row.weights_T.sum(dtype=np.float64)) for row in self.rows))

    @property
    def length(self) -> int:
        """Row tokens: shared beginnings are counted in every row."""
        return sum(row.length for row in self.rows)

    @property
    def where(self) -> str:
        """The place to name in messages about this example."""
        return str(self.source) if self.source else "an example made in code"

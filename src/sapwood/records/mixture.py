"""Several sources of examples, and how often an epoch trains each: `a.jsonl*2 b.jsonl*0.5`.

In: the source of each example and a weight for each source. Out: how many examples of a source an epoch holds. Which ones
those are is a matter of the order (`train.order`). Left out on purpose: weights that change while training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """S sources of B examples. With a weight of 2 each example of a source is trained twice an epoch, with 0.5 every second one."""

    names: tuple[str, ...]
    """Of the sources, as a person gave them."""
    weights: tuple[float, ...]
    source_B: NDArray[np.int64]
    """Number of each example's source."""

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.weights) > int(self.source_B.max(initial=-1)), "each source has a name and a weight"
        assert all(weight > 0 for weight in self.weights)

    @property
    def sizes(self) -> list[int]:
        """Examples of each source."""
        return np.bincount(self.source_B, minlength=len(self.names)).tolist()  # type: ignore[no-any-return]

    @property
    def counts(self) -> list[int]:
        """Examples of each source that one epoch trains, repeated ones counted each time; at least one of a source that has any."""
        return [max(1, round(size * weight)) if size else 0 for size, weight in zip(self.sizes, self.weights, strict=True)]

    @property
    def digest(self) -> str:
        """Of all that decides the order."""
        digest = hashlib.sha256(np.asarray(self.weights, dtype=np.float64).tobytes())
        digest.update(np.ascontiguousarray(self.source_B, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def lines_for_people(self) -> list[str]:
        """One line a source."""
        total = sum(self.counts)
        rows = zip(self.names, self.weights, self.sizes, self.counts, strict=True)
        return [
            f"mixture    {name}: {size:,} trained rows × {weight:g} = {count:,} an epoch ({count / total:.1%})"
            for name, weight, size, count in rows
        ]


def mixture_of(names: Sequence[str], weights: Sequence[float], source_B: NDArray[np.int64]) -> Mixture | None:
    """The mixture, or None where every weight is 1: then an epoch is every example once."""
    if all(weight == 1 for weight in weights):
        return None
    return Mixture(tuple(names), tuple(weights), source_B)

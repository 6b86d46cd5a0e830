"""What a run must know about all of its examples, without holding them: sizes, extremes, and one hash.

In: examples, be they a list or rows on a disk that are made when they are asked for. Out: arrays of one entry an example.
A sequence that knows its facts already (they were stored with it) says so by a `facts` attribute, and nothing is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.records.rows import Example

FACT = np.dtype(
    [
        ("length", "<i8"),  # row tokens, shared beginnings counted in every row
        ("longest", "<i8"),  # tokens of its longest row
        ("trained", "<i8"),  # tokens of a weight above 0
        ("largest_id", "<i8"),
        ("weight", "<f8"),  # sum of the loss weights
        ("digest", "V16"),
    ]
)
"""One example."""


def fact_of(example: Example) -> tuple[int, int, int, int, float, bytes]:
    """The facts of one example, in the order of `FACT`."""
    return (
        example.length,
        max(row.length for row in example.rows),
        sum(int(np.count_nonzero(row.weights_T > 0)) for row in example.rows),
        max(max(int(row.prompt_T.max()), int(row.completion_T.max())) for row in example.rows),
        example.weight,
        digest_of(example),
    )


def digest_of(example: Example) -> bytes:
    """16 bytes that stand for the tokens, weights and media of an example's rows."""
    digest = hashlib.blake2b(digest_size=16)
    for row in example.rows:
        for array in (row.prompt_T, row.completion_T, row.weights_T):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(array.tobytes())
        for span in row.media:
            digest.update(span.content.hash.encode() + span.places_F.tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """One entry an example, in order."""

    table_B: NDArray[Any]
    """Of the type `FACT`."""

    def of(self, name: str) -> NDArray[Any]:
        """One column: `length`, `longest`, `trained`, `largest_id` or `weight`."""
        column: NDArray[Any] = self.table_B[name]
        return column

    def __len__(self) -> int:
        return len(self.table_B)


def facts_of(examples: Sequence[Example]) -> Facts:
    """The facts of all examples, read where they are stored, else found."""
    stored = getattr(examples, "facts", None)
    if isinstance(stored, Facts):
        return stored
    return Facts(np.array([fact_of(example) for example in examples], dtype=FACT))


def hash_of_rows(examples: Iterable[Example]) -> str:
    """Of the tokens, weights and media of all rows, in order: what a run's identity and its checkpoints hold."""
    stored = getattr(examples, "facts", None)
    if isinstance(stored, Facts):
        return hashlib.sha256(np.ascontiguousarray(stored.table_B["digest"]).tobytes()).hexdigest()
    digest = hashlib.sha256()
    for example in examples:
        digest.update(digest_of(example))
    return digest.hexdigest()

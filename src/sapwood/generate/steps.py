"""The narrow interface between sequences over the tree (`ForestRows`) and what runs one token of each.

`padded.PaddedStep` has rows of a cache that grows: every length is the one that is needed, which a CPU likes best. `static.StaticStep` has
tables of slots of an arena that never moves: few shapes, which a GPU can replay. Tree, admission, eviction and sampling are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sapwood.generate.kept import Kept, Layers
from sapwood.generate.media import PromptInput
from sapwood.generate.tree import Node

Ints = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Place:
    """Where one sequence stands in the tree."""

    prompt: PromptInput
    end: Node
    limit: int
    """Tokens that may be sampled."""


class DecodeStep(Protocol):
    """Where the keys and values of running sequences lie, and one forward for the last token of each. Row i is the i-th that runs."""

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values may be in memory, in the tree and in the rows."""
        ...

    def keep(self, layers: Layers, stretches: Sequence[tuple[int, int]]) -> Sequence[Kept]:
        """See `kept.Store`."""
        ...

    def alone(self, length: int, limit: int) -> int:
        """Tokens of memory that a prompt of this length needs with nothing beside it, at its greatest length."""
        ...

    def fits(self, entering: Sequence[Place], path: set[Node]) -> bool:
        """Is there room for these beside those that run, at their greatest lengths, if all but `path` is dropped from the tree?"""
        ...

    def prepare(self, entering: Sequence[Place], behind: int, path: set[Node]) -> int:
        """These will enter, and `behind` others wait. Returns the tokens that the tree may hold, those of this prefill among them."""
        ...

    def enter(self, places: Sequence[Place]) -> None:
        """They run, in rows behind those that run."""
        ...

    def regroup(self) -> None:
        """Nodes may have been split, or rows have left."""
        ...

    def forward(self, tokens_N: Ints) -> Tensor:
        """Logits (N, V) behind one more token of each row."""
        ...

    def leave(self, row: int) -> None:
        """A row ends; the last one takes its place."""
        ...

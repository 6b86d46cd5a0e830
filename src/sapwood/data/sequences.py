"""Prepared rows as sequences: what training and evaluation index, slice and iterate, without any of it in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sapwood.data.packed import Packed
from sapwood.data.splitting import Keys
from sapwood.records import Conversation, Document, Example, Facts

Order = NDArray[np.int64]


class PackedExamples(Sequence[Example]):
    """Some examples of a folder, in an order; each is made when it is asked for."""

    def __init__(self, packed: Packed, order: Order) -> None:
        self._packed, self._order = packed, order
        self._facts: Facts | None = None

    @property
    def folder(self) -> Path:
        """Where the rows lie."""
        return self._packed.folder

    @property
    def facts(self) -> Facts:
        """Sizes, extremes and digests, as stored."""
        if self._facts is None:
            (table_B,) = self._packed.columns("fact")
            self._facts = Facts(table_B[self._order])
        return self._facts

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return PackedExamples(self._packed, self._order[index])
        return self._packed.example(int(self._order[index]))


class PackedRecords(Sequence[Any]):
    """Some records (conversations, documents) of a folder, in an order; each is read when it is asked for."""

    def __init__(self, packed: Packed, order: Order) -> None:
        self._packed, self._order = packed, order

    @property
    def keys(self) -> Keys:
        """The `prompt_key` of each, as stored."""
        (key_B,) = self._packed.columns("key")
        found: Keys = key_B[self._order]
        return found

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Conversation | Document: ...
    @overload
    def __getitem__(self, index: slice) -> PackedRecords: ...
    def __getitem__(self, index: int | slice) -> Conversation | Document | PackedRecords:
        if isinstance(index, slice):
            return PackedRecords(self._packed, self._order[index])
        return self._packed.record(int(self._order[index]))

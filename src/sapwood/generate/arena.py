"""Keys and values of all layers in tensors that never move: a slot a token, and a list of the slots that are free.

In: how many tokens fit. Out: slots. A slot means the same place in every layer. Those of one stretch need not lie side by side: a node
that is split shares out the numbers of its slots and copies nothing, one that is dropped gives them back, and memory never falls into
pieces. (A radix tree over slots of one token is that of SGLang, arXiv:2312.07104 §3.)
Two slots belong to nobody. `NOTHING` is what a table of slots says where a row has no token yet: it holds zeros, for what is masked out
must be finite. `PADDING` is where rows that only fill a batch up write.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.errors import ModelError
from sapwood.generate.crossing import onto
from sapwood.generate.kept import Layers

Ints = NDArray[np.int64]

NOTHING, PADDING = 0, 1
_RESERVED = 2


class Slots:
    """The keys and values of a node: the slots of its tokens, in their order."""

    def __init__(self, arena: Arena, slots_L: Ints) -> None:
        self._arena = arena
        self.slots_L = slots_L
        self._on_device: Tensor | None = None

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = self._arena.keys[layer], self._arena.values[layer]
        if self._on_device is None:  # once for all layers
            self._on_device = onto(keys.device, self.slots_L)
        return keys.index_select(1, self._on_device), values.index_select(1, self._on_device)

    def split(self, length: int) -> tuple[Slots, Slots]:
        """Nothing is copied, and rows that attend to these slots need not know."""
        return Slots(self._arena, self.slots_L[:length]), Slots(self._arena, self.slots_L[length:])

    def drop(self) -> None:
        """The slots are free again."""
        self._arena.give(self.slots_L)


class Arena:
    """One engine's keys and values. Made of no memory until the first token comes."""

    def __init__(self, one_token: Layers, tokens: int) -> None:
        """`one_token` holds the keys and values of one token, for their shapes and types; at most `tokens` are held."""
        self.tokens = tokens
        self.keys: list[Tensor] = []
        """(Hkv, slots, K) of each layer."""
        self.values: list[Tensor] = []
        self._one_token = one_token
        self._free_S: Ints = np.empty(0, dtype=np.int64)
        """The first `free` of them are free."""
        self.free = 0

    def take(self, count: int) -> Ints:
        """(count,) free slots, whose content has no meaning."""
        if not self.keys:
            self._allocate()
        if count > self.free:
            raise ModelError(
                f"{count} tokens of cache are wanted and {self.free} are free: another session of this engine holds the others."
            )
        self.free -= count
        return self._free_S[self.free : self.free + count][::-1].copy()

    def give(self, slots_L: Ints) -> None:
        """These are free again."""
        self._free_S[self.free : self.free + len(slots_L)] = slots_L[::-1]
        self.free += len(slots_L)

    def keep(self, layers: Layers, stretches: Sequence[tuple[int, int]]) -> list[Slots]:
        """`Store.keep`: one write a layer and side for all stretches."""
        lengths = [end - start for start, end in stretches]
        slots_T = self.take(sum(lengths))
        columns_T = np.concatenate([np.arange(start, end) for start, end in stretches])
        device = layers[0][0].device
        target, source = onto(device, slots_T), onto(device, columns_T)
        for layer, sides in enumerate(layers):
            for arena, side_HTK in zip((self.keys[layer], self.values[layer]), sides, strict=True):
                arena.index_copy_(1, target, side_HTK if len(columns_T) == side_HTK.shape[1] else side_HTK.index_select(1, source))
        return [Slots(self, part) for part in np.split(slots_T, np.cumsum(lengths)[:-1])]

    def release(self) -> None:
        """Give the memory back; nothing may be held. It is taken again with the next token."""
        assert not self.keys or self.free == self.tokens, "somebody holds slots"
        self.keys.clear()
        self.values.clear()
        self.free = 0

    def _allocate(self) -> None:
        size = self.tokens + _RESERVED
        with torch.inference_mode(False):  # written to outside of it as well
            for key, value in self._one_token:
                self.keys.append(torch.zeros((key.shape[0], size, key.shape[2]), dtype=key.dtype, device=key.device))
                self.values.append(torch.zeros((value.shape[0], size, value.shape[2]), dtype=value.dtype, device=value.device))
        self._free_S = np.arange(size - 1, _RESERVED - 1, -1)
        self.free = self.tokens

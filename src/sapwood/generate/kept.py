"""Where the keys and values of computed tokens lie: the face that the tree, a prefill and a decode step see.

A node of the tree holds a `Kept`. What fills it is a `Store`: `Apart` gives each node tensors of its own (the way of a CPU, where
memory is had in any size at once); `arena.Arena` gives it slots of tensors that never move (the way of a GPU, where a decode step that
is captured holds their addresses).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]
"""Keys (Hkv, L, K) and values (Hkv, L, K of the values) of each layer, for L tokens."""


class Kept(Protocol):
    """Keys and values of one stretch of tokens, in every layer."""

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (Hkv, L, K) and values (Hkv, L, K of the values) of one layer."""
        ...

    def split(self, length: int) -> tuple[Kept, Kept]:
        """The first `length` tokens and those behind them. What was split is not used any more."""
        ...

    def drop(self) -> None:
        """Give their memory back. Called once, by what holds them last."""
        ...


class Store(Protocol):
    """Takes what a prefill has computed."""

    def keep(self, layers: Layers, stretches: Sequence[tuple[int, int]]) -> Sequence[Kept]:
        """Of keys and values of a flat row, those of each stretch [start, end). They are copied: a slice would keep the whole row in
        memory for as long as one node lives, and with it the queries that stand beside its keys."""
        ...


class Apart:
    """Tensors of its own for each stretch."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.layers[layer]

    def split(self, length: int) -> tuple[Apart, Apart]:
        """Copies: a slice would keep the whole in memory for as long as one part lives."""
        upper = [(key[:, :length].clone(), value[:, :length].clone()) for key, value in self.layers]
        lower = [(key[:, length:].clone(), value[:, length:].clone()) for key, value in self.layers]
        return Apart(upper), Apart(lower)

    def drop(self) -> None:
        """Tensors go with the last reference to them."""

    @staticmethod
    def keep(layers: Layers, stretches: Sequence[tuple[int, int]]) -> list[Apart]:
        """`Store.keep`: the class is a store."""
        return [Apart([(_copied(key[:, a:b]), _copied(value[:, a:b])) for key, value in layers]) for a, b in stretches]


def _copied(side_HTK: Tensor) -> Tensor:
    return side_HTK.clone(memory_format=torch.contiguous_format)

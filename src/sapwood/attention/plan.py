"""One forest, ready for the model: which path computes the attention of each layer, and the slices it needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sapwood.attention.dense import dense_attention
from sapwood.attention.flash import flash_is_available, flash_tree_attention, parts_of
from sapwood.attention.flex import Blocks, blocks_of, flex_attention, flex_serves
from sapwood.attention.interface import LayerCall
from sapwood.attention.plain import plain_attention
from sapwood.forest import Forest

Path = Literal["auto", "flash", "flex", "plain", "dense"]


class TreeAttention:
    """The keyword `forest` of a training or scoring pass over one forest.

    `path="auto"` takes the flash kernel where it is exact (a CPU, no soft cap, no sinks, equal head widths, no window that
    any token reaches), the compiled kernel on CUDA where it was tried and agreed, and the plain path elsewhere.
    """

    def __init__(self, forest: Forest, path: Path = "auto") -> None:
        self.forest = forest
        self.path = path
        self._parts = parts_of(forest)
        self._blocks: dict[tuple[int | None, torch.device], Blocks] = {}
        self._deepest = int(forest.positions_T.max(initial=0))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        """(1, H, T, K) → (1, T, H, K of the values)."""
        if call.window is not None and self._deepest < call.window:
            call = LayerCall(call.layer, call.scale, None, call.softcap, call.sinks_H)
        if self.path == "dense":
            out = dense_attention(query, key, value, self.forest, call)
        elif self.path == "flash" or (self.path == "auto" and _flash_serves(query, value, call)):
            out = flash_tree_attention(query, key, value, self._parts, call.scale)
        elif self.path == "flex" or (self.path == "auto" and flex_serves(query, key, value, call)):
            out = flex_attention(query, key, value, self._blocks_on(query.device, call.window), call)
        else:
            out = plain_attention(query, key, value, self.forest, call)
        return out.transpose(1, 2).contiguous()

    def _blocks_on(self, device: torch.device, window: int | None) -> Blocks:
        """The block mask of one kind of layer, made when it is first asked for."""
        if (window, device) not in self._blocks:
            self._blocks[window, device] = blocks_of(self.forest, window).to(device)
        return self._blocks[window, device]


def _flash_serves(query: Tensor, value: Tensor, call: LayerCall) -> bool:
    plain_layer = call.window is None and call.softcap is None and call.sinks_H is None
    return (
        plain_layer
        and query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float64)
        and query.shape[-1] == value.shape[-1]
        and flash_is_available()
    )

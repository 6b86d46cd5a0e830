"""Linear layers whose weights lie as oneDNN reads them: for inference on a CPU, where the same weights serve many products.

torch lays a weight out anew in every product, which costs more than a product of few rows. Here a copy is laid out once. In bf16 the
results are the same bits; a product of 32 rows takes three quarters of the time and one of a single row half. In fp32 they round
otherwise, for it is another library's product, and take half the time and less where torch's own is not made for the processor.

In: a model. Out: the same model, whose plain linear layers carry another `forward`, which serves within `in_force` alone: what trains,
scores or compares runs torch's own products, and never meets a copy. A copy belongs to one version of its weight and is made again when
that was written to; peft merges through `.data`, which torch does not count, so whoever puts copies in force looks for that first, as
engines do. A copy takes as much memory as the weight.
Left out on purpose: quantized layers, and other devices, which have products of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.model import by_instance

SMALLEST = 1 << 14
"""Weights with fewer numbers stay as they are."""

_IN_FORCE = ContextVar("packed weights are in force", default=False)

_COPIES: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()
"""Of each layer, the weight's version and its copy."""


def pack(module: nn.Module) -> int:
    """Give every plain linear layer inside `module` the packed forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _is_plain)


def unpack(module: nn.Module) -> int:
    """Give the layers inside `module` the forward of their class again, and let the copies go; returns how many had it."""
    forget(module)
    return by_instance.detach(_forward, module)


@contextmanager
def in_force() -> Iterator[None]:
    """Let packed layers run their copies in this thread, in inference mode."""
    token = _IN_FORCE.set(True)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def forget(module: nn.Module) -> None:
    """Let the copies go; those that are needed are made again."""
    for layer in module.modules():
        _COPIES.pop(layer, None)


def packed_bytes(module: nn.Module) -> int:
    """What the copies take once all are made."""
    return sum(layer.weight.nbytes for layer in module.modules() if isinstance(layer, nn.Linear) and _is_plain(layer))


def _forward(self: Any, x: Tensor) -> Tensor:
    """What a packed layer runs."""
    weight_OI: Tensor = self.weight
    if not _IN_FORCE.get() or not torch.is_inference_mode_enabled() or x.dtype != weight_OI.dtype or torch.is_autocast_enabled("cpu"):
        out: Tensor = type(self).forward(self, x)
        return out
    return _product(x, _copy(self, weight_OI), self.bias)


def _copy(layer: nn.Module, weight_OI: Tensor) -> Tensor:
    version = weight_OI.data_ptr(), -1 if weight_OI.is_inference() else weight_OI._version
    known = _COPIES.get(layer)
    if known is None or known[0] != version:
        known = _COPIES[layer] = version, _packed(weight_OI.detach())
    return known[1]


def _packed(weight_OI: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
    return found


def _product(x: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, "none", [], "")
    return out


def _is_plain(layer: Any) -> bool:
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.numel() < SMALLEST:
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return not hooked and _serves(layer.weight.dtype)


@cache
def _serves(dtype: torch.dtype) -> bool:
    """Has this torch these two operators, private to it, and do they give what it gives, up to the rounding of sums in another order?"""
    if dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    x, weight_OI, bias_O = (torch.randn(shape, generator=generator, device="cpu").to(dtype) for shape in ((2, 3, 48), (40, 48), (40,)))
    try:
        with torch.inference_mode():
            found, expected = _product(x, _packed(weight_OI), bias_O), F.linear(x, weight_OI, bias_O)
    except (AttributeError, RuntimeError):
        return False
    return bool((found - expected).float().norm() <= 8 * torch.finfo(dtype).eps * expected.float().norm())

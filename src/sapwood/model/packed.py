"""Linear layers whose weights are laid out once: for inference on a CPU, where the same weights serve many products.

torch lays a weight out anew in every product, which costs more than a product of few rows. Here a copy is laid out once: in bf16 for
our own product where it serves (`kernels/product.h`), which is faster than oneDNN's up to some hundred rows and as fast beyond; else as
oneDNN reads it, which is the case in fp32 and on processors with matrix registers (AMX). In bf16 sums are made in fp32 and rounded
once, as torch does; in fp32 they round otherwise, and take half the time and less where torch's own is not made for the processor.

In: a model. Out: the same model, whose plain linear layers carry another `forward`, which serves within `in_force` alone: what trains,
scores or compares runs torch's own products, and never meets a copy. A copy belongs to one version of its weight and is made again when
that was written to; peft merges through `.data`, which torch does not count, so whoever puts copies in force looks for that first, as
engines do. A copy takes as much memory as the weight.
Left out on purpose: quantized layers, and other devices, which have products of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood import kernels
from sapwood.model import by_instance

T = TypeVar("T")

SMALLEST = 1 << 14
"""Weights with fewer numbers stay as they are."""

_IN_FORCE = ContextVar("packed weights are in force", default=False)
_KNOWN: ContextVar[dict[nn.Module, Any] | None] = ContextVar("what stays as it is from step to step", default=None)

_COPIES: WeakKeyDictionary[nn.Module, dict[str, tuple[Hashable, Any]]] = WeakKeyDictionary()
"""Of each layer, by what they are for, the copies that were made and the versions of what they were made from."""


def pack(module: nn.Module) -> int:
    """Give every plain linear layer inside `module` the packed forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _is_plain)


def unpack(module: nn.Module) -> int:
    """Give the layers inside `module` the forward of their class again, and let the copies go; returns how many had it."""
    forget(module)
    return by_instance.detach(_forward, module)


@contextmanager
def in_force(known: dict[nn.Module, Any] | None = None) -> Iterator[None]:
    """Let packed layers run their copies in this thread, in inference mode.

    `known` is a place for what layers find out of themselves: to look at each of thirty layers anew takes a fifth of a step. Whoever
    gives one clears it whenever weights, adapters or hooks may have changed.
    """
    tokens = _IN_FORCE.set(True), _KNOWN.set(known)
    try:
        yield
    finally:
        _IN_FORCE.reset(tokens[0])
        _KNOWN.reset(tokens[1])


@contextmanager
def nothing_known() -> Iterator[None]:
    """Let layers look at themselves anew: within, they are not what they were in the step before."""
    token = _KNOWN.set(None)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def once(layer: nn.Module, find: Callable[[], T]) -> T:
    """What `find` gives, asked once a layer as long as it stays known."""
    known = _KNOWN.get()
    if known is None:
        return find()
    if layer not in known:
        known[layer] = find()
    found: T = known[layer]
    return found


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
    if not in_use(x) or x.dtype != weight_OI.dtype:
        out: Tensor = type(self).forward(self, x)
        return out
    return _product(x, weight_OI, kept(self, "alone", [weight_OI], lambda: _packed(weight_OI.detach())), self.bias)


def in_use(x: Tensor) -> bool:
    """Do packed layers run their copies on this, here and now?"""
    return _IN_FORCE.get() and torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(x.device.type)


def is_packed(layer: nn.Module) -> bool:
    """Has this very layer the packed forward?"""
    return by_instance.has(_forward, layer)


def kept(layer: nn.Module, use: str, sources: Sequence[Tensor], make: Callable[[], T]) -> T:
    """The copy of a layer for a use: made again when one of the tensors that it is made from was written to."""
    version = tuple([(source.data_ptr(), -1 if source.is_inference() else source._version) for source in sources])
    copies = _COPIES.setdefault(layer, {})
    known = copies.get(use)
    if known is None or known[0] != version:
        known = copies[use] = version, make()
    found: T = known[1]
    return found


def own_products(*tensors: Tensor) -> Any | None:
    """The kernels, where their products serve for these tensors, and are not slower than oneDNN's."""
    return None if _has_matrix_registers() else kernels.serves(*tensors)


@cache
def _has_matrix_registers() -> bool:
    """oneDNN's products are then several times as fast as any that know registers of 512 bits alone."""
    return bool(torch.cpu.get_capabilities().get("amx_tile", False))


def _own(weight_OI: Tensor) -> Any | None:
    return own_products(weight_OI) if weight_OI.shape[1] % 2 == 0 else None  # they go by pairs of inputs


def _packed(weight_OI: Tensor) -> Tensor:
    own = _own(weight_OI)
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI) if own is None else own.pack_weight(weight_OI.contiguous())
    return found


def _product(x: Tensor, weight_OI: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    own = _own(weight_OI)
    if own is None:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, "none", [], "")
        return out
    flat: Tensor = own.packed_product(x.reshape(-1, x.shape[-1]), packed, len(weight_OI), bias_O)
    return flat.view(*x.shape[:-1], len(weight_OI))


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
            found, expected = _product(x, weight_OI, _packed(weight_OI), bias_O), F.linear(x, weight_OI, bias_O)
    except (AttributeError, RuntimeError):
        return False
    return bool((found - expected).float().norm() <= 8 * torch.finfo(dtype).eps * expected.float().norm())

"""Gated feed-forward blocks: silu(gate(x)) · up(x) in one pass, forward and backward, where the kernels serve.

    a = gate(x), b = up(x),  y = down(silu(a) · b)                                   (Shazeer, arXiv:2002.05202, eq. 6)

torch makes four passes forward and six backward over the widest activations of the model, and keeps silu(a), too. In: a model.
Out: the same model, whose gated blocks carry another `forward`. A block is recognised by what it computes, as norms are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sapwood import kernels
from sapwood.model import by_instance
from sapwood.model.fused import project

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
ACTIVATIONS = ("SiLU", "SiLUActivation")


def fuse_gates(module: nn.Module) -> int:
    """Give every plain gated block inside `module` the fast forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _is_plain)


def unfuse_gates(module: nn.Module) -> int:
    """Give the blocks inside `module` the forward of their class again; returns how many had the fast one."""
    return by_instance.detach(_forward, module)


def is_fused_gate(block: nn.Module) -> bool:
    """Has this very block the fast forward?"""
    return by_instance.has(_forward, block)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, served: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.served = served
        product: Tensor = served.swiglu_forward(gate, up)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        d_gate, d_up = ctx.served.swiglu_backward(grad.contiguous(), *ctx.saved_tensors)
        return None, d_gate, d_up


def _forward(self: Any, x: Tensor) -> Tensor:
    """What a fused block runs: the formula where the kernels serve, else the forward of its class."""
    served = None if torch.is_autocast_enabled("cpu") else kernels.serves(x)  # with gradients or without: one loss, one sampler's logits
    if served is None:
        out: Tensor = type(self).forward(self, x)
        return out
    gate, up = project(x, (self.gate_proj, self.up_proj))
    wide = gate.shape[-1] % 32 == 0 and gate.dtype == up.dtype == torch.bfloat16
    product = _SwiGLU.apply(served, gate, up) if wide else self.act_fn(gate) * up  # type: ignore[no-untyped-call]
    found: Tensor = self.down_proj(product)
    return found


def _is_plain(block: Any) -> bool:
    """Is it three projections around silu, and does its class compute what the formula says? It is tried on a random row."""
    if any(not isinstance(getattr(block, name, None), nn.Module) for name in PROJECTIONS) or len(list(block.children())) != 4:
        return False
    activation: Any = getattr(block, "act_fn", None)
    width = getattr(block.gate_proj, "in_features", None)
    if type(activation).__name__ not in ACTIVATIONS or not isinstance(width, int):
        return False
    weight = next(block.down_proj.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    x = torch.linspace(-2, 3, 2 * width).sin().view(1, 2, width).to(weight.dtype)
    with torch.no_grad():
        own = type(block).forward(block, x)
        ours = block.down_proj(activation(block.gate_proj(x)) * block.up_proj(x))
    return isinstance(own, Tensor) and torch.equal(own, ours)

"""RMSNorm in few passes, for frozen weights on a CPU, with a backward written by hand.

    n = x / sqrt(mean(x²) + eps),    y = w · n                            (Zhang and Sennrich, arXiv:1910.07467, eq. 4)
    grad x = (w g - n · mean(w g n)) / sqrt(mean(x²) + eps)

The norms of transformers make some eight passes over fp32 copies of the whole input, and autograd keeps three of them. Here
the rows are taken in blocks that stay in the processor's cache, and x itself with one number a row is what is kept. In bf16 the
kernels do each row in one go, where they serve.

In: a model. Out: the same model, whose norm instances carry another `forward`. A norm is recognised by what it computes, not by
its name: one whose output differs from the formula (Gemma's scales by 1 + w) keeps its own. So does every norm while its
weight is trained (with gradients), and on a GPU, in fp16 and in fp64.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sapwood import kernels
from sapwood.model import by_instance

BLOCK_ELEMENTS = 1 << 16
"""Elements of a block: 256 KiB in fp32."""


def fuse_norms(module: nn.Module) -> int:
    """Give every plain RMSNorm inside `module` the fast forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _is_plain)


def unfuse_norms(module: nn.Module) -> int:
    """Give the norms inside `module` the forward of their class again; returns how many had the fast one."""
    return by_instance.detach(_forward, module)


def is_fused_norm(norm: nn.Module) -> bool:
    """Has this very norm the fast forward?"""
    return by_instance.has(_forward, norm)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """w · x / sqrt(mean(x²) + eps): (..., D) → (..., D), in the type of x, computed in fp32. Differentiable in x, once."""
    out: Tensor = _RMSNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        ctx.served = kernels.serves(x, weight_D) if x.shape[-1] % 32 == 0 else None
        if ctx.served is not None:
            y_TD, inverse_T = ctx.served.rms_forward(x_TD.contiguous(), weight_D, eps)
            ctx.save_for_backward(x, weight_D, inverse_T)
            return y_TD.view(x.shape)  # type: ignore[no-any-return]
        y_TD, inverse_T = torch.empty_like(x_TD), x.new_empty((len(x_TD), 1), dtype=torch.float32)
        for rows in _blocks(x_TD):
            wide = x_TD[rows].to(torch.float32, copy=True)
            squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
            inverse_T[rows] = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
            y_TD[rows] = wide.mul_(inverse_T[rows])
            y_TD[rows].mul_(weight_D)  # after the rounding, as the models were trained
        ctx.save_for_backward(x, weight_D, inverse_T)
        return y_TD.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight_D, inverse_T = ctx.saved_tensors
        x_TD, g_TD = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        if ctx.served is not None:
            return ctx.served.rms_backward(g_TD.contiguous(), x_TD.contiguous(), weight_D, inverse_T).view(x.shape), None, None
        d_TD = torch.empty_like(x_TD)
        for rows in _blocks(x_TD):
            inverse = inverse_T[rows]
            scaled = g_TD[rows].to(torch.float32, copy=True).mul_(weight_D)
            normed = x_TD[rows].to(torch.float32, copy=True).mul_(inverse)
            share = torch.linalg.vecdot(scaled, normed).unsqueeze(-1).div_(-x.shape[-1])
            d_TD[rows] = scaled.addcmul_(normed, share).mul_(inverse)
        return d_TD.view(x.shape), None, None


def _blocks(x_TD: Tensor) -> list[slice]:
    size = max(1, BLOCK_ELEMENTS // max(1, x_TD.shape[1]))
    return [slice(first, first + size) for first in range(0, len(x_TD), size)]


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    """What a fused norm runs: the formula where it is the class's own, else the forward of the class."""
    weight = self.weight
    served = hidden_states.dtype in (torch.bfloat16, torch.float32) and hidden_states.dtype == weight.dtype
    trained = weight.requires_grad and torch.is_grad_enabled()
    if not served or trained or hidden_states.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        out: Tensor = type(self).forward(self, hidden_states)
        return out
    return rms_norm(hidden_states, weight, epsilon(self))


def epsilon(norm: nn.Module) -> Any:
    """What a norm adds to the mean square, whatever its class calls it."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _is_plain(norm: nn.Module) -> bool:
    """Does this module compute the formula? It is tried on rows so small that eps counts; nothing random is drawn."""
    weight, eps = getattr(norm, "weight", None), epsilon(norm)
    if "RMSNorm" not in type(norm).__name__ or not isinstance(weight, Tensor) or not isinstance(eps, float):
        return False
    if len(inspect.signature(type(norm).forward).parameters) != 2:
        return False  # it takes more than an input: a gate, in Mamba's kin
    if weight.ndim != 1 or weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
        return False
    x = torch.linspace(-2, 3, 3 * len(weight)).sin().mul(eps**0.5).view(3, -1).to(weight.dtype)
    with torch.no_grad():
        own, ours = type(norm).forward(norm, x), rms_norm(x, weight, eps)
    return own.dtype == ours.dtype and torch.allclose(own, ours, rtol=2 * torch.finfo(weight.dtype).eps, atol=1e-6)

"""LoRA linear layers in two passes over their output, with a backward written by hand.

    forward:    y = x Wᵀ + b,  h = x Aᵀ,  y += s · h Bᵀ
    backward:   u = g B,  grad x = g W + s · u A,  grad A = s · uᵀ x,  grad B = s · gᵀ h

(Hu et al., arXiv:2106.09685, eq. 3, and its derivatives.) In: the LoRA layers of a peft model. Out: the same layers, whose
instances carry another `forward`. peft's classes, modules, parameters, names, saving and merging stay as they are.

peft casts x to the adapters' fp32, keeps that copy for the backward, and adds the two halves in passes of their own. Here
x is saved as it came (once, where several projections read the same x), the products run in the base's type from rounded
copies of A and B, and each sum is formed by the product that makes its second half. The gradient of W is never formed.

Left out on purpose: dropout, DoRA and other variants, several adapters at once, trained biases or base weights, fp16 and
quantized bases. A layer in such a state runs peft's own forward, in the very call, and so do merged and disabled adapters.
Rounded copies of A and B are made in every call, a few µs each: kept ones would go stale where someone writes to `.data`.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sapwood.model import by_instance

BASE_TYPES = (torch.bfloat16, torch.float32, torch.float64)
"""Types of the base weight that are served. fp16 is not: small gradients of the adapters would vanish in it."""

FEW_TOKENS = 48
"""Without gradients, peft's own forward is faster below this many tokens (1.2 times at one token, a draw at 48 on a CPU)."""


def fuse(module: nn.Module) -> int:
    """Give every plain LoRA linear layer inside `module` the fused forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _can_be_fused)


def unfuse(module: nn.Module) -> int:
    """Give the layers inside `module` peft's own forward again; returns how many had the fused one."""
    return by_instance.detach(_forward, module)


def is_fused(layer: nn.Module) -> bool:
    """Has this very layer the fused forward?"""
    return by_instance.has(_forward, layer)


def lora_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, A_RI: Tensor, B_OR: Tensor, scale: float) -> Tensor:
    """x Wᵀ + b + scale · (x Aᵀ) Bᵀ: (..., I) → (..., O), in the type of x and W. Differentiable in x, A and B, once.

    A and B may be wider than x; their gradients have their own type. In bf16 every product accumulates in fp32 and is rounded once.
    """
    if torch.is_grad_enabled():
        out: Tensor = _LoraLinear.apply(x, weight_OI, bias_O, A_RI, B_OR, scale)  # type: ignore[no-untyped-call]
        return out
    return _product(x, weight_OI, bias_O, A_RI, B_OR, scale)[0]


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, A_RI: Tensor, B_OR: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output (..., O), and h = x Aᵀ (T, R)."""
    x_TI = x.reshape(-1, x.shape[-1])
    h_TR = x_TI @ A_RI.to(x.dtype).T
    y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_TI, weight_OI.T)
    y_TO.addmm_(h_TR, B_OR.to(x.dtype).T, alpha=scale)
    return y_TO.view(*x.shape[:-1], len(weight_OI)), h_TR


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, A_RI: Tensor, B_OR: Tensor, scale: float) -> Tensor:
        y, h_TR = _product(x, weight_OI, bias_O, A_RI, B_OR, scale)
        ctx.save_for_backward(x, h_TR, weight_OI, A_RI, B_OR)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        x, h_TR, weight_OI, A_RI, B_OR = ctx.saved_tensors
        needs_x, _, _, needs_A, needs_B, _ = ctx.needs_input_grad
        g_TO = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_A = grad_B = None
        if needs_B:
            grad_B = (h_TR.T @ g_TO).T.to(B_OR.dtype, memory_format=torch.contiguous_format) * ctx.scale
        if needs_x or needs_A:
            u_TR = g_TO @ B_OR.to(g_TO.dtype)
            if needs_A:
                grad_A = (u_TR.T @ x.reshape(-1, x.shape[-1])).to(A_RI.dtype) * ctx.scale
            if needs_x:
                grad_x = (g_TO @ weight_OI).addmm_(u_TR, A_RI.to(u_TR.dtype), alpha=ctx.scale).view(x.shape)
        return grad_x, None, None, grad_A, grad_B, None


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a fused layer runs: the product above where it is exact, else the forward of the layer's class."""
    base: nn.Linear = self.base_layer
    decoding = not torch.is_grad_enabled() and x.numel() < FEW_TOKENS * x.shape[-1]
    adapter = None if args or kwargs or decoding else _plain_adapter(self, x)
    if adapter is None:
        out: Tensor = type(self).forward(self, x, *args, **kwargs)
        return out
    return lora_linear(x, base.weight, base.bias, self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter])


def _can_be_fused(layer: nn.Module) -> bool:
    """Is it peft's plain layer around torch's plain layer? Subclasses of either may compute something else."""
    return type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.fan_in_fan_out


def _plain_adapter(layer: Any, x: Tensor) -> str | None:
    """Name of the one adapter whose product is what peft's forward would compute on x now, or None. A few µs."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name: str = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or not isinstance(layer.lora_dropout[name], nn.Identity):
        return None
    base, A, B = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    if any(type(part) is not nn.Linear or part._forward_hooks or part._forward_pre_hooks for part in (base, A, B)):
        return None  # a hook wants to see each product
    weight, bias = base.weight, base.bias
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    typed = x.dtype == weight.dtype and x.dtype in BASE_TYPES and A.weight.dtype == B.weight.dtype
    typed = typed and A.weight.dtype in (weight.dtype, torch.float32)
    return name if frozen and typed and A.bias is None and B.bias is None and not torch.is_autocast_enabled(x.device.type) else None

"""LoRA linear layers in two passes over their output, with a backward written by hand.

    forward:    y = x Wᵀ + b,  h = x Aᵀ,  y += s · h Bᵀ
    backward:   u = g B,  grad x = g W + s · u A,  grad A = s · uᵀ x,  grad B = s · gᵀ h

(Hu et al., arXiv:2106.09685, eq. 3, and its derivatives.) In: the LoRA layers of a peft model. Out: the same layers, whose
instances carry another `forward`. peft's classes, modules, parameters, names, saving and merging stay as they are.

peft casts x to the adapters' fp32, keeps that copy for the backward, and adds the two halves in passes of their own. Here
x is saved as it came (once, where several projections read the same x), the products run in the base's type from rounded
copies of A and B, and each sum is formed by the product that makes its second half. The gradient of W is never formed.
Projections of the same x (queries, keys and values; gate and up) go together where a block asks for them so (`project`): their
thin A are one wider product, there and back, and the gradient of x is summed inside the products that make it. In bf16 the
kernels make all of these products on a block of rows while it is in the cache, where they serve.

Left out on purpose: dropout, DoRA and other variants, several adapters at once, trained biases or base weights, fp16 and
quantized bases. A layer in such a state runs peft's own forward, in the very call, and so do merged and disabled adapters.
Rounded copies of A and B are made in every call, a few µs each: kept ones would go stale where someone writes to `.data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sapwood import kernels
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


class Projection(NamedTuple):
    """x Wᵀ + b + scale · (x Aᵀ) Bᵀ, with W (O, I), b (O,) or None, A (R, I) and B (O, R)."""

    weight_OI: Tensor
    bias_O: Tensor | None
    A_RI: Tensor
    B_OR: Tensor
    scale: float


def lora_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, A_RI: Tensor, B_OR: Tensor, scale: float) -> Tensor:
    """x Wᵀ + b + scale · (x Aᵀ) Bᵀ: (..., I) → (..., O), in the type of x and W. Differentiable in x, A and B, once.

    A and B may be wider than x; their gradients have their own type. In bf16 every product accumulates in fp32 and is rounded once.
    """
    return lora_linears(x, [Projection(weight_OI, bias_O, A_RI, B_OR, scale)])[0]


def lora_linears(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """`lora_linear` of several projections of the same x, which is read once for all of their A."""
    if torch.is_grad_enabled():
        flat = [tensor for projection in projections for tensor in projection[:4]]
        out: tuple[Tensor, ...] = _LoraLinears.apply(x, [projection.scale for projection in projections], *flat)  # type: ignore[no-untyped-call]
        return out
    return _products(x, projections)[0]


def project(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """What layers that read the same x give: at once where each of them would run the product above, else one after the other."""
    projections = [_projection(layer, x) for layer in layers]
    known = [projection for projection in projections if projection is not None]
    return lora_linears(x, known) if len(known) == len(layers) else [layer(x) for layer in layers]


def _products(x: Tensor, projections: Sequence[Projection]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The outputs (..., O), and all h = x Aᵀ side by side, (T, R of all)."""
    x_TI = x.reshape(-1, x.shape[-1])
    if (served := _served(x_TI, projections)) is not None:
        weights, biases, all_A, all_B, scales = zip(*projections, strict=True)
        none = x.new_empty(0)
        found, h_TR = served.lora_forward(x_TI.contiguous(), weights, [none if b is None else b for b in biases], all_A, all_B, scales)
        return tuple(y_TO.view(*x.shape[:-1], y_TO.shape[-1]) for y_TO in found), h_TR
    h_TR = x_TI @ _stacked([projection.A_RI for projection in projections], x.dtype).T
    outputs, first = [], 0
    for weight_OI, bias_O, A_RI, B_OR, scale in projections:
        y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_TI, weight_OI.T)
        y_TO.addmm_(h_TR[:, first : first + len(A_RI)], B_OR.to(x.dtype).T, alpha=scale)
        outputs.append(y_TO.view(*x.shape[:-1], len(weight_OI)))
        first += len(A_RI)
    return tuple(outputs), h_TR


def _served(x_TI: Tensor, projections: Sequence[Projection]) -> Any | None:
    """The kernels, where they take these products: bf16 in sizes that fill registers, and even ranks."""
    if not len(x_TI) or any(projection.weight_OI.shape[0] % 32 or len(projection.A_RI) % 2 for projection in projections):
        return None
    if x_TI.shape[1] % 32 or not all(projection.weight_OI.is_contiguous() for projection in projections):
        return None
    return kernels.serves(x_TI, *(projection.weight_OI for projection in projections))


def _stacked(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return (matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))).to(dtype)


class _LoraLinears(torch.autograd.Function):
    """Inputs: x, the scales, then W, b, A and B of each projection."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Sequence[float], *flat: Tensor) -> tuple[Tensor, ...]:
        each = zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], scales, strict=True)
        projections = [Projection(*one) for one in each]
        outputs, h_TR = _products(x, projections)
        ctx.save_for_backward(x, h_TR, *(tensor for weight_OI, _, A_RI, B_OR, _ in projections for tensor in (weight_OI, A_RI, B_OR)))
        ctx.scales = scales
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h_TR, *saved = ctx.saved_tensors
        x_TI, count = x.reshape(-1, x.shape[-1]), len(ctx.scales)
        weights, all_A, all_B = saved[0::3], saved[1::3], saved[2::3]
        needs_x, needs_A, needs_B = ctx.needs_input_grad[0], ctx.needs_input_grad[4::4], ctx.needs_input_grad[5::4]
        each = [Projection(weights[i], None, all_A[i], all_B[i], ctx.scales[i]) for i in range(count)]
        if (all(needs_A) and all(needs_B)) and (served := _served(x_TI, each)) is not None:
            g = [grad.reshape(-1, grad.shape[-1]).contiguous() for grad in grads]
            grad_x, grad_A, found_B = served.lora_backward(x_TI.contiguous(), h_TR, g, weights, all_A, all_B, ctx.scales, needs_x)
            pairs = zip(grad_A.split([len(A_RI) for A_RI in all_A]), found_B, all_A, all_B, strict=True)
            typed = [(None, None, d_A.to(A_RI.dtype), d_B.to(B_OR.dtype)) for d_A, d_B, A_RI, B_OR in pairs]
            return grad_x.view(x.shape) if needs_x else None, None, *(tensor for four in typed for tensor in four)
        g = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        ranks = [len(A_RI) for A_RI in all_A]
        grad_x, grads_A = None, [None] * count
        if needs_x or any(needs_A):
            u = [g[i] @ (all_B[i] * ctx.scales[i]).to(x.dtype) for i in range(count)]
            u_TR = u[0] if count == 1 else torch.cat(u, 1)
            if any(needs_A):
                grads_A = list((u_TR.T @ x_TI).to(all_A[0].dtype).split(ranks))
            if needs_x:
                grad_x = u_TR @ _stacked(all_A, x.dtype)
                for g_TO, weight_OI in zip(g, weights, strict=True):
                    grad_x.addmm_(g_TO, weight_OI)
                grad_x = grad_x.view(x.shape)
        flat: list[Tensor | None] = []
        for i, h_TR_of in enumerate(h_TR.split(ranks, 1)):
            grad_B = None
            if needs_B[i]:
                grad_B = (h_TR_of.T @ g[i]).T.to(all_B[i].dtype, memory_format=torch.contiguous_format) * ctx.scales[i]
            flat += [None, None, grads_A[i] if needs_A[i] else None, grad_B]
        return grad_x, None, *flat


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a fused layer runs: the product above where it is exact, else the forward of the layer's class."""
    projection = None if args or kwargs else _projection(self, x, called=True)
    if projection is None:
        out: Tensor = type(self).forward(self, x, *args, **kwargs)
        return out
    return lora_linears(x, [projection])[0]


def _projection(layer: Any, x: Tensor, *, called: bool = False) -> Projection | None:
    """The product that this layer runs on x now, or None where it runs its class's forward. Unless it was `called`, nobody may watch."""
    if not is_fused(layer) or (not called and (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)):
        return None
    decoding = not torch.is_grad_enabled() and x.numel() < FEW_TOKENS * x.shape[-1]
    adapter = None if decoding else plain_adapter(layer, x)
    if adapter is None:
        return None
    base: nn.Linear = layer.base_layer
    return Projection(base.weight, base.bias, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter])


def _can_be_fused(layer: nn.Module) -> bool:
    """Is it peft's plain layer around torch's plain layer? Subclasses of either may compute something else."""
    return type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.fan_in_fan_out


def plain_adapter(layer: Any, x: Tensor) -> str | None:
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

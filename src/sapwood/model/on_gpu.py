"""RMSNorm and the gated product in one pass each on a GPU, forward and backward, compiled by torch from the formula.

    norm     w · x / sqrt(mean(x²) + eps)         (Zhang and Sennrich, arXiv:1910.07467, eq. 4)
    gated    silu(gate(x)) · up(x)                (Shazeer, arXiv:2002.05202, eq. 6)

Run one operation after the other, they read and write the widest activations of a layer some ten times. In: a model on a GPU. Out: the same
model, whose norms and gated blocks carry another `forward`. A module is recognised by what it computes: it is tried on a few tokens there
and back against the forward of its class, and keeps that where the two differ, where compiling fails, and on any other device.
Left out on purpose: a package of written kernels for the same two formulas, and rotary positions (docs/design.md says why).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapwood.kernels import on_gpu
from sapwood.model import by_instance
from sapwood.model.fused import project
from sapwood.model.gated import ACTIVATIONS, PROJECTIONS
from sapwood.model.norms import epsilon

TYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_ERROR = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
"""Norm of the difference to the class's own forward and gradients, as a share: the class rounds between its operations."""
_refusals: dict[str, str] = {}


def fuse_on_gpu(module: nn.Module) -> int:
    """Give norms and gated blocks on a GPU the compiled forward; returns how many have it. May be called again."""
    return by_instance.attach(_norm, module, _is_plain_norm) + by_instance.attach(_gate, module, _is_plain_gate)


def count_on_gpu(module: nn.Module) -> int:
    """How many modules inside have the compiled forward."""
    return sum(by_instance.has(_norm, part) or by_instance.has(_gate, part) for part in module.modules())


def why_not() -> dict[str, str]:
    """By the class of what kept its own forward, the reason."""
    return dict(_refusals)


def normed(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """In fp32, rounded before the weight, as the models were trained."""
    wide = x_TD.float()
    return weight_D * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x_TD.dtype)


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) · up."""
    return F.silu(gate_TF) * up_TF


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if not _serves(hidden_states) or hidden_states.dtype != self.weight.dtype:
        own: Tensor = type(self).forward(self, hidden_states)
        return own
    x_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
    out: Tensor = on_gpu.call(normed, [(x_TD, [0])], x_TD, self.weight, epsilon(self))
    return out.view(hidden_states.shape)


def _gate(self: Any, x: Tensor) -> Tensor:
    if not _serves(x):
        own: Tensor = type(self).forward(self, x)
        return own
    gate, up = (each.flatten(0, -2) for each in project(x, (self.gate_proj, self.up_proj)))
    product: Tensor = on_gpu.call(gated, [(gate, [0]), (up, [0])], gate, up)
    out: Tensor = self.down_proj(product.view(*x.shape[:-1], -1))
    return out


def _serves(x: Tensor) -> bool:
    """torch's own code under autocast: it chooses other types. An empty row has nothing to compute."""
    return x.device.type == "cuda" and x.dtype in TYPES and x.numel() > 0 and not torch.is_autocast_enabled("cuda")


def _is_plain_norm(norm: Any) -> bool:
    weight, eps = getattr(norm, "weight", None), epsilon(norm)
    if "RMSNorm" not in type(norm).__name__ or not isinstance(weight, Tensor) or not isinstance(eps, float) or weight.ndim != 1:
        return False
    if weight.device.type != "cuda" or weight.dtype not in TYPES:
        return False
    if len(inspect.signature(type(norm).forward).parameters) != 2:
        return False  # it takes more than an input: a gate, in Mamba's kin
    return _agrees(norm, _norm, len(weight), weight)


def _is_plain_gate(block: Any) -> bool:
    if any(not isinstance(getattr(block, name, None), nn.Module) for name in PROJECTIONS) or len(list(block.children())) != 4:
        return False
    width = getattr(block.gate_proj, "in_features", None)
    weight = next(block.down_proj.parameters())
    if type(getattr(block, "act_fn", None)).__name__ not in ACTIVATIONS or not isinstance(width, int):
        return False
    if weight.device.type != "cuda" or weight.dtype not in TYPES:
        return False
    return _agrees(block, _gate, width, weight)


def _agrees(module: Any, forward: Callable[..., Tensor], width: int, weight: Tensor) -> bool:
    """Outputs and the gradient of the input, on 37 tokens, against the forward of the class."""
    x = torch.linspace(-2, 3, 37 * width, device="cpu").sin().view(1, 37, width).to(weight)
    results = []
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for one in (type(module).forward, forward):
                given = x.clone().requires_grad_()
                out = one(module, given)
                results.append((out.detach(), *torch.autograd.grad(out.float().square().sum(), given)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the class's own forward serves
            _refusals[type(module).__name__] = on_gpu.failure(error)
            return False
    pairs = [(ours.float(), own.float()) for own, ours in zip(*results, strict=True)]
    worst = max(float((ours - own).norm() / own.norm()) for ours, own in pairs)
    if not worst <= MAX_ERROR[weight.dtype]:
        _refusals[type(module).__name__] = f"it differs from the class's own forward by {worst:.2g} of its size"
        return False
    return True

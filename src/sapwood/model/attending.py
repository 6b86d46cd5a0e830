"""Attention blocks: the three projections at once and positions turned in one pass, where the kernels serve.

    q, k, v = W x each;  q, k turned by the angle of their place (Su et al., arXiv:2104.09864);  out = W attention(q, k, v)

Every model file has this forward, with a rotary function of its own that makes nine passes over queries and keys, and as many back.
In: a model. Out: the same model, whose attention blocks carry another `forward`. A block is recognised by what it computes, as norms
are: it is tried on three tokens, and what it asks of attention is compared with what the fast forward would ask, numbers and
keywords. Norms of queries and keys, partial or interleaved rotation, windows and soft caps are thus left to the model's own code; so is
every call with a cache of transformers, or outside a forest.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sapwood import kernels
from sapwood.attention.interface import Attention, LayerCall
from sapwood.model import by_instance
from sapwood.model.fused import project

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def fuse_attention(module: nn.Module) -> int:
    """Give every plain attention block inside `module` the fast forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _is_plain)


def unfuse_attention(module: nn.Module) -> int:
    """Give the blocks inside `module` the forward of their class again; returns how many had the fast one."""
    return by_instance.detach(_forward, module)


def is_fused_attention(block: nn.Module) -> bool:
    """Has this very block the fast forward?"""
    return by_instance.has(_forward, block)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, served: Any, x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        ctx.served = served
        ctx.save_for_backward(cos_TK, sin_TK)
        turned: Tensor = served.rotate(x_THK, cos_TK, sin_TK, False)
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        return None, ctx.served.rotate(grad, *ctx.saved_tensors, True), None, None


def _forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a fused block runs: the formula where the kernels serve inside a forest, else the forward of its class."""
    forest: Attention | None = kwargs.get("forest")
    served = None
    if forest is not None and position_embeddings is not None and past_key_values is None and len(hidden_states) == 1:
        dropped = self.training and getattr(self, "attention_dropout", 0)
        served = None if dropped or torch.is_autocast_enabled("cpu") else kernels.serves(hidden_states, *position_embeddings)
    if served is None or position_embeddings is None or forest is None:
        out: tuple[Tensor, Tensor | None] = type(self).forward(
            self,
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        return out
    cos_TK, sin_TK = (angles[0].contiguous() for angles in position_embeddings)
    projected = project(hidden_states, [getattr(self, name) for name in PROJECTIONS[:3]])
    query, key, value = (states.view(len(cos_TK), -1, self.head_dim) for states in projected)
    query, key = (_Rotated.apply(served, states, cos_TK, sin_TK) for states in (query, key))  # type: ignore[no-untyped-call]
    query, key, value = (states[None].transpose(1, 2) for states in (query, key, value))
    attended = forest.attend(query, key, value, LayerCall(self.layer_idx, self.scaling))
    return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1)), None


class Asked:
    """Attention that only notes what it is asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[Tensor, Tensor, Tensor], LayerCall]] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: LayerCall) -> Tensor:
        self.seen.append(((query, key, value), call))
        return query.transpose(1, 2).contiguous()


def _is_plain(block: Any) -> bool:
    """Has it the four projections and nothing else, and does its class ask of attention what the fast forward asks?"""
    if sorted(name for name, _ in block.named_children()) != sorted(PROJECTIONS):
        return False
    width, size = getattr(block.q_proj, "in_features", None), getattr(block, "head_dim", None)
    if not isinstance(width, int) or not isinstance(size, int) or size % 64:
        return False
    if any(not hasattr(block, name) for name in ("layer_idx", "scaling")):
        return False
    if "position_embeddings" not in inspect.signature(type(block).forward).parameters:
        return False
    weight = next(block.q_proj.parameters())
    if kernels.serves(weight) is None:
        return False
    x = torch.linspace(-2, 3, 3 * width).sin().view(1, 3, width).to(weight.dtype)
    angles = torch.linspace(0.1, 2, 3 * size // 2).view(1, 3, -1).repeat(1, 1, 2)
    positions = (angles.cos().to(weight.dtype), angles.sin().to(weight.dtype))
    own, ours = Asked(), Asked()
    try:
        with torch.no_grad():
            outputs = [
                forward(block, x, position_embeddings=positions, attention_mask=None, forest=asked)[0]
                for forward, asked in ((type(block).forward, own), (_forward, ours))
            ]
    except (TypeError, ValueError, RuntimeError):  # another forward than the one that is meant
        return False
    if len(own.seen) != 1 or len(ours.seen) != 1 or own.seen[0][1] != ours.seen[0][1]:
        return False
    pairs = [*zip(own.seen[0][0], ours.seen[0][0], strict=True), outputs]
    return all(one.shape == other.shape and _near(one, other) for one, other in pairs)


def _near(found: Tensor, expected: Tensor) -> bool:
    """Alike but for rounding in bf16."""
    return bool((found.float() - expected.float()).norm() <= 0.01 * expected.float().norm())

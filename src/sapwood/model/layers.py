"""Whole decoder layers in two calls, one in front of attention and one behind, for inference in bf16 on a CPU.

    q, k, v = turned(W norm(x));  x += W attention(q, k, v);  x += down(silu(gate(norm(x))) · up(norm(x)))

A step that gives one token to each sequence spends as much time between its products as in them when Python makes each of them. In: a
model whose linear layers are packed. Out: the same model, whose plain decoder layers carry another `forward`, which serves where packed
layers do, and inside a forest. Queries, keys and values are one product of weights that lie below each other, and so are gate and up;
an adapter adds its own to each, in the types and the order that training has (`model.fused`).

A layer is recognised by what it computes, as norms are. Left out on purpose: layers of other shapes, whose parts keep their own fast
paths; several adapters at once and those on some rows alone (`model.routes`), which replace the forward of the linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from sapwood.attention.interface import Attention, LayerCall
from sapwood.model import by_instance, packed
from sapwood.model.attending import Asked, is_fused_attention
from sapwood.model.fused import is_fused, plain_adapter
from sapwood.model.gated import is_fused_gate
from sapwood.model.norms import epsilon, is_fused_norm

PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
GROUPS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
"""Linear layers that read the same x, in the order in which they are asked."""


def fuse_layers(module: nn.Module) -> int:
    """Give every plain decoder layer inside `module` the fast forward; returns how many have it. May be called again."""
    return by_instance.attach(_forward, module, _is_plain)


def is_fused_layer(layer: nn.Module) -> bool:
    """Has this very decoder layer the fast forward?"""
    return by_instance.has(_forward, layer)


Joined = list[Tensor]
"""Linear layers that read the same x: packed weights and biases below each other, packed A below each other, packed B, with their scales
inside, in blocks; an empty tensor stands for none."""


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a fused decoder layer runs: the two calls where they serve, else the forward of its class."""
    joined = None
    if not args and kwargs.get("past_key_values") is None and kwargs.get("position_embeddings") and kwargs.get("forest"):
        serves = len(hidden_states) == 1 and packed.in_use(hidden_states)
        joined = packed.once(self, lambda: _joined(self, hidden_states)) if serves else None
    if joined is None:
        out: Tensor = type(self).forward(self, hidden_states, *args, **kwargs)
        return out
    return _two_calls(self, hidden_states, joined, kwargs["position_embeddings"], kwargs["forest"])


def _two_calls(layer: Any, x: Tensor, joined: Sequence[Joined], positions: tuple[Tensor, Tensor], forest: Attention) -> Tensor:
    """(1, T, D) → (1, T, D)."""
    block, norms = layer.self_attn, (layer.input_layernorm, layer.post_attention_layernorm)
    kernels = packed.own_products(norms[0].weight)
    assert kernels is not None, "a layer is joined only where the products serve"
    cos_TK, sin_TK = (angles[0].contiguous() for angles in positions)
    heads, shared = (getattr(block, name).out_features // block.head_dim for name in ("q_proj", "k_proj"))
    asked, *behind = joined
    states = kernels.before_attention(x[0], norms[0].weight, epsilon(norms[0]), asked, cos_TK, sin_TK, heads, shared)
    query, key, value = (each.transpose(0, 1)[None] for each in states)
    attended = forest.attend(query, key, value, LayerCall(block.layer_idx, block.scaling))
    tensors = [tensor for group in behind for tensor in group]
    out: Tensor = kernels.after_attention(x[0], attended.reshape(x.shape[1], -1), tensors, norms[1].weight, epsilon(norms[1]))
    return out[None]


def _joined(layer: Any, x: Tensor) -> list[Joined] | None:
    """What the two calls multiply with, or None where some part is to run as it is."""
    if any(_watched(getattr(layer, name)) for name in PARTS):
        return None
    found: list[Joined] = []
    for part, names in GROUPS:
        block = getattr(layer, part)
        group = _group([getattr(block, name) for name in names], x)
        if group is None:
            return None
        found.append(group)
    return found


def _group(layers: Sequence[Any], x: Tensor) -> Joined | None:
    """Layers that read the same x as one, where each is a packed layer, or all are such with one plain adapter."""
    bases = [layer.base_layer if isinstance(layer, Linear) else layer for layer in layers]
    if any(_watched(layer) for layer in (*layers, *bases)) or not all(packed.is_packed(base) for base in bases):
        return None
    adapted = [layer for layer in layers if isinstance(layer, Linear)]
    if not all(is_fused(layer) for layer in adapted):
        return None
    adapted = [layer for layer in adapted if _adds(layer)]
    names = [plain_adapter(layer, x) for layer in adapted]
    if None in names or (adapted and len(adapted) < len(layers)):
        return None
    weights = packed.kept(bases[0], "joined", [base.weight for base in bases], lambda: _weights(bases))
    if not adapted:
        return [*weights, *[weights[0].new_empty(0)] * 2]
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for layer, name in zip(adapted, names, strict=True)]
    scales = [layer.scaling[name] for layer, name in zip(adapted, names, strict=True)]
    matrices = [matrix for pair in pairs for matrix in pair]
    added = packed.kept(bases[0], f"adapters scaled by {scales}", matrices, lambda: _adapters(pairs, scales))
    return [*weights, *added]


def _adds(layer: Any) -> bool:
    """Is an adapter of this layer in force, and not part of its weight?"""
    return not (layer.disable_adapters or layer.merged) and any(name in layer.lora_A for name in layer.active_adapters)


def _weights(bases: Sequence[Any]) -> list[Tensor]:
    """Packed weights of all, and their biases."""
    weight_OI = torch.cat([base.weight.detach() for base in bases])
    biases = [weight_OI.new_zeros(len(base.weight)) if base.bias is None else base.bias.detach() for base in bases]
    bias_O = weight_OI.new_empty(0) if all(base.bias is None for base in bases) else torch.cat(biases)
    return [_pack(weight_OI), bias_O]


def _adapters(pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> list[Tensor]:
    """Packed A of all, one below the other, and packed B, each in its block."""
    A_RI = torch.cat([A.detach() for A, _ in pairs])
    scaled = [B.detach() * scale for (_, B), scale in zip(pairs, scales, strict=True)]
    B_OR = torch.block_diag(*scaled)  # type: ignore[no-untyped-call]
    odd = len(A_RI) % 2  # products go by pairs
    return [_pack(nn.functional.pad(A_RI, (0, 0, 0, odd)).bfloat16()), _pack(nn.functional.pad(B_OR, (0, odd)).bfloat16())]


def _pack(weight_OI: Tensor) -> Tensor:
    kernels = packed.own_products(weight_OI)
    assert kernels is not None, "a layer is joined only where the products serve"
    found: Tensor = kernels.pack_weight(weight_OI)
    return found


def _watched(module: nn.Module) -> bool:
    """Does anyone want to see what goes through it?"""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_plain(layer: Any) -> bool:
    """Has it the four parts, each with its own fast path, and does its class compute what the formula says? It is tried on three tokens."""
    if sorted(name for name, _ in layer.named_children()) != sorted(PARTS):
        return False
    block, gate, *norms = (getattr(layer, name) for name in PARTS)
    if not (is_fused_attention(block) and is_fused_gate(gate) and all(is_fused_norm(norm) for norm in norms)):
        return False
    weight, size = norms[0].weight, block.head_dim
    if len(weight) % 32 or gate.gate_proj.out_features % 32 or packed.own_products(torch.empty(2, 2, dtype=weight.dtype)) is None:
        return False
    x = torch.linspace(-2, 3, 3 * len(weight)).sin().view(1, 3, -1).to(weight.dtype)
    angles = torch.linspace(0.1, 2, 3 * size // 2).view(1, 3, -1).repeat(1, 1, 2)
    positions = (angles.cos().to(weight.dtype), angles.sin().to(weight.dtype))
    with torch.inference_mode(), packed.in_force():
        joined = _joined(layer, x)
        if joined is None:
            return False
        try:
            own = type(layer).forward(layer, x, position_embeddings=positions, attention_mask=None, forest=Asked())
        except (TypeError, ValueError, RuntimeError):  # another forward than the one that is meant
            return False
        ours = _two_calls(layer, x, joined, positions, Asked())
    return isinstance(own, Tensor) and bool((ours - own).float().norm() <= 0.01 * own.float().norm())

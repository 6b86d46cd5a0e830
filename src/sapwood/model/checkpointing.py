"""Activation checkpointing: a decoder layer keeps its input alone and computes the rest again in the backward pass.

(Chen et al., arXiv:1604.06174.) In: a model. Out: the same model, whose decoder layers carry another `forward`, which matters
under gradients only. transformers' own switch works in training mode alone, which would turn on a model's dropout as well.
The keywords of a call, the forest among them, are kept for the second pass, and random draws are repeated.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sapwood.errors import ModelError
from sapwood.model.language_model import LanguageModel


def checkpoint_layers(model: LanguageModel) -> int:
    """Let every decoder layer compute its inside twice; returns how many do. May be called again.

    Raises `ModelError` for a model whose layers transformers does not mark as such.
    """
    layers = [layer for layer in model.base.get_decoder().modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model.base).__name__} has no layers that can be computed twice. Leave `checkpointing` off, and lower `budget` instead."
        )
    for layer in layers:
        layer.__dict__["forward"] = MethodType(_forward, layer)
    return len(layers)


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    own = partial(type(self).forward, self)
    if not torch.is_grad_enabled():
        return own(*args, **kwargs)
    return checkpoint(own, *args, use_reentrant=False, **kwargs)

"""Tiny random models of every architecture that ancestor attention is verified on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

ARCHITECTURES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 8}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 8}),
    "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "phi3": (transformers.Phi3Config, {}),
}


def tiny_model(name: str, dtype: torch.dtype, *, attention: str = "sapwood", seed: int = 0) -> Any:
    """A random causal language model; the same weights for the same name and seed in every dtype."""
    kind, extra = ARCHITECTURES[name]
    config = kind(**SIZES, **extra)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64)
    for parameter_name, parameter in model.named_parameters():  # larger than usual, so that attention is not nearly uniform
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.25)
        else:
            nn.init.normal_(parameter, mean=1.0 if "norm" in parameter_name else 0.5, std=0.3)
    return model.to(dtype).eval()


@contextmanager
def fp64_norms(model: Any) -> Iterator[None]:
    """The stock norms compute in fp32; with this they compute in the type of their input, so that fp64 can be checked as such."""
    kinds = {type(module) for module in model.modules() if "RMSNorm" in type(module).__name__}
    originals = {kind: kind.forward for kind in kinds}

    def wide(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", None) or getattr(self, "eps", 1e-6)
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)
        scale = 1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
        return normed * scale

    try:
        for kind in kinds:
            kind.forward = wide
        yield
    finally:
        for kind, original in originals.items():
            kind.forward = original

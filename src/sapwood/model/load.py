"""A folder in, a `LanguageModel` out. Safetensors only; no remote code."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from sapwood.attention import NAME, for_text, register
from sapwood.errors import ModelError
from sapwood.kernels.allocator import keep_pages
from sapwood.model.language_model import LanguageModel
from sapwood.model.media import FAMILIES
from sapwood.model.quantized import compute_alike, nf4, refuse_widths

Dtype = Literal["auto", "bf16", "fp32", "fp64", "nf4"]
"""Type of the base weights. `auto` takes bf16 where the processor computes in it, else fp32; `nf4` keeps 4 bits and computes as `auto`."""

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch type in which a `Dtype` computes; `auto` looks at the machine."""
    return _TYPES["bf16" if _has_bf16() else "fp32"] if dtype in ("auto", "nf4") else _TYPES[dtype]


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    check: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def load_model(folder: Path, dtype: Dtype = "auto", *, device: str | torch.device = "cpu") -> LanguageModel:
    """Load a causal language model for computing on forests. Raises `ModelError` with what to do.

    `nf4` raises `ConfigError` where bitsandbytes is missing.
    """
    register()
    gc.collect()  # layers and their fused forwards hold each other: what a model before this one left is as large as this one
    keep_pages()
    extra = {"quantization_config": nf4(torch_dtype(dtype)), "device_map": {"": device}} if dtype == "nf4" else {}
    with loading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family = FAMILIES.get(config.model_type)
        kind: Any = AutoModelForCausalLM if family is None else getattr(transformers, family.model)
        module = kind.from_pretrained(
            folder,
            dtype=torch_dtype(dtype),
            attn_implementation=for_text(config, NAME),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **extra,
        )
    refuse_widths(module, str(folder))
    compute_alike(module)
    model = LanguageModel((module if extra else module.to(device)).eval())
    if family is not None:
        model.notes.append(
            f"{family.model} takes {' and '.join(family.kinds)}: an adapter trains its language model alone, and leaves the rest as it is."
        )
    return model


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """transformers loads something: it says nothing meanwhile, and what it raises is a `ModelError` with its words."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: transformers could not load this model: {' '.join(str(error).split())[:500]}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()

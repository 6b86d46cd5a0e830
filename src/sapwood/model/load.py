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
from sapwood.attention.flex import why_not as flex_refusal
from sapwood.errors import ConfigError, ModelError
from sapwood.kernels.allocator import keep_pages
from sapwood.model.language_model import LanguageModel
from sapwood.model.media import FAMILIES
from sapwood.model.on_gpu import fuse_on_gpu
from sapwood.model.quantized import compute_alike, nf4, refuse_widths

Dtype = Literal["auto", "bf16", "fp32", "fp64", "nf4"]
"""Type of the base weights. `auto` takes bf16 where the device computes in it, else fp32; `nf4` keeps 4 bits and computes as `auto`."""

Device = Literal["auto", "cpu", "cuda"]
"""Where a model computes. `auto` takes the GPU where torch sees one (CUDA_VISIBLE_DEVICES= hides it)."""

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def device_for(device: Device | str | torch.device = "auto") -> torch.device:
    """The device of a choice. Raises `ConfigError` for a GPU that torch does not see, with what to do."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        built = f"was built for CUDA {torch.version.cuda}, and sees no GPU" if torch.version.cuda else "was built without CUDA"
        raise ConfigError(
            f"device is {found}, but this torch ({torch.__version__}) {built}. Look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, install a "
            "torch for CUDA (pytorch.org/get-started), or compute on the processor: device cpu."
        )
    return found


def device_name(device: torch.device) -> str:
    """For people and records: `cpu`, or what the GPU calls itself."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def torch_dtype(dtype: Dtype, device: torch.device | None = None) -> torch.dtype:
    """The torch type in which a `Dtype` computes; `auto` looks at the device, the one that `auto` takes where none is given."""
    return _TYPES["bf16" if _has_bf16(device or device_for()) else "fp32"] if dtype in ("auto", "nf4") else _TYPES[dtype]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    check: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def load_model(folder: Path, dtype: Dtype = "auto", *, device: Device | str | torch.device = "auto") -> LanguageModel:
    """Load a causal language model for computing on forests. Raises `ModelError` with what to do.

    Raises `ConfigError` for a device that is not there, and for `nf4` where bitsandbytes is missing.
    """
    register()
    device = device_for(device)
    gc.collect()  # layers and their fused forwards hold each other: what a model before this one left is as large as this one
    if device.type == "cpu":
        keep_pages()
    extra = {"quantization_config": nf4(torch_dtype(dtype, device)), "device_map": {"": device}} if dtype == "nf4" else {}
    with loading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family = FAMILIES.get(config.model_type)
        kind: Any = AutoModelForCausalLM if family is None else getattr(transformers, family.model)
        module = kind.from_pretrained(
            folder,
            dtype=torch_dtype(dtype, device),
            attn_implementation=for_text(config, NAME),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **extra,
        )
    refuse_widths(module, str(folder))
    compute_alike(module)
    module = module if extra else module.to(device)
    fuse_on_gpu(module)
    model = LanguageModel(module.eval())
    if model.device.type == "cuda" and flex_refusal():
        model.notes.append(f"Attention takes the plain path, which is slower: the compiled kernel was left out ({flex_refusal()}).")
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

"""Base weights in 4 bits (NF4), under an adapter that is trained as ever: QLoRA (Dettmers et al., arXiv:2305.14314).

In: a model folder. Out: what transformers is told in order to quantize while loading, and bitsandbytes itself, which does the
arithmetic on GPUs and, from 0.50 on rightly, on CPUs. The head and the embeddings keep the type in which is computed.
Left out on purpose: other types of 4 and 8 bits, which nothing here needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import nn

from sapwood.errors import ConfigError, ModelError

OLDEST = (0, 50)
"""The first bitsandbytes that computes on a CPU what it should, 8-bit moments included: 0.49 cannot load these weights there."""


def import_bitsandbytes(asked: str) -> Any:
    """bitsandbytes, for the option `asked`. Raises `ConfigError` where it is missing or too old."""
    try:
        found = _imported()
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"{asked} needs bitsandbytes, which could not be imported ({' '.join(str(error).split())[:200]}). "
            'Install it with: pip install "sapwood[gpu]"'
        ) from error
    version = tuple(int(part) for part in found.__version__.split(".")[:2])
    if version < OLDEST:
        raise ConfigError(f"{asked} needs bitsandbytes {OLDEST[0]}.{OLDEST[1]} or newer; this is {found.__version__}. Update it.")
    return found


def before_peft() -> None:
    """Import bitsandbytes, where it is there, before peft does: see `_imported`."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        with suppress(ImportError, OSError, RuntimeError):  # who needs it is told by `import_bitsandbytes`
            _imported()


def _imported() -> Any:
    """bitsandbytes, without what it would fetch.

    On some CPUs it gets a faster kernel from a hub as it is imported, where the package `kernels` is there. Nobody has
    asked for that, so that package is kept out of its sight meanwhile.
    """
    hidden = "kernels" not in sys.modules and "bitsandbytes" not in sys.modules
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]
        logger.setLevel(logging.ERROR)  # it would say that the package is missing
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        if hidden:
            del sys.modules["kernels"]
            logger.setLevel(level)


def nf4(compute: torch.dtype) -> Any:
    """What `from_pretrained` takes as `quantization_config`: NF4 with quantized scales, computing in `compute`."""
    import_bitsandbytes("--dtype nf4")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def is_quantized(module: nn.Module) -> bool:
    """Whether any of the weights is quantized."""
    return any(hasattr(parameter, "quant_state") for parameter in module.parameters())


def refuse_widths(module: Any, where: str) -> None:
    """Raise `ModelError` for quantized layers on a CPU whose width is no multiple of a block.

    bitsandbytes up to 0.50 reads the scales of other blocks there, and computes something else without a word.
    """
    for name, layer in module.named_modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None and layer.weight.device.type == "cpu" and state.shape[-1] % state.blocksize:
            raise ModelError(
                f"{where}: {name} is {state.shape[-1]} wide, and on a CPU bitsandbytes is right only for multiples of {state.blocksize}. "
                "Give --dtype bf16 or fp32, or choose another model."
            )


def compute_alike(module: Any) -> None:
    """Let quantized layers compute without gradients what they compute with them.

    On some CPUs they would repack the weights at the first call without gradients, and use another kernel from then on.
    """
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False

"""A merged model as a GGUF file, for llama.cpp and what is built on it.

In: a merged model in fp32, its vocabulary. Out: one file. Tensor names are those of gguf's `TensorNameMap`, types as in llama.cpp's
own converter: matrices in the type that was asked for, norms and biases in fp32. Tensors are converted and written one at a time.
Left out on purpose: families but Llama, Mistral, Qwen2 and Qwen3, whose weights need other treatment, and active sliding windows:
refused by name. Types that only llama.cpp's own tool makes are made by it (`quantize`).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from sapwood.errors import ConfigError, ExportError, storage
from sapwood.export.gguf_vocabulary import Vocabulary
from sapwood.model import LanguageModel

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""transformers' `model_type` → gguf's architecture."""

OWN: Mapping[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""Types that are written here."""

TOOL = "llama-quantize"
OF_THE_TOOL = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k"),
    *("iq4_nl", "iq4_xs"),
)
"""Types that llama.cpp's tool makes without an importance matrix."""


def check_quant(quant: str) -> str:
    """The name of a type in lower case. Raises `ConfigError` for one that is unknown, or whose tool is not on the PATH."""
    name = quant.lower()
    if name in OWN:
        return name
    if name not in OF_THE_TOOL:
        raise ConfigError(f"quant is {quant!r}; allowed: {', '.join(OWN)}, and with llama.cpp's {TOOL}: {', '.join(OF_THE_TOOL)}.")
    if shutil.which(TOOL) is None:
        raise ConfigError(
            f"quant is {quant!r}, which llama.cpp's `{TOOL}` makes, and that is not on the PATH. Install llama.cpp "
            f"(https://github.com/ggml-org/llama.cpp) and put it there, or choose one of {', '.join(OWN)}."
        )
    return name


def check_model(config: Any) -> gguf.MODEL_ARCH:
    """The architecture of a transformers config. Raises `ExportError` for one whose GGUF file would not compute the same."""
    kind = config.model_type
    problem = ""
    if kind not in ARCHITECTURES:
        problem = f"models of the family {kind!r} are not written as GGUF (covered: {', '.join(ARCHITECTURES)})"
    elif getattr(config, "hidden_act", "silu") != "silu":
        problem = f"its activation is {config.hidden_act!r}, where llama.cpp computes silu"
    elif "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        kind == "mistral" and config.sliding_window and config.sliding_window < config.max_position_embeddings
    ):
        problem = "some of its layers attend by a sliding window, which llama.cpp's form of it has not"
    elif _rope(config).get("rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        problem = f"its positions are scaled by {_rope(config)['rope_type']!r}"
    elif _rope(config).get("partial_rotary_factor", 1) != 1:
        problem = "only a part of each head is turned by position"
    if problem:
        raise ExportError(
            f"This model cannot be exported exactly: {problem}. Export with `--as merged`, and try llama.cpp's own "
            "convert_hf_to_gguf.py on the folder."
        )
    return ARCHITECTURES[kind]


def _rope(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    return found


def write_gguf(model: LanguageModel, path: Path, vocabulary: Vocabulary, quant: str, about: Mapping[str, str]) -> None:
    """Write a merged model. `quant` is one of `OWN`; `about` fills `general.*`: name, license, base_model.

    Raises `ExportError` for a family or a weight that the file cannot hold, `StorageError` where the disk refuses.
    """
    arch = check_model(model.base.config)
    kind, file_type = OWN[quant]
    with storage(path, "write the GGUF file"):
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch], use_temp_file=False)
        try:
            _metadata(writer, model.base.config, about)
            writer.add_file_type(file_type)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            vocabulary.write(writer)
            for name, values in _tensors_of(model.base, arch):
                shape, size, used = _layout(values, _type_of(name, values, kind))
                writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=used)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, values in _tensors_of(model.base, arch):
                writer.write_tensor_data(_converted(name, values, _type_of(name, values, kind)))
        finally:
            writer.close()


def _tensors_of(module: Any, arch: gguf.MODEL_ARCH) -> Iterator[tuple[str, torch.Tensor]]:
    """Name in the file and values, one tensor at a time; a tied head is left out, as llama.cpp then takes the embedding."""
    config = module.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
    factors = _rotary_factors(module)
    if factors is not None:
        yield gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", factors
    for name, values in module.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"The model holds a tensor {name!r} that has no place in a GGUF file. Export with `--as merged`.")
        if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.q_proj." in name:
            values = permuted(values, config.num_attention_heads)
        if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.k_proj." in name:
            values = permuted(values, config.num_key_value_heads)
        yield found, values


def permuted(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (heads · K, …) of a query or key projection in llama.cpp's order, which turns neighbouring pairs, not halves."""
    return values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _rotary_factors(module: Any) -> torch.Tensor | None:
    """By what Llama 3.1's scaling divides each frequency: llama.cpp reads these as a tensor."""
    rope = _rope(module.config)
    if rope.get("rope_type") != "llama3":
        return None
    scaled_K: torch.Tensor = module.model.rotary_emb.inv_freq.double()
    width = 2 * len(scaled_K)
    plain_K = 1 / float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (plain_K / scaled_K.cpu()).float()


def _metadata(writer: gguf.GGUFWriter, config: Any, about: Mapping[str, str]) -> None:
    rope = _rope(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name(about["name"])
    if about.get("license"):
        writer.add_license(about["license"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about["base_model"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(float(rope[key]))


def _type_of(name: str, values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """Vectors and norms stay fp32; rows that a block does not divide fall back to f16, as in llama.cpp's converter."""
    if values.ndim <= 1 or name.endswith("_norm.weight"):
        return gguf.GGMLQuantizationType.F32
    block = gguf.GGML_QUANT_SIZES[kind][0]
    return kind if values.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _layout(values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> tuple[tuple[int, ...], int, gguf.GGMLQuantizationType]:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return tuple(values.shape), values.numel() // block * size, kind


def _converted(name: str, values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    wide = np.ascontiguousarray(values.detach().float().cpu().numpy())
    if not np.isfinite(wide).all():
        raise ExportError(f"{name} holds a weight that is not a finite number. Train again with a lower learning rate.")
    if kind == gguf.GGMLQuantizationType.F16 and float(np.abs(wide).max()) > float(np.finfo(np.float16).max):
        raise ExportError(f"{name} holds a weight that f16 cannot hold (its largest number is 65504). Export with `--quant bf16` or f32.")
    found: NDArray[Any] = gguf.quants.quantize(wide, kind)
    return found


def quantize(source: Path, target: Path, quant: str) -> None:
    """Make a smaller file of an f32 one with llama.cpp's tool. Raises `ExportError` with its own last words where it fails."""
    command = [TOOL, str(source), str(target), quant.upper()]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not target.is_file():
        words = " ".join((done.stderr or done.stdout).split())[-400:]
        raise ExportError(f"{TOOL} could not make {quant} (exit code {done.returncode}): {words}")

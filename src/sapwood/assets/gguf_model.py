"""A GGUF file, once, into a model folder as transformers saves one: bf16 safetensors, configs, tokenizer, template.

Flows in: the path of a GGUF file of the llama or qwen2 architecture. Flows out: config.json, generation_config.json,
model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja.
A few thousand rows at a time are in memory, and the writer is ours: safetensors' own `serialize_file` wants all of them at once,
and tells of a full disk by an exception that is no OSError.
Left out on purpose: every other architecture, rotary scaling, and keeping the quantization (a tuned model needs real weights).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from sapwood.assets.cache import Report
from sapwood.assets.gguf_tokenizer import build_tokenizer, special_ids, tokenizer_config
from sapwood.errors import AssetError

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

_ROWS = 4096
"""Rows of a tensor that are turned into fp32 at once: an embedding of 150,000 rows need not be in memory four times over."""

_WHOLE_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path, *, tie_to_output: bool, report: Report) -> None:
    """Write the model folder of the GGUF file `source` into `folder`, which exists.

    `tie_to_output` keeps the output embedding as both. Raises `AssetError` for a file that is not one, another architecture,
    rotary scaling, or a tensor that has no place in the model.
    """
    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise AssetError(f"{source.name} is not a GGUF file that can be read ({error}). Fetch it again.") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    config = model_config(metadata, {tensor.name for tensor in reader.tensors}, tie_to_output)
    begin, stops, pad = special_ids(metadata)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": begin, "eos_token_id": stops, "pad_token_id": pad})
    _write_json(folder / "tokenizer_config.json", tokenizer_config(metadata, config["max_position_embeddings"]))
    (folder / "tokenizer.json").write_text(build_tokenizer(metadata).to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")

    tensors = {}
    for tensor in reader.tensors:
        if tie_to_output and tensor.name == "token_embd.weight":
            continue
        name = hub_name(tensor.name)
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            name = "model.embed_tokens.weight"
        tensors[name] = tensor

    def pieces(name: str) -> Iterator[np.ndarray]:
        tensor = tensors[name]
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            yield unpermute(dequantize(tensor.data, tensor.tensor_type), heads)
            return
        for first in range(0, len(tensor.data), _ROWS):
            yield dequantize(tensor.data[first : first + _ROWS], tensor.tensor_type)

    # gguf gives shapes from the innermost axis outwards
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    _write_safetensors(folder / "model.safetensors", shapes, pieces, report)


def model_config(metadata: Mapping[str, Any], names: set[str], tie_to_output: bool) -> dict[str, Any]:
    """Content of config.json, from a GGUF file's metadata and the names of its tensors."""
    kind = metadata.get("general.architecture")
    if kind not in _ARCHITECTURES:
        raise AssetError(f"The GGUF file holds a model of the architecture {kind!r}; Sapwood converts {' and '.join(_ARCHITECTURES)}.")
    if metadata.get(f"{kind}.rope.scaling.type", "none") != "none":
        raise AssetError(
            f"The GGUF file scales its rotary positions ({metadata[f'{kind}.rope.scaling.type']}), which Sapwood does not convert."
        )

    def real(key: str) -> float:
        return float(str(np.float32(metadata[key])))  # 1e-05, where the file's 32 bits read as 64 are 9.999999747e-06

    width, heads = metadata[f"{kind}.embedding_length"], metadata[f"{kind}.attention.head_count"]
    begin, stops, pad = special_ids(metadata)
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": metadata[f"{kind}.feed_forward_length"],
        "num_hidden_layers": metadata[f"{kind}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get(f"{kind}.attention.head_count_kv", heads),
        "head_dim": metadata.get(f"{kind}.attention.key_length", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": metadata[f"{kind}.context_length"],
        "rms_norm_eps": real(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": real(f"{kind}.rope.freq_base")},
        "tie_word_embeddings": tie_to_output or "output.weight" not in names,
        "bos_token_id": begin,
        "eos_token_id": stops[0],
        "pad_token_id": pad,
        "dtype": "bfloat16",
    }


def hub_name(name: str) -> str:
    """A tensor's name in a GGUF file → its name in transformers. Raises `AssetError` for one that has no place."""
    if name in _WHOLE_MODEL:
        return _WHOLE_MODEL[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _IN_A_LAYER:
        raise AssetError(f"The GGUF file holds a tensor {name!r} that has no place in the model. Sapwood does not convert this variant.")
    return f"model.layers.{match[1]}.{_IN_A_LAYER[match[2]]}.{match[3]}"


def unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a query or key projection's rows, (heads · K, D) → the same shape.

    llama.cpp turns neighbouring pairs of a head's rows where transformers turns its two halves, so its converter
    interleaves the halves (`LlamaModel.permute` in convert_hf_to_gguf.py). This is the inverse.
    """
    rows, width = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Finite fp32 → the bits of bf16 as uint16, rounded to nearest, ties to even: what torch's `.to(bfloat16)` gives."""
    if not np.isfinite(values).all():
        raise AssetError("The GGUF file holds a weight that is not a finite number. Fetch it again.")
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], pieces: Callable[[str], Iterable[np.ndarray]], report: Report
) -> None:
    """Write bf16 tensors one after the other: `pieces(name)` gives a tensor's values in fp32, some rows at a time, in order.

    The format is 8 bytes with the header's length, the header as JSON, and the tensors without gaps
    (https://huggingface.co/docs/safetensors, "Format").
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (name, shape) in enumerate(shapes.items(), 1):
            written = sum(file.write(to_bf16(values).tobytes()) for values in pieces(name))
            assert written == 2 * int(np.prod(shape)), (name, written, shape)
            report(number, len(shapes), "converting")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""Wheels, a GGUF model and child processes small enough to make in a test: the real formats, a few kilobytes each."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from sapwood.assets import Asset, Wheel

HERE = Path(__file__).parent
WIDTH, HEADS, KV_HEADS, HEAD_WIDTH, LAYERS = 64, 4, 2, 16, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_letters() -> list[str]:
    """The letters that stand for the bytes 0..255 (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def write_gguf(path: Path, architecture: str = "llama", pre: str = "smollm", extra_tensor: str | None = None) -> dict[str, np.ndarray]:
    """A model of two layers with random Q8_0 weights; returns its tensors as the file means them, by their GGUF names."""
    merges = ["1 2", "Ġ t", "h e", "Ġt he"]
    tokens = [*SPECIALS, *byte_letters(), *(merge.replace(" ", "") for merge in merges), "<tool>", "[PAD]"]
    kinds = [3] * 3 + [1] * (256 + len(merges)) + [4, 5]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    if architecture == "qwen2":
        shapes["output.weight"] = (len(tokens), WIDTH)
    if extra_tensor:
        shapes[extra_tensor] = (WIDTH,)
    for layer in range(LAYERS):
        rows = {"attn_q": HEADS * HEAD_WIDTH, "attn_k": KV_HEADS * HEAD_WIDTH, "attn_v": KV_HEADS * HEAD_WIDTH, "attn_output": WIDTH}
        shapes |= {f"blk.{layer}.{name}.weight": (count, WIDTH) for name, count in rows.items()}
        shapes |= {f"blk.{layer}.{name}.weight": (96, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (WIDTH, 96)
        shapes |= {f"blk.{layer}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        if architecture == "qwen2":
            shapes |= {f"blk.{layer}.{name}.bias": (rows[name],) for name in ("attn_q", "attn_k", "attn_v")}
    random, meant = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            packed = quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            values = dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
        meant[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def write_wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts, version 1.0, holding `files`."""
    stem = package.replace("-", "_")
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    info = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as box:
        for name, content in {**files, **{f"{stem}-1.0.dist-info/{name}": text.encode() for name, text in info.items()}}.items():
            box.writestr(zipfile.ZipInfo(name), content)
    return path


def wheel_of(path: Path) -> Wheel:
    """The catalogue's entry for a wheel as it lies there."""
    content = path.read_bytes()
    package = path.name.split("-")[0].replace("_", "-")
    return Wheel(package, "1.0", hashlib.sha256(content).hexdigest(), len(content))


def data_asset(path: Path, files: tuple[str, ...] = ("*.jsonl", "sub/*.json"), disk: int = 1000) -> Asset:
    return Asset("tiny-data", "data", (wheel_of(path),), "tiny_data/data", files, "MIT", disk, "a test's data")


def model_asset(*paths: Path, sha256: str | None = None, disk: int = 1000) -> Asset:
    files = tuple(f"part{number}.bin" for number in range(1, len(paths) + 1))
    wheels = tuple(wheel_of(path) for path in paths)
    return Asset("tiny-model", "model", wheels, "tiny_model_part*/data", files, "MIT", disk, "a test's model", sha256)


def write_data_wheel(folder: Path, rows: int = 3) -> Path:
    files = {
        "tiny_data/data/a.jsonl": b'{"n": 1}\n' * rows,
        "tiny_data/data/sub/b.json": b"{}",
        "tiny_data/data/sub/deep/c.json": b"not wanted",
        "tiny_data/__init__.py": b"raise SystemExit('a wheel was imported')",
        "tiny_data-1.0.dist-info/LICENSE": b"do as you like",
    }
    return write_wheel(folder, "tiny-data", files)


def write_model_wheels(folder: Path, parts: int = 2) -> list[Path]:
    source = folder / "tiny.gguf"
    write_gguf(source)
    content = source.read_bytes()
    source.unlink()
    cut = -(-len(content) // parts)
    return [
        write_wheel(folder, f"tiny-model-part{n + 1}", {f"tiny_model_part{n + 1}/data/part{n + 1}.bin": content[n * cut : (n + 1) * cut]})
        for n in range(parts)
    ]


def python(code: str, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """A child process that can import this module and Sapwood."""
    import sapwood

    paths = [str(HERE), str(Path(sapwood.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

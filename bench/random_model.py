"""`--model random:NAME`: random weights of a known configuration, so that a machine without a hub measures the sizes that people train.

In: `random:qwen2.5-0.5b`, `random:qwen2.5-1.5b` or `random:tiny`, and `@FOLDER` behind it for another tokenizer than the default model's.
Out: a model's folder in the cache, written once: bf16 weights from one seed, and the tokenizer and template of that model, whose ids are
fewer than the configuration's. A step's work depends on sizes alone; its losses are those of random weights, and near to each
other for everyone who trains the same rows. Left out on purpose: anything that reads what such a model writes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from sapwood.assets import DEFAULT_MODEL
from sapwood.assets.cache import cache_root
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, storage
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model

PREFIX = "random:"
COMMON: dict[str, Any] = {"vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}
SIZES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        **COMMON,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen2.5-1.5b": {
        **COMMON,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "tiny": {
        **COMMON,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""By name, what differs from `Qwen2Config`: sizes as in the models' own config.json (arXiv:2412.15115, table 1)."""
ROPE = {"rope_type": "default", "rope_theta": 1e6}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def model_folder(name: str, screen: Screen) -> Path:
    """The folder of any model that a benchmark names. Raises `ConfigError` for a random one of an unknown size."""
    if not name.startswith(PREFIX):
        return fetch_model(name, screen).resolve()
    size, _, source = name.removeprefix(PREFIX).partition("@")
    if size not in SIZES:
        raise ConfigError(f"model is {name!r}.{did_you_mean(size, list(SIZES))} Random models: {', '.join(PREFIX + one for one in SIZES)}.")
    tokenizer = fetch_model(source or DEFAULT_MODEL, screen, weights=False).resolve()
    folder = cache_root() / "random" / f"{size}-{tokenizer.name}"
    if not folder.is_dir():
        screen.say(f"Writing random weights of {size} with the tokenizer of {tokenizer.name}, once: {folder}")
        with storage(folder, "write the model to"):
            _write(folder, size, tokenizer)
    return folder.resolve()


def _write(folder: Path, size: str, tokenizer: Path) -> None:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    ids = {name: getattr(transformers.AutoConfig.from_pretrained(tokenizer), name, None) for name in ("bos_token_id", "eos_token_id")}
    config = transformers.Qwen2Config(**SIZES[size], **ids, rope_parameters=ROPE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(part)
    for file in TOKENIZER:
        if (tokenizer / file).is_file():
            shutil.copy(tokenizer / file, part / file)
    os.replace(part, folder)

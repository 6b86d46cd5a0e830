"""DeepSeek-R1-Distill-Qwen-1.5B in small: its own template and control tokens, its kind of tokenizer and config, random weights.

The template is read from an installed test dependency. What is said of the tokens (which of them are special, that
tokenizer.json puts BOS before every text, which class tokenizer_config.json names, that padding is the end token) is what the
model's own files say; ids and vocabulary are smaller.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

NAME = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TOKENS = {EOS: True, "<｜User｜>": False, "<｜Assistant｜>": False, BOS: True, "<|EOT|>": False, "<think>": False, "</think>": False}
"""The added tokens in the order of their ids, and whether tokenizer.json calls them special."""
SHAPE: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131_072,
    "max_window_layers": 21,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
"""What config.json says, whatever the size."""
REAL = {
    **SHAPE,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "torch_dtype": "bfloat16",
    "vocab_size": 151_936,
}
"""The model's own config.json."""
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def template() -> str:
    """The model's chat template, byte for byte."""
    (file,) = (file for file in metadata.files("trl") or () if file.name == "deepseek_r1_distill.jinja")
    return file.read_text(encoding="utf-8")


def sums(count: int) -> list[dict[str, Any]]:
    """Sums with the way to them, as rows of messages; every third has a second question."""
    rows = []
    for number in range(count):
        a, b = 2 + number % 7, 3 + number % 5
        turns = [("user", f"What is {a} + {b}?"), ("assistant", f"<think>\n{a} and {b} more is {a + b}.\n</think>\n\n{a + b}")]
        if number % 3 == 2:
            turns += [("user", "And one more?"), ("assistant", f"<think>\n{a + b} and 1 more is {a + b + 1}.\n</think>\n\n{a + b + 1}")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def write_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, tokenizer_config.json and the template; the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [message["content"] for row in sums(40) for message in row["messages"]]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    for token, special in TOKENS.items():
        added = AddedToken(token, special=special, normalized=False)
        tokenizer.add_special_tokens([added]) if special else tokenizer.add_tokens([added])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 16_384,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": template(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    return tokenizer


def write_r1(folder: Path, seed: int = 0) -> Path:
    """The whole folder, with random weights of a few thousand numbers."""
    tokenizer = write_tokenizer(folder)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    config = transformers.Qwen2Config(
        **SHAPE,
        vocab_size=tokenizer.get_vocab_size() + 9,  # more rows than tokens, as there
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=eos,  # config.json names another token than the tokenizer does
        eos_token_id=eos,
    )
    torch.manual_seed(seed)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    generation = {"bos_token_id": bos, "eos_token_id": eos, "do_sample": True, "temperature": 0.6, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True, **generation}))
    return folder

"""A GGUF file's byte-level BPE vocabulary as `tokenizer.json`, and the settings that go with it.

Flows in: the metadata of a GGUF file as a dictionary. Flows out: the tokenizer and `tokenizer_config.json`'s content.
Left out on purpose: SentencePiece vocabularies (`tokenizer.ggml.model = llama`), which no model of the catalogue has;
and any post-processor: what a prompt begins with is the chat template's business, so nothing is added behind its back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sapwood.errors import AssetError

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
"""Kinds of tokens in a GGUF file (gguf.TokenType)."""

END_OF_TEXT = "<|endoftext|>"

_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""As in the published tokenizer.json of Qwen2.5, and in llama.cpp's `LLAMA_VOCAB_PRE_TYPE_QWEN2`."""


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises `AssetError` for a kind of vocabulary or of pre-tokenizer that is not known here."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in ("smollm", "qwen2"):
        raise AssetError(
            f"The GGUF file has a tokenizer of kind {kind!r} with the splitter {pre!r}; known: 'gpt2' with 'smollm' or 'qwen2'."
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    # fillers for a round number of embedding rows are no tokens: no text may ever encode to them
    vocabulary = {token: number for number, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if pre == "smollm":  # each digit stands alone, then GPT-2's own splitting
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    else:
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    return tokenizer


def special_ids(metadata: Mapping[str, Any]) -> tuple[int, list[int], int]:
    """(beginning of text, where generation stops with the end of a turn first, padding).

    Padding is `<|endoftext|>`, whatever the file says: SmolLM2's says the end of a turn, and a mask or a stop that is
    made from such ids takes the one for the other. A turn's end comes first; `<|endoftext|>` stops generation as well.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    end_of_turn = int(metadata["tokenizer.ggml.eos_token_id"])
    pad = tokens.index(END_OF_TEXT)
    return int(metadata["tokenizer.ggml.bos_token_id"]), list(dict.fromkeys([end_of_turn, pad])), pad


def tokenizer_config(metadata: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Content of `tokenizer_config.json`; `context` is the model's longest sequence in tokens."""
    tokens = metadata["tokenizer.ggml.tokens"]
    begin, stops, pad = special_ids(metadata)
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "add_prefix_space": False,
        "bos_token": tokens[begin],
        "eos_token": tokens[stops[0]],
        "pad_token": tokens[pad],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    if "tokenizer.ggml.unknown_token_id" in metadata:
        settings["unk_token"] = tokens[metadata["tokenizer.ggml.unknown_token_id"]]
    return settings

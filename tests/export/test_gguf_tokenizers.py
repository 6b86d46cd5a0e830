"""Splitters by name: each kind of tokenizer, made here, gets the name under which llama.cpp makes the very same ids."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sapwood.chat import Chat
from sapwood.export.gguf_file import write_gguf
from sapwood.export.gguf_readers import LlamaCpp
from sapwood.export.gguf_vocabulary import SPLITTERS, vocabulary_of
from sapwood.model import load_model
from sapwood.records import Message

TEXTS = [
    *("Hello world", "  two  spaces ", "it's we'LL I'M", "12345 67,890.12", "tabs\t\tand\n\nlines \n \n x", "Grüße 世界 ЖЖ مرحبا"),
    *("emoji 🙂🙂", "a_b_c(x)=>{y[0]+=1;}", "ﬁ ligature Å", "http://x.y/z?q=1&r=2", "x²", "CamelCaseWords HTTPServer don't"),
]
SPECIALS = ["<unk>", "<s>", "</s>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[go]{% endif %}"
)
KINDS = ["sentencepiece", *SPLITTERS.values()]


def corpus() -> list[str]:
    """Prose, code, numbers and other scripts."""
    return [*TEXTS * 5, *Path(__file__).read_text().splitlines(), "Where does sapwood grow? Right below the bark, 1234567 times."]


def made(kind: str) -> Any:
    """A tokenizer of that kind, trained on a few lines."""
    if kind == "sentencepiece":
        letters = [f"<0x{number:02X}>" for number in range(256)]
        tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[*SPECIALS, *letters], show_progress=False, max_token_length=12)
        tokenizer.train_from_iterator(corpus(), trainer)
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = [entry for entry in content["added_tokens"] if not entry["content"].startswith("<0x")]
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer
    steps, whole_words = next(key for key, name in SPLITTERS.items() if name == kind)
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=whole_words))
    known = {
        "byte level, split": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "digits": pre_tokenizers.Digits(individual_digits=True),
    }
    parts = [known[step] if step in known else pre_tokenizers.Split(Regex(step), behavior="isolated") for step in steps]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def chat_of(folder: Path, kind: str, *, adds_bos: bool) -> Chat:
    tokenizer = made(kind)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Chat.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known_by_its_steps(tmp_path: Path, kind: str) -> None:
    chat = chat_of(tmp_path, kind, adds_bos=False)
    found = vocabulary_of(chat, chat.saved_files(), chat.tokens.vocabulary)
    assert (found.kind, found.splitter) == (("llama", "default") if kind == "sentencepiece" else ("gpt2", kind))
    assert found.special == {"bos": 1, "eos": 2, "unk": 0, "eot": 2}


@pytest.mark.parametrize("adds", [False, True])
def test_a_bos_is_added_where_template_and_tokenizer_both_do(tmp_path: Path, adds: bool) -> None:
    chat = chat_of(tmp_path, "gpt-2", adds_bos=adds)
    assert vocabulary_of(chat, chat.saved_files(), chat.tokens.vocabulary).add_bos is adds
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE.replace("{{ bos_token }}", ""))
    without = Chat.load(tmp_path)
    found = vocabulary_of(without, without.saved_files(), without.tokens.vocabulary)
    assert found.add_bos is False, "prompts of training had none"
    assert bool(found.notes) is adds


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp's Python bindings are not installed")
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_makes_the_same_ids(tmp_path: Path, kind: str, adds: bool) -> None:
    chat = chat_of(tmp_path, kind, adds_bos=adds)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    rows = chat.tokens.vocabulary
    config = transformers.LlamaConfig(vocab_size=rows, max_position_embeddings=512, eos_token_id=2, bos_token_id=1, pad_token_id=0, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    vocabulary = vocabulary_of(chat, chat.saved_files(), rows)
    write_gguf(load_model(tmp_path, "fp32"), tmp_path / "it.gguf", vocabulary, "f32", {"name": "it", "base_model": "tiny"})
    llama = LlamaCpp(tmp_path / "it.gguf", 64)
    for text in TEXTS:
        prompt = chat.prompt([Message("user", text)])
        found = llama.tokenize(prompt.text.removeprefix("<s>") if vocabulary.add_bos else prompt.text)
        assert found == list(prompt.ids), text
    llama.close()

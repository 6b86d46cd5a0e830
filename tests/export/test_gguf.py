"""GGUF files: what is written is what the model computes, by llama.cpp where its bindings are installed; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sapwood.assets.gguf_tokenizer import build_tokenizer
from sapwood.chat import Chat
from sapwood.errors import ConfigError, ExportError
from sapwood.export import gguf_file
from sapwood.export.gguf_file import check_model, check_quant, permuted, quantize, write_gguf
from sapwood.export.gguf_readers import LlamaCpp, check_prompts, read_tensors
from sapwood.export.gguf_vocabulary import SPLITTERS, plain_jinja, vocabulary_of
from sapwood.export.verify import Tolerance, compare, trace
from sapwood.model import LanguageModel, load_model
from sapwood.records import Message, Prompt
from tiny.folder import SPECIALS, TEMPLATE, write_model

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama, tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (transformers.LlamaConfig, {"tie_word_embeddings": False, "attention_bias": True}),
    "llama 3.1, scaled positions": (transformers.LlamaConfig, {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64}}),
    "llama, positions scaled evenly": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral, no window": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 32}),
    "qwen2, tied, padded": (transformers.Qwen2Config, {"tie_word_embeddings": True, "vocab_size": 384}),
    "qwen3, wide heads": (transformers.Qwen3Config, {"tie_word_embeddings": False, "head_dim": 32}),
}
PROMPTS = ("the colour of the sky is blue 12345", "one two\n\nthree", "Grüße, 世界! <tag> it's  here")
llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp's Python bindings are not installed: pip install llama-cpp-python"
)


def model_folder(folder: Path, family: str) -> Path:
    """A random model of a family, with the tiny tokenizer."""
    write_model(folder)
    kind, extra = FAMILIES[family]
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)
    config = kind(
        **{
            **sizes,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            **extra,
        }
    )
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 or "bias" in name:
                parameter.normal_(std=0.15)
    module.save_pretrained(folder)
    return folder


def written(tmp_path: Path, family: str, quant: str) -> tuple[Path, LanguageModel, Chat]:
    folder = model_folder(tmp_path / "model", family)
    chat, model = Chat.load(folder), load_model(folder, "fp32")
    rows = len(model.base.get_input_embeddings().weight)
    write_gguf(model, tmp_path / "it.gguf", vocabulary_of(chat, chat.saved_files(), rows), quant, {"name": "it", "base_model": "tiny"})
    return tmp_path / "it.gguf", model, chat


def metadata_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_computes_what_the_model_computes(tmp_path: Path, family: str) -> None:
    path, model, chat = written(tmp_path, family, "f32")
    traces = trace(model, chat, [chat.prompt([Message("user", text)]) for text in PROMPTS], max_new_tokens=6)
    # answers come from weights laid out once, whose products sum in another order: in fp32 that alone is some 5e-8
    parity = compare(traces, read_tensors(path, model.base.config), Tolerance(kl=1e-6, tie=1e-4), "gguf")
    assert parity.holds, parity.sentence
    assert parity.max_logprob < 1e-5


@llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_makes_the_same_ids_and_computes_the_same(tmp_path: Path, family: str) -> None:
    path, model, chat = written(tmp_path, family, "f32")
    traces = trace(model, chat, [chat.prompt([Message("user", text)]) for text in PROMPTS], max_new_tokens=6)
    llama = LlamaCpp(path, 160)
    assert check_prompts(llama, chat, traces, adds_bos=False) == len(PROMPTS)
    parity = compare(traces, llama.logprobs, Tolerance(kl=1e-5, tie=0.01), llama.name)
    assert parity.holds, parity.sentence
    assert llama.stops_at(2)
    assert not llama.stops_at(70)
    llama.close()


@pytest.mark.parametrize(("quant", "most"), [("f16", 1e-5), ("bf16", 1e-3), ("q8_0", 1e-2)])
def test_each_type_rounds_as_much_as_it_should(tmp_path: Path, quant: str, most: float) -> None:
    path, model, chat = written(tmp_path, "qwen2, tied, padded", quant)
    traces = trace(model, chat, [chat.prompt([Message("user", text)]) for text in PROMPTS], max_new_tokens=6)
    parity = compare(traces, read_tensors(path, model.base.config), Tolerance(kl=most, tie=0.5), "gguf")
    assert 0 < parity.mean_kl < most
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.attn_q.weight"] == quant.upper()
    assert types["token_embd.weight"] == quant.upper()
    assert {types["blk.0.attn_norm.weight"], types["blk.1.attn_k.bias"]} == {"F32"}
    assert "output.weight" not in types, "a tied head is the embedding"


def test_metadata_says_what_config_and_tokenizer_say(tmp_path: Path) -> None:
    path, model, chat = written(tmp_path, "qwen3, wide heads", "f16")
    found, config = metadata_of(path), model.base.config
    assert found["general.architecture"] == "qwen3"
    assert found["qwen3.attention.key_length"] == 32
    assert found["qwen3.rope.freq_base"] == config.rope_parameters["rope_theta"]
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.eos_token_id"] == found["tokenizer.ggml.eot_token_id"] == 2
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == chat.template
    types = found["tokenizer.ggml.token_type"]
    assert [types[number] for number in (0, 2, 5)] == [gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.NORMAL]
    assert len(types) == config.vocab_size
    assert types[chat.tokens.vocabulary :] == [gguf.TokenType.UNUSED] * (config.vocab_size - chat.tokens.vocabulary)


def test_the_order_of_rows_is_llama_cpps() -> None:
    rows = torch.arange(8.0)[:, None].repeat(1, 3)
    assert permuted(rows, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert permuted(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert permuted(rows[:, 0], 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7], "a bias, too"


@pytest.mark.parametrize(("steps", "name"), [(steps, name) for steps, name in SPLITTERS.items() if name in ("qwen2", "smollm")])
def test_the_tokenizer_can_be_made_again_from_the_file(tmp_path: Path, steps: Any, name: str) -> None:
    folder = write_model(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    tokenizer = Tokenizer(models.BPE(content["model"]["vocab"], [tuple(pair) for pair in content["model"]["merges"]]))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(steps[0][0]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    chat = Chat.load(folder)
    vocabulary = vocabulary_of(chat, chat.saved_files(), 330)
    assert vocabulary.splitter == name
    again = build_tokenizer(
        {
            "tokenizer.ggml.model": vocabulary.kind,
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.tokens": vocabulary.tokens,
            "tokenizer.ggml.token_type": vocabulary.types,
            "tokenizer.ggml.merges": vocabulary.merges,
        }
    )
    for text in PROMPTS:
        prompt: Prompt = chat.prompt([Message("user", text)])
        assert tuple(again.encode(prompt.text, add_special_tokens=False).ids) == prompt.ids
    assert bool(vocabulary.notes) == (name == "qwen2"), "text that is not in the form NFC is told of"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}, "splits text by"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises text by Lowercase"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    chat = Chat.load(write_model(tmp_path / "model"))
    files = chat.saved_files()
    files["tokenizer.json"] = json.dumps({**json.loads(files["tokenizer.json"]), **change}).encode()
    with pytest.raises(ExportError, match=rf"{said}.*--as merged"):
        vocabulary_of(chat, files, 330)
    with pytest.raises(ExportError, match="embedding rows"):
        vocabulary_of(chat, chat.saved_files(), 100)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (transformers.Gemma3TextConfig(), "family 'gemma3_text'"),
        (transformers.LlamaConfig(hidden_act="gelu"), "activation"),
        (transformers.MistralConfig(sliding_window=8), "sliding window"),
        (transformers.LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "positions are scaled"),
    ],
)
def test_a_model_that_would_compute_otherwise_is_refused(config: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        check_model(config)


def test_a_weight_that_f16_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    chat, model = Chat.load(folder), load_model(folder, "fp32")
    vocabulary = vocabulary_of(chat, chat.saved_files(), len(model.base.get_input_embeddings().weight))
    with torch.no_grad():
        model.base.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"f16 cannot hold.*--quant bf16"):
        write_gguf(model, tmp_path / "it.gguf", vocabulary, "f16", {"name": "it", "base_model": "tiny"})
    write_gguf(model, tmp_path / "it.gguf", vocabulary, "bf16", {"name": "it", "base_model": "tiny"})
    with torch.no_grad():
        model.base.model.layers[0].mlp.up_proj.weight[0, 0] = np.inf
    with pytest.raises(ExportError, match="not a finite number"):
        write_gguf(model, tmp_path / "it.gguf", vocabulary, "f32", {"name": "it", "base_model": "tiny"})


def test_types_by_name_and_the_tool_that_makes_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_quant("Q8_0") == "q8_0"
    with pytest.raises(ConfigError, match="allowed: f32, f16"):
        check_quant("q9")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not on the PATH"):
        check_quant("q4_k_m")
    tool = tmp_path / gguf_file.TOOL
    tool.write_text('#!/bin/sh\n/bin/cp "$1" "$2"; [ "$3" = Q4_K_M ] || { echo "unknown type $3" >&2; exit 3; }\n')
    os.chmod(tool, 0o755)
    (tmp_path / "a").write_text("x")
    assert check_quant("q4_k_m") == "q4_k_m"
    quantize(tmp_path / "a", tmp_path / "b", "q4_k_m")
    assert (tmp_path / "b").read_text() == "x"
    with pytest.raises(ExportError, match=r"exit code 3\): unknown type Q6_K"):
        quantize(tmp_path / "a", tmp_path / "c", "q6_k")
    assert shutil.which(gguf_file.TOOL)


@pytest.mark.parametrize("dash", ["", "-"])
def test_generation_marks_are_taken_out_and_change_nothing(tmp_path: Path, dash: str) -> None:
    marked = TEMPLATE.replace("{{ '<|im_start|>' +", "{%" + dash + " generation %} {{ '<|im_start|>' +", 1)
    marked = marked.replace("{% endfor %}", " {%" + dash + " endgeneration -%} {% endfor %}", 1)
    plain = plain_jinja(marked)
    assert "generation %}" not in plain
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    prompts = [Chat.load(write_model(tmp_path / str(n), template=text)).prompt(messages).text for n, text in enumerate((marked, plain))]
    assert prompts[0] == prompts[1]

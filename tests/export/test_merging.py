"""Merged weights against the adapter, for every kind of adapter that training makes, and the types they are saved in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sapwood.errors import ExportError
from sapwood.export.merging import merge, save_weights, widen
from sapwood.export.readers import logprobs_of_module, read_model
from sapwood.export.verify import logprobs_of
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_adapter, load_model, save_adapter, trainable_parameters
from tiny.folder import write_model

IDS = list(range(40, 60))
KINDS = {
    "plain": LoraConfig(r=4),
    "rslora": LoraConfig(r=4, rslora=True),
    "dora": LoraConfig(r=4, dora=True),
    "patterns": LoraConfig(r=4, rank_pattern=("q_proj=2",), alpha_pattern=("down_proj=64",)),
    "biases": LoraConfig(r=4, bias="all"),
    "olora": LoraConfig(r=4, init="olora"),
    "head": LoraConfig(r=4, modules_to_save=("lm_head",)),
}


def tuned(folder: Path, config: LoraConfig, tmp_path: Path, dtype: Any = "fp32") -> LanguageModel:
    """Trained (by chance), saved, and loaded again on a fresh base."""
    model = add_lora(load_model(folder, dtype), config, 0)
    generator = torch.Generator().manual_seed(3)
    for parameter in trainable_parameters(model).values():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    save_adapter(model, tmp_path / "adapter")
    return load_adapter(widen(load_model(folder, dtype)), tmp_path / "adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_saved_is_the_adapter(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "model")
    model = tuned(folder, KINDS[kind], tmp_path)
    ours, base = logprobs_of(model)(IDS, 8), logprobs_of(load_model(folder, "fp32"))(IDS, 8)
    merged = merge(model)
    assert np.abs(logprobs_of(merged)(IDS, 8) - ours).max() < 1e-4
    save_weights(merged, tmp_path / "merged", "fp32", {})
    found = logprobs_of_module(read_model(tmp_path / "merged"))(IDS, 8)
    assert np.abs(found - ours).max() < 1e-4
    assert np.abs(base - ours).max() > 0.05


def test_the_base_keeps_the_values_it_was_rounded_to(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    rounded = {name: value.float() for name, value in load_model(folder, "bf16").base.state_dict().items()}
    wide = widen(load_model(folder, "bf16")).base.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, rounded[name]) for name, value in wide.items())
    exact = load_model(folder, "fp32").base.state_dict()
    assert not torch.equal(wide["model.embed_tokens.weight"], exact["model.embed_tokens.weight"])


def test_a_model_without_an_adapter_is_merged_already(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "model"), "fp32")
    assert merge(model) is model


def test_weights_that_are_no_numbers_or_too_large_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    model = tuned(folder, KINDS["plain"], tmp_path)
    next(parameter for name, parameter in model.module.named_parameters() if "lora_B" in name).data[0, 0] = torch.nan
    with pytest.raises(ExportError, match="cannot be merged"):
        merge(model)
    whole = load_model(folder, "fp32")
    whole.base.get_input_embeddings().weight.data[0, 0] = 1e5
    with pytest.raises(ExportError, match="does not fit fp16"):
        save_weights(whole, tmp_path / "out", "fp16", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_an_adapter_on_4_bits_is_merged_into_what_those_stand_for(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = transformers.LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})  # blocks of scales are 64 wide
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    model = add_lora(load_model(folder, "nf4"), KINDS["plain"], 0)
    for name, parameter in trainable_parameters(model).items():
        parameter.data.add_(0.05 if "lora_B" in name else 0.0)
    save_adapter(model, tmp_path / "adapter")
    as_trained = logprobs_of(model)(IDS, 8)
    wide = load_adapter(widen(load_model(folder, "nf4")), tmp_path / "adapter")
    ours = logprobs_of(wide)(IDS, 8)
    assert np.abs(ours - as_trained).max() < 0.1, "the same weights, computed in another type"
    save_weights(merge(wide), tmp_path / "merged", "fp32", {})
    assert np.abs(logprobs_of_module(read_model(tmp_path / "merged"))(IDS, 8) - ours).max() < 1e-4

"""Weights of 4 bits and moments of 8, with bitsandbytes on this processor; and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from sapwood.errors import ConfigError, ModelError
from sapwood.model import (
    LanguageModel,
    LoraConfig,
    add_lora,
    count_parameters,
    load_adapter,
    load_model,
    save_adapter,
    trainable_parameters,
)
from sapwood.model.quantized import import_bitsandbytes, is_quantized
from sapwood.records import Example, Row
from sapwood.train import OptimConfig, SftConfig
from sapwood.train.optimizer import Optimizer
from sapwood.train.step import accumulate
from tiny.folder import write_model
from train.tiny_training import gradients, train, trained_steps

there = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `gpu`)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of scales are 64 wide; the model is, too."""
    folder = write_model(tmp_path_factory.mktemp("quantized") / "model")
    config = transformers.LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def examples(count: int = 6) -> list[Example]:
    rng = np.random.default_rng(0)
    system = rng.integers(3, 300, 25)
    rows = [Row(np.concatenate([system, rng.integers(3, 300, 5)]), rng.integers(3, 300, 6), np.ones(6, np.float32)) for _ in range(count)]
    return [Example((row,)) for row in rows]


@there
def test_nf4_is_the_dequantized_model_and_leaves_head_and_embedding_as_they_are(folder: Path) -> None:
    """The same forward as a plain model with the dequantized weights, in the same type."""
    import bitsandbytes

    quantized, plain = load_model(folder, "nf4"), load_model(folder, "auto")
    assert is_quantized(quantized.module)
    assert not is_quantized(plain.module)
    assert quantized.shares_prefixes
    changed = 0
    with torch.no_grad():
        weights = dict(quantized.module.named_parameters())
        for name, parameter in plain.module.named_parameters():
            state = getattr(weights[name], "quant_state", None)
            if state is None:
                assert torch.equal(weights[name], parameter), name
                continue
            dequantized = bitsandbytes.functional.dequantize_4bit(weights[name].data, state).to(parameter.dtype)
            assert 0 < float((dequantized - parameter).abs().max()) < 0.2 * float(parameter.abs().max())
            parameter.copy_(dequantized)
            changed += 1
    assert changed == 2 * 7
    rows = [row for example in examples() for row in example.rows]
    for ours, theirs in zip(quantized.logprobs(rows), plain.logprobs(rows), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.03)


@there
def test_gradients_of_an_adapter_on_nf4_are_those_on_the_dequantized_weights(folder: Path) -> None:
    import bitsandbytes

    quantized, plain = (add_lora(load_model(folder, kind), LoraConfig(r=4, init="gaussian"), 0) for kind in ("nf4", "auto"))  # type: ignore[arg-type]
    weights = dict(quantized.module.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.module.named_parameters():
            state = getattr(weights[name], "quant_state", None)
            if state is not None:
                parameter.copy_(bitsandbytes.functional.dequantize_4bit(weights[name].data, state))
            elif "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
                weights[name].copy_(parameter)
    found = []
    for model in (quantized, plain):
        accumulate(model, examples(), 10_000)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        assert float((found[0][name] - gradient).norm()) < 0.15 * float(gradient.norm()) + 1e-6, name


@there
def test_what_a_quantized_layer_computes_does_not_depend_on_gradients(folder: Path) -> None:
    model = load_model(folder, "nf4")
    rows = [row for example in examples() for row in example.rows]
    before = model.logprobs(rows)
    model = add_lora(model, LoraConfig(r=2), 0)
    accumulate(model, examples(), 10_000)
    for first, second in zip(before, model.logprobs(rows), strict=True):
        assert (first == second).all()


@there
def test_a_run_on_nf4_with_8_bit_moments_goes_on_to_the_bit(folder: Path, tmp_path: Path) -> None:
    config = SftConfig(
        batch=2, epochs=3, budget=500, save_every=2, lora=LoraConfig(r=64), optim=OptimConfig(optimizer="adamw8bit", lr=2e-3)
    )

    def stop(done: object) -> None:
        if getattr(done, "step", 0) == 4:
            raise KeyboardInterrupt

    train(tmp_path / "whole", config, examples=examples(), model=load_model(folder, "nf4"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", config, examples=examples(), model=load_model(folder, "nf4"), report=stop)
    result = train(tmp_path / "stopped", config, examples=examples(), model=load_model(folder, "nf4"))
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    losses = [record["loss"] for record in trained_steps(tmp_path / "whole")]
    assert losses[-1] < losses[0]
    again = load_adapter(load_model(folder, "nf4"), tmp_path / "whole" / "adapter")
    rows = [row for example in examples() for row in example.rows]
    for ours, theirs in zip(again.logprobs(rows), result.model.logprobs(rows), strict=True):
        assert (ours == theirs).all()
    saved = safetensors.torch.load_file(tmp_path / "whole" / name)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@there
def test_widths_that_are_computed_wrongly_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"q_proj is 32 wide, .* multiples of 64.*--dtype bf16"):
        load_model(write_model(tmp_path), "nf4")


@there
def test_moments_of_large_matrices_take_8_bits(folder: Path) -> None:
    model = add_lora(load_model(folder, "fp32"), LoraConfig(r=64), 0)
    optimizer = Optimizer(trainable_parameters(model), OptimConfig(optimizer="adamw8bit"))
    accumulate(model, examples(), 10_000)
    optimizer.step(1e-3)
    kinds = {name: tensor.dtype for name, tensor in optimizer.state().items() if name.startswith("state1.") and tensor.numel() >= 4096}
    assert kinds
    assert set(kinds.values()) == {torch.uint8}


@there
def test_parameters_of_4_bits_count_each(folder: Path) -> None:
    assert count_parameters(load_model(folder, "nf4")).total == count_parameters(load_model(folder, "fp32")).total


@there
def test_all_weights_of_4_bits_cannot_be_trained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4 bits.*--full.*--dtype"):
        train(tmp_path, SftConfig(full=True), examples=examples(), model=load_model(folder, "nf4"))


@there
def test_a_start_from_the_weights_wants_them_whole(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype fp32"):
        add_lora(load_model(folder, "nf4"), LoraConfig(init="pissa"), 0)


@there
def test_an_adapter_that_was_trained_on_nf4_is_a_plain_one(folder: Path, tmp_path: Path) -> None:
    model = add_lora(load_model(folder, "nf4"), LoraConfig(r=4), 0)
    save_adapter(model, tmp_path)
    assert isinstance(load_adapter(load_model(folder, "fp32"), tmp_path), LanguageModel)


def test_what_needs_bitsandbytes_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r'--dtype nf4 needs bitsandbytes, .*pip install "sapwood\[gpu\]"'):
        load_model(folder, "nf4")
    with pytest.raises(ConfigError, match=r'optim\.optimizer adamw8bit needs bitsandbytes, .*pip install "sapwood\[gpu\]"'):
        Optimizer({"w": torch.nn.Parameter(torch.ones(2, 2))}, OptimConfig(optimizer="adamw8bit"))


def test_an_old_one_is_told_to_be_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("bitsandbytes")
    old.__version__ = "0.43.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", old)
    with pytest.raises(ConfigError, match=r"0\.50 or newer; this is 0\.43\.1"):
        import_bitsandbytes("--dtype nf4")

"""Attention blocks with the fast forward are the blocks of transformers, and what computes something else keeps its own forward."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from sapwood import kernels
from sapwood.attention import NAME, register
from sapwood.forest import Forest, plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, trainable_parameters
from sapwood.model.attending import fuse_attention, is_fused_attention, unfuse_attention
from sapwood.model.fused import fuse, project, unfuse
from sapwood.records import Row

register()
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def _served() -> None:
    if kernels.cpu_kernels() is None:
        pytest.skip(f"no kernels here: {kernels.why_not()}")


def model_of(kind: Any, **extra: Any) -> LanguageModel:
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(kind(**SIZES, **extra), attn_implementation=NAME, dtype=torch.bfloat16)
    for name, parameter in module.named_parameters():
        if "proj" in name:  # so that attention is far from uniform, and biases are not 0
            nn.init.normal_(parameter, std=0.15)
    return LanguageModel(module.eval())


def adapted(kind: Any = transformers.LlamaConfig, **extra: Any) -> LanguageModel:
    model = add_lora(model_of(kind, **extra), LoraConfig(r=4), 0)
    torch.manual_seed(1)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def forest_of_rows(seed: int = 0) -> Forest:
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, 97, 40)
    return plant(
        [Row(np.concatenate([shared, rng.integers(0, 97, 9)]), rng.integers(0, 97, 12), np.ones(12, np.float32)) for _ in range(4)]
    )


def step(model: LanguageModel, forest: Forest) -> tuple[Tensor, Tensor]:
    """Log-probabilities and the gradient of everything that is trained."""
    logprob_N = model.target_logprobs(forest)
    logprob_N.sum().backward()  # type: ignore[no-untyped-call]
    parameters = trainable_parameters(model).values()
    found = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    model.module.zero_grad()
    return logprob_N.detach().double(), found.double()


def off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (transformers.LlamaConfig, {}),
        (transformers.Qwen2Config, {}),
        (transformers.GraniteConfig, {"attention_multiplier": 0.2}),  # its default, 1, makes gradients here that are all rounding
        (transformers.SmolLM3Config, {}),
    ],
)
def test_values_and_gradients_are_as_near_to_the_truth_as_the_class_s_own(kind: Any, extra: dict[str, Any]) -> None:
    errors = []  # of values and gradients, ours and the class's own; one draw alone says little
    for seed in range(4):
        model, forest = adapted(kind, **extra), forest_of_rows(seed)
        fused = sum(is_fused_attention(block) for block in model.module.modules())
        assert fused == 2
        ours = step(model, forest)
        assert unfuse_attention(model.module) == fused
        own = step(model, forest)
        truth = step(LanguageModel(copy.deepcopy(model.module).double(), probe=False), forest)
        assert not any(torch.equal(found, stock) for found, stock in zip(ours, own, strict=True)), "the fast forward must have run"
        errors.append([[off(found, true) for found, true in zip(arm, truth, strict=True)] for arm in (ours, own)])
    our_errors, own_errors = np.exp(np.log(errors).mean(0))
    assert (our_errors < 1.3 * own_errors).all()


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (transformers.Qwen3Config, {}),  # norms of queries and keys
        (transformers.MistralConfig, {"sliding_window": 8}),
        (transformers.GlmConfig, {"partial_rotary_factor": 0.5}),  # neighbours turn, half of the head
        (transformers.Gemma2Config, {"sliding_window": 8}),  # soft caps
        (transformers.Phi3Config, {}),  # one projection for all three
        (transformers.LlamaConfig, {"head_dim": 32}),  # heads that the kernel does not turn
    ],
)
def test_what_computes_something_else_keeps_its_own(kind: Any, extra: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(kind(**{**SIZES, **extra}), attn_implementation=NAME, dtype=torch.bfloat16)
    assert fuse_attention(module) == 0


def test_only_forests_in_bf16_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forest = adapted(), forest_of_rows()
    own = model.module
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        own.set_attn_implementation("sdpa")
        cached = own.generate(ids, max_new_tokens=4, do_sample=False)
        assert cached.shape[1] <= 14  # with a cache of transformers, outside of a forest
    own.set_attn_implementation(NAME)
    monkeypatch.setattr(kernels, "serves", lambda *tensors: None)
    without = step(model, forest)
    unfuse_attention(own)
    assert all(torch.equal(one, other) for one, other in zip(without, step(model, forest), strict=True))


def test_it_may_be_asked_for_again() -> None:
    model = adapted()
    assert fuse_attention(model.module) == fuse_attention(model.module) == 2
    assert unfuse_attention(model.module) == 2
    assert unfuse_attention(model.module) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projections_together_are_the_projections_one_by_one(dtype: torch.dtype) -> None:
    model = adapted()
    block = model.module.to(dtype).get_base_model().model.layers[0].self_attn
    layers = [block.q_proj, block.k_proj, block.v_proj]
    block.k_proj.scaling = {"default": 0.3}  # each its own
    assert fuse(block) == 4
    x = torch.randn(1, 60, 128, dtype=dtype, generator=torch.Generator().manual_seed(2)).requires_grad_()
    inputs = [x, *(weight for layer in layers for name, weight in layer.named_parameters() if "lora_" in name)]

    def gradients(outputs: Any) -> list[Tensor]:
        return [*outputs, *torch.autograd.grad(sum((y * y).sum() for y in outputs), inputs)]

    together = gradients(project(x, layers))
    unfuse(block)
    for found, expected in zip(together, gradients([layer(x) for layer in layers]), strict=True):
        assert found.dtype == expected.dtype
        assert off(found.detach(), expected.detach()) < (1e-12 if dtype == torch.float64 else 1e-5)


def test_a_layer_that_somebody_watches_is_called() -> None:
    block = adapted().module.get_base_model().model.layers[0].self_attn
    layers, seen = [block.q_proj, block.k_proj], []
    block.k_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    project(torch.zeros(1, 60, 128, dtype=torch.bfloat16), layers)
    assert seen == [(1, 60, 64)]


def test_an_adapter_that_trains_in_part_gets_its_gradients_alone() -> None:
    block = adapted().module.get_base_model().model.layers[0].self_attn
    block.q_proj.lora_A["default"].weight.requires_grad_(False)
    block.v_proj.lora_B["default"].weight.requires_grad_(False)
    x = torch.randn(1, 60, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    sum(y.float().sum() for y in project(x, [block.q_proj, block.k_proj, block.v_proj])).backward()  # type: ignore[union-attr]
    given = {name for name, weight in block.named_parameters() if weight.grad is not None}
    ends = ("q_proj.lora_B", "k_proj.lora_A", "k_proj.lora_B", "v_proj.lora_A")
    assert given == {f"{end}.default.weight" for end in ends}

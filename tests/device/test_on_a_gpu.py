"""On a real GPU: the references of the CPU's tests, on the device. Skipped where there is none; `docs/gpu.md` says how to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.attention import TreeAttention, flex, register
from sapwood.attention.interface import LayerCall
from sapwood.forest import Forest, plant
from sapwood.kernels import on_gpu as kernels_on_gpu
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model, on_gpu, trainable_parameters
from sapwood.records import Example, Row
from sapwood.train.memory import Watch, free_memory, peak_memory, room
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.step import accumulate, evaluate
from tiny.folder import write_model
from tiny.models import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
register()
GPU = torch.device("cuda")
CALLS = [
    LayerCall(0, 0.2),
    LayerCall(0, 0.2, 100),
    LayerCall(0, 0.2, None, 5.0),
    LayerCall(0, 0.2, None, None, torch.linspace(-1, 1, 8)),
    LayerCall(0, 0.2, 100, 5.0, torch.linspace(-1, 1, 8)),
]
BOUND = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 4e-3}
"""Norm of the error as a share."""


def branching(seed: int, branches: int, length: int) -> list[Row]:
    """Rows behind 300 shared tokens, two by two behind 100 more."""
    rng = np.random.default_rng(seed)
    root, pairs = rng.integers(2, 97, 300), rng.integers(2, 97, (branches, 100))
    rows = []
    for number in range(2 * branches):
        tokens = np.concatenate([root, pairs[number // 2], rng.integers(2, 97, length + 1)])
        rows.append(Row(tokens[:-20], tokens[-20:], np.ones(20, np.float32)))
    return rows


def gradients(forest: Forest, states: list[Tensor], grad: Tensor, path: Any, call: LayerCall) -> list[Tensor]:
    inputs = [part.detach().clone().requires_grad_() for part in states]
    out = TreeAttention(forest, path).attend(inputs[0], inputs[1], inputs[2], call)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("dtype", flex.TYPES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("width", [64, 128])
def test_the_compiled_kernel_equals_the_dense_mask(dtype: torch.dtype, call: LayerCall, width: int) -> None:
    call = LayerCall(0, call.scale, call.window, call.softcap, None if call.sinks_H is None else call.sinks_H.to(GPU))
    for seed, (branches, length) in enumerate(((1, 20), (3, 50), (5, 131))):
        forest = plant(branching(seed, branches, length), min_saving=1)
        torch.manual_seed(seed)
        states = [torch.randn(1, forest.num_tokens, heads, width, device=GPU, dtype=dtype).transpose(1, 2) for heads in (8, 2, 2)]
        grad = torch.randn(1, forest.num_tokens, 8, width, device=GPU, dtype=dtype)
        assert flex.flex_serves(states[0], states[1], states[2], call), flex.why_not()
        found = gradients(forest, states, grad, "auto", call)
        expected = gradients(forest, [part.double() for part in states], grad.double(), "dense", call)
        for one, other in zip(found, expected, strict=True):
            assert float((one.double() - other).norm() / other.norm()) < BOUND[dtype]


def test_no_length_compiles_anew() -> None:
    call = LayerCall(0, 0.125)
    for number, branches in enumerate((2, 3, 7, 11)):
        forest = plant(branching(number, branches, 40), min_saving=1)
        states = [torch.randn(1, forest.num_tokens, h, 64, device=GPU, dtype=torch.bfloat16).transpose(1, 2) for h in (4, 2, 2)]
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            gradients(forest, states, torch.ones(1, forest.num_tokens, 4, 64, device=GPU, dtype=torch.bfloat16), "flex", call)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forest_on_the_gpu_equals_one_row_at_a_time_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    rows = branching(0, 2, 30)
    forest = plant(rows, min_saving=1)
    model = LanguageModel(tiny_model(name, dtype).to(GPU), probe=False)
    on_gpu.fuse_on_gpu(model.module)
    exact = LanguageModel(tiny_model(name, torch.float64), probe=False)
    with torch.no_grad():
        exact_E = np.concatenate([exact.target_logprobs(plant([row])).numpy()[plant([row]).target_E] for row in rows])
    logprob_N = model.target_logprobs(forest)
    assert logprob_N.device.type == "cuda"
    found_E = logprob_N.detach().double().cpu().numpy()[forest.target_E]
    assert np.abs(found_E - exact_E).mean() < {torch.float32: 1e-3, torch.bfloat16: 0.5}[dtype]
    logprob_N.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.module.parameters())


def test_norms_and_gates_are_compiled_and_agree() -> None:
    module = tiny_model("llama", torch.bfloat16).to(GPU)
    assert on_gpu.fuse_on_gpu(module) == 2 * 3 + 1 + 3, on_gpu.why_not()
    assert on_gpu.why_not() == {}
    assert kernels_on_gpu.compiled.cache_info().currsize >= 2


def test_a_step_and_its_continuation(tmp_path: Path) -> None:
    examples = [Example((row,)) for row in branching(1, 4, 25)]
    model = add_lora(load_model(write_model(tmp_path / "model"), "bf16", device="cuda"), LoraConfig(r=4), 0)
    assert model.shares_prefixes
    trained = trainable_parameters(model)
    optimizer = Optimizer(trained, OptimConfig())
    before = evaluate(model, examples, 1000).loss
    with Watch(GPU) as watch:
        for _ in range(3):
            accumulate(model, examples, 500)
            optimizer.step(1e-3)
    assert watch.growth > 0
    assert peak_memory() >= watch.peak
    assert free_memory(GPU) <= room(GPU)
    assert evaluate(model, examples, 1000).loss < before
    state = {name: tensor.cpu() for name, tensor in optimizer.state().items()}
    again = Optimizer(trained, OptimConfig())
    again.restore(state)
    accumulate(model, examples, 500)
    again.step(1e-3)
    assert all(parameter.isfinite().all() for parameter in trained.values())


def test_the_budget_changes_no_gradient(tmp_path: Path) -> None:
    examples = [Example((row,)) for row in branching(2, 4, 25)]
    model = add_lora(load_model(write_model(tmp_path / "model"), "fp32", device="cuda"), LoraConfig(r=4), 0)
    found = []
    for budget in (450, 5000):
        accumulate(model, examples, budget)
        found.append(
            {name: parameter.grad.clone() for name, parameter in trainable_parameters(model).items() if parameter.grad is not None}
        )
        for parameter in trainable_parameters(model).values():
            parameter.grad = None
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=1e-3, atol=1e-5)

"""Compiled norms and gated blocks: the formula is the class's own, one compilation serves every length, and what differs is left alone."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from sapwood.attention import register
from sapwood.kernels import on_gpu as kernels_on_gpu
from sapwood.model import on_gpu
from tiny.models import tiny_model

register()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions as they are, and which of them were called."""
    called: list[Any] = []

    def call(function: Any, varying: Any, *given: Any) -> Any:
        called.append(function)
        return function(*given)

    monkeypatch.setattr(kernels_on_gpu, "call", call)
    monkeypatch.setattr(on_gpu, "_serves", lambda x: True)
    monkeypatch.setattr(on_gpu, "_refusals", {})
    return called


def block(dtype: torch.dtype) -> Any:
    return tiny_model("llama", dtype).model.layers[0].mlp


@pytest.mark.parametrize("dtype", on_gpu.TYPES)
def test_what_computes_the_formula_agrees(dtype: torch.dtype, uncompiled: list[Any]) -> None:
    norm, gate = LlamaRMSNorm(64, 1e-6).to(dtype), block(dtype)
    nn.init.normal_(norm.weight)
    with torch.inference_mode():
        assert on_gpu._agrees(norm, on_gpu._norm, 64, norm.weight)
        assert on_gpu._agrees(gate, on_gpu._gate, 32, gate.down_proj.weight)
    assert uncompiled == [on_gpu.normed, on_gpu.gated]
    assert on_gpu.why_not() == {}


def test_what_computes_something_else_keeps_its_own_forward(uncompiled: list[Any]) -> None:
    norm = GemmaRMSNorm(64)  # scales by 1 + w
    nn.init.normal_(norm.weight)
    assert not on_gpu._agrees(norm, on_gpu._norm, 64, norm.weight)
    assert "differs" in on_gpu.why_not()["GemmaRMSNorm"]
    other = block(torch.float32)
    other.act_fn = nn.GELU()
    assert not on_gpu._agrees(other, on_gpu._gate, 32, other.down_proj.weight)
    with mock.patch.object(kernels_on_gpu, "call", side_effect=RuntimeError("no compiler")):
        assert not on_gpu._agrees(block(torch.float32), on_gpu._gate, 32, torch.zeros(1))
    assert on_gpu.why_not()["LlamaMLP"] == "RuntimeError: no compiler"
    with mock.patch.object(kernels_on_gpu, "call", side_effect=torch.OutOfMemoryError("full")), pytest.raises(torch.OutOfMemoryError):
        on_gpu._agrees(block(torch.float32), on_gpu._gate, 32, torch.zeros(1))


def test_weights_that_are_trained_have_their_gradient(uncompiled: list[Any]) -> None:
    norm = LlamaRMSNorm(64, 1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 64)
    grads = []
    for forward in (LlamaRMSNorm.forward, on_gpu._norm):
        (grad,) = torch.autograd.grad(forward(norm, x).square().sum(), norm.weight)
        grads.append(grad)
    torch.testing.assert_close(*grads)


def test_a_cpu_is_left_alone() -> None:
    module = tiny_model("llama", torch.float32)
    assert on_gpu.fuse_on_gpu(module) == on_gpu.count_on_gpu(module) == 0
    x = torch.randn(1, 3, 32)
    norm = module.model.norm
    with mock.patch.object(kernels_on_gpu, "call", side_effect=AssertionError):
        assert torch.equal(on_gpu._norm(norm, x), LlamaRMSNorm.forward(norm, x))
        gate = block(torch.float32)
        assert torch.equal(on_gpu._gate(gate, x), LlamaMLP.forward(gate, x))


def test_one_compilation_serves_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    forms = {function: torch.compile(function, fullgraph=True, backend=keep) for function in (on_gpu.normed, on_gpu.gated)}
    monkeypatch.setattr(kernels_on_gpu, "compiled", forms.__getitem__)
    monkeypatch.setattr(on_gpu, "_serves", lambda x: True)
    norm, gate = LlamaRMSNorm(32, 1e-6), block(torch.float32)
    for number, length in enumerate((5, 64, 32, 777)):  # 32 is also the width
        x: Tensor = torch.randn(1, length, 32)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=number > 0):
            torch.testing.assert_close(on_gpu._norm(norm, x), LlamaRMSNorm.forward(norm, x))
            torch.testing.assert_close(on_gpu._gate(gate, x), LlamaMLP.forward(gate, x))
    assert len(graphs) == 2

"""Without our own kernels the flash backward of bf16 goes through fp32 where that is faster, and is nearer to the truth there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood import kernels
from sapwood.attention import TreeAttention, flash, flash_is_available
from sapwood.attention.interface import LayerCall
from sapwood.forest import Forest, plant
from sapwood.records import Row

pytestmark = pytest.mark.skipif(not flash_is_available(), reason="needs a CPU build with the kernel")


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is the way back where none of our own kernels serves."""
    monkeypatch.setattr(kernels, "serves", lambda *tensors: None)


def tree_and_tensors() -> tuple[Forest, list[Tensor]]:
    """Five rows of 60 tokens behind 40 shared ones; queries, keys, values and the gradient of the output."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 90, 40)
    rows = [Row(np.concatenate([shared, rng.integers(0, 90, 30)]), rng.integers(0, 90, 31), np.ones(31, np.float32)) for _ in range(5)]
    forest = plant(rows, min_saving=1)
    assert len(forest.nodes_M) > 5
    generator = torch.Generator().manual_seed(0)
    heads = (6, 2, 2, 6)
    return forest, [torch.randn(1, forest.num_tokens, h, 32, generator=generator).bfloat16().transpose(1, 2) for h in heads]


def gradients(forest: Forest, tensors: list[Tensor], path: str) -> list[Tensor]:
    query, key, value, grad = (tensor.detach().clone() for tensor in tensors)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    out = TreeAttention(forest, path).attend(query, key, value, LayerCall(0, 0.2))  # type: ignore[arg-type]
    return [found.double() for found in torch.autograd.grad(out, inputs, grad.transpose(1, 2))]


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))


def test_bf16_gradients_by_wide_and_by_narrow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    forest, tensors = tree_and_tensors()
    truth = gradients(forest, [tensor.double() for tensor in tensors], "dense")
    assert forest.num_tokens - 40 < flash.WIDE_QUERIES
    all_wide = error(gradients(forest, tensors, "flash"), truth)
    monkeypatch.setattr(flash, "WIDE_QUERIES", 0)
    ancestors_narrow = error(gradients(forest, tensors, "flash"), truth)
    assert all_wide < 4e-3
    assert all_wide < ancestors_narrow < 5e-3


def test_nodes_go_back_in_fp32_whatever_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    forest, tensors = tree_and_tensors()
    types = []
    original = flash._backward

    def backward(grad: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        types.append((grad.dtype, others[5]))
        return original(grad, *others)

    monkeypatch.setattr(flash, "_backward", backward)
    monkeypatch.setattr(flash, "WIDE_QUERIES", 0)
    gradients(forest, tensors, "flash")
    assert set(types) == {(torch.float32, True), (torch.bfloat16, False)}


def _missing(*_: Any) -> Any:
    return torch.ops.aten._an_operator_that_no_torch_has


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("attend_part", _missing),
        ("attend_part", lambda *given: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given[:2])),
        ("attend_part", lambda *given, original=flash.attend_part: (*original(*given), None)),
        ("attend_part", lambda *given, original=flash.attend_part: [part * 1.01 for part in original(*given)]),
        ("_backward", lambda *given, original=flash._backward: [grad * 1.01 for grad in original(*given)]),
        ("_backward", lambda *given, original=flash._backward: original(*given)[:2]),
    ],
)
def test_a_kernel_that_is_another_is_not_taken(name: str, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = flash_is_available.__wrapped__
    with torch.inference_mode():
        assert tried()
    with torch.device("meta"):
        assert tried()
    monkeypatch.setattr(flash, name, other)
    assert not tried()

"""The fast RMSNorm is transformers' own: same outputs, same gradients, and out of the way of any other norm."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.bamba.modeling_bamba import BambaRMSNormGated
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from sapwood.attention import register
from sapwood.model import norms
from sapwood.model.norms import fuse_norms, is_fused_norm, rms_norm, unfuse_norms
from tiny.models import ARCHITECTURES, tiny_model

register()


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@settings(max_examples=25)
@given(
    leading=st.sampled_from([(1,), (7,), (1, 6), (2, 3), (2, 1, 4), (0,)]),
    width=st.integers(1, 40),
    block=st.integers(1, 200),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_the_formula_and_its_derivative_in_blocks_of_any_size(
    leading: tuple[int, ...], width: int, block: int, scale: float, seed: int
) -> None:
    x, weight, grad = draw((*leading, width), seed) * scale, draw((width,), seed + 1), draw((*leading, width), seed + 2)
    truth = x.clone().requires_grad_()
    expected = written_out(truth, weight, 1e-5)
    expected.backward(grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "BLOCK_ELEMENTS", block)
        found_x = x.float().requires_grad_()
        found = rms_norm(found_x, weight.float(), 1e-5)
        found.backward(grad.float())
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    largest = float((weight * grad).abs().max()) / scale if x.numel() else 1.0  # where D = 1 the derivative itself is nearly 0
    torch.testing.assert_close(found_x.grad.double(), truth.grad, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_stock_norm_and_its_gradient(dtype: torch.dtype, bound: float) -> None:
    norm = LlamaRMSNorm(96, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(draw((96,), 0))
    fast = copy.deepcopy(norm)
    assert fuse_norms(fast) == 1
    results = []
    for module in (norm, fast):
        x = draw((2, 300, 96), 1).to(dtype).requires_grad_()
        y = module(x)
        y.backward(draw((2, 300, 96), 2).to(dtype))
        results.append((y.detach(), x.grad))
    for own, ours in zip(*results, strict=True):
        assert float((own - ours).abs().max() / own.abs().max()) < bound
        assert ours.dtype == dtype


def test_bf16_is_as_near_to_the_truth_as_the_stock_norm() -> None:
    norm = LlamaRMSNorm(96, eps=1e-5).bfloat16().requires_grad_(False)
    norm.weight.copy_(draw((96,), 0))
    x, grad = draw((200, 96), 1).bfloat16(), draw((200, 96), 2).bfloat16()
    truth = x.double().requires_grad_()
    written_out(truth, norm.weight.double(), 1e-5).backward(grad.double())
    errors = []
    for _ in range(2):
        own = x.clone().requires_grad_()
        norm(own).backward(grad)
        errors.append(float((own.grad.double() - truth.grad).norm()))
        fuse_norms(norm)
    assert errors[1] <= errors[0]


def test_only_x_and_one_number_a_row_are_kept() -> None:
    norm = LlamaRMSNorm(64).requires_grad_(False)
    fuse_norms(norm)
    x = draw((10, 64), 0).float().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        norm(x)
    assert sum(t.numel() for t in kept if t.data_ptr() not in (x.data_ptr(), norm.weight.data_ptr())) == 10


def test_a_norm_that_computes_something_else_keeps_its_own() -> None:
    gemma = Gemma3RMSNorm(16).requires_grad_(False)
    assert fuse_norms(gemma) == 0

    class OtherEpsRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return written_out(hidden_states, self.weight, 2 * self.variance_epsilon)

    assert fuse_norms(OtherEpsRMSNorm(16)) == 0


def test_trained_weights_and_other_types_run_the_stock_forward() -> None:
    norm = LlamaRMSNorm(16)
    assert fuse_norms(norm) == 1
    x = draw((3, 16), 0)
    norm(x.float()).sum().backward()
    assert norm.weight.grad is not None
    norm.requires_grad_(False)
    assert torch.equal(norm(x), LlamaRMSNorm.forward(norm, x)), "fp64 is the stock norm's, which rounds to fp32"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_and_off_in_every_architecture(name: str) -> None:
    model = tiny_model(name, torch.float32).requires_grad_(False)
    stock = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
    ids = torch.arange(2, 14)[None]
    model.set_attn_implementation("sdpa")
    expected = model(input_ids=ids).logits
    count = fuse_norms(model)
    assert count == (0 if name == "gemma3" else len(stock))
    assert sum(map(is_fused_norm, stock)) == count
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert unfuse_norms(model) == count
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_norm_with_a_gate_keeps_its_own_forward() -> None:
    """Mamba's kin call theirs as norm(x, gate): with a fast forward of one argument, training such a model ended in a TypeError."""
    optional, required = BambaRMSNormGated(8, group_size=8), Qwen3NextRMSNormGated(8)
    assert fuse_norms(torch.nn.ModuleList([optional, required]).requires_grad_(False)) == 0

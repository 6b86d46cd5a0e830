"""The claim everything stands on: a forest gives the losses and gradients of one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sapwood.attention import TreeAttention, flash_is_available, register
from sapwood.attention.interface import LayerCall
from sapwood.forest import plant
from sapwood.model import LanguageModel
from sapwood.records import Row
from tiny.models import ARCHITECTURES, fp64_norms, tiny_model

register()


def forest_of_depth_four(seed: int) -> list[Row]:
    """Rows of up to 64 tokens that branch at four depths, with several targets at each branching point."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []

    def grow(path: list[int], level: int) -> None:
        path = path + rng.integers(2, 97, rng.integers(2, 16)).tolist()
        if level == 4 or (level > 1 and rng.random() < 0.2):
            prompt = int(rng.integers(1, len(path)))
            completion = np.array([*path[prompt:], int(rng.integers(2, 97))])
            rows.append(Row(np.array(path[:prompt]), completion, rng.random(len(completion)).astype(np.float32)))
            return
        for _ in range(rng.integers(2, 4)):
            grow(path, level + 1)

    grow([], 1)
    chosen = [rows[index] for index in sorted(rng.permutation(len(rows))[:8])]
    shared = chosen[0]
    # two rows that differ in the last token alone: one place, two targets
    return [*chosen, Row(shared.prompt_T, np.append(shared.completion_T[:-1], 2), shared.weights_T)]


def forest_pass(model: LanguageModel, rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    forest = plant(rows, min_saving=1)
    logprob_E = model.target_logprobs(forest)[torch.from_numpy(forest.target_E)]
    loss = -(logprob_E * torch.from_numpy(forest.weight_E)).sum()
    return logprob_E.detach(), gradients(model.module, loss)


def row_by_row(module: Any, rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """transformers alone, with its own attention and masks."""
    module.set_attn_implementation("sdpa")
    picked, loss = [], torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = module(input_ids=torch.from_numpy(row.inputs_T)[None], use_cache=False).logits[0, len(row.prompt_T) - 1 :]
        logprob = logits.log_softmax(-1)[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)]
        loss = loss - (logprob * torch.from_numpy(row.weights_T)).sum()
        picked.append(logprob.detach())
    return torch.cat(picked), gradients(module, loss)


def gradients(module: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()} | {"loss": loss.detach()}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
@example(seed=7)
def test_losses_and_every_gradient_in_fp64(name: str, seed: int) -> None:
    rows = forest_of_depth_four(seed)
    module = tiny_model(name, torch.float64)
    with fp64_norms(module):
        logprobs, grads = forest_pass(LanguageModel(module, probe=False), rows)
        expected_logprobs, expected_grads = row_by_row(module, rows)
    assert float((logprobs - expected_logprobs).abs().max() / expected_logprobs.abs().max()) < 1e-12
    assert worst(grads, expected_grads) < 1e-12


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("seed", [1, 2])
def test_losses_and_every_gradient_with_the_stock_layers(name: str, seed: int) -> None:
    rows = forest_of_depth_four(seed)
    module = tiny_model(name, torch.float64)
    logprobs, grads = forest_pass(LanguageModel(module, probe=False), rows)
    expected_logprobs, expected_grads = row_by_row(module, rows)
    assert float((logprobs - expected_logprobs).abs().max() / expected_logprobs.abs().max()) < 1e-6
    assert worst(grads, expected_grads) < 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_check_at_load_finds_that_prefixes_can_be_shared(name: str) -> None:
    model = LanguageModel(tiny_model(name, torch.float32))
    assert model.shares_prefixes
    assert model.notes == []


@pytest.mark.parametrize("window", [None, 8, 3])
@pytest.mark.parametrize("path", ["plain", "flash"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_path_equals_the_dense_mask(path: Any, dtype: torch.dtype, window: int | None) -> None:
    if path == "flash" and (window is not None or not flash_is_available()):
        pytest.skip("the flash path takes no window, and needs a CPU build with the kernel")
    forest = plant(forest_of_depth_four(3), min_saving=1)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, forest.num_tokens, heads, 16, dtype=dtype).transpose(1, 2).requires_grad_() for heads in (6, 2, 2))
    grad = torch.randn(1, forest.num_tokens, 6, 16, dtype=dtype)
    results = {}
    for kind in (path, "dense"):
        out = TreeAttention(forest, kind).attend(query, key, value, LayerCall(0, 0.25, window))
        results[kind] = (out.detach(), *torch.autograd.grad(out, (query, key, value), grad))
    bound = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-2}[dtype]
    for found, expected in zip(results[path], results["dense"], strict=True):
        assert float((found - expected).abs().max() / expected.abs().max()) < bound


@pytest.mark.parametrize(("softcap", "sinks"), [(5.0, False), (None, True), (3.0, True)])
def test_soft_caps_and_sinks_by_the_plain_path(softcap: float | None, sinks: bool) -> None:
    forest = plant(forest_of_depth_four(4), min_saving=1)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, forest.num_tokens, 8, dtype=torch.float64) for heads in (4, 2, 2))
    call = LayerCall(0, 0.5, 8, softcap, torch.randn(4, dtype=torch.float64) if sinks else None)
    plain, dense = (TreeAttention(forest, path).attend(query, key, value, call) for path in ("auto", "dense"))
    torch.testing.assert_close(plain, dense, rtol=0, atol=1e-12)
    without = TreeAttention(forest, "dense").attend(query, key, value, LayerCall(0, 0.5, 8))
    assert (plain - without).abs().max() > 1e-3, "the cap or the sink must matter in this test"

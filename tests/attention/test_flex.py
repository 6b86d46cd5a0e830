"""Flex attention: the mask read off the node table is the mask, and what it computes is the dense mask's, there and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_forest_equals_rows import forest_of_depth_four, forest_pass, row_by_row, worst
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.utils.checkpoint import checkpoint

from sapwood.attention import TreeAttention, flex, plan
from sapwood.attention.dense import _ancestor_mask
from sapwood.attention.flex import BLOCK, blocks_of, padded_length
from sapwood.attention.interface import LayerCall
from sapwood.forest import Forest, plant
from sapwood.kernels import on_gpu
from sapwood.model import LanguageModel
from sapwood.records import Row
from tiny.models import fp64_norms, tiny_model


@pytest.fixture
def gradients_on_a_cpu() -> Iterator[None]:
    """torch's reference form has gradients, but refuses them on a CPU since its compiled form there has none."""
    with mock.patch.object(torch_flex, "_validate_device"), mock.patch.object(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True):
        yield


def forest_of(seed: int, *, tokens: int) -> Forest:
    """Rows that branch at random places, of about `tokens` unique tokens in all; some end on the path of others."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 90, rng.integers(2, max(3, tokens // 2)))]
    while sum(map(len, rows)) < tokens:
        source = rows[rng.integers(len(rows))]
        kept = source[: rng.integers(0, len(source) + 1)]
        rows.append(np.concatenate([kept, rng.integers(0, 90, rng.integers(1, 2 + tokens // 3))]))
    planted = [Row(row[:1], row[1:], np.ones(len(row) - 1, np.float32)) for row in rows if len(row) > 1]
    return plant(planted, min_saving=1)


def padded_mask(forest: Forest, window: int | None) -> Tensor:
    """The dense mask, where a padded token sees itself alone."""
    length = forest.num_tokens
    mask = torch.eye(padded_length(length), dtype=torch.bool)
    mask[:length, :length] = _ancestor_mask(forest, window)
    return mask


def classes(tables: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(partly, fully) seen blocks as (n, n) booleans, from counts and orders."""
    found = []
    for count, order in zip(tables[0::2], tables[1::2], strict=True):
        chosen = torch.zeros(order.shape[2:], dtype=torch.bool)
        for line, (many, columns) in enumerate(zip(count[0, 0].tolist(), order[0, 0].tolist(), strict=True)):
            assert sorted(columns) == list(range(len(columns)))
            chosen[line, columns[:many]] = True
        found.append(chosen)
    return found[0], found[1]


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), tokens=st.integers(4, 900), window=st.none() | st.integers(1, 500))
@example(seed=0, tokens=1200, window=None)
def test_blocks_are_what_the_whole_mask_says(seed: int, tokens: int, window: int | None) -> None:
    forest = forest_of(seed, tokens=tokens)
    mask = padded_mask(forest, window)
    count = len(mask) // BLOCK
    blocks = mask.view(count, BLOCK, count, BLOCK)
    some, every = blocks.any(3).any(1), blocks.all(3).all(1)
    made = blocks_of(forest, window)
    partial, full = classes(made.tables[:4])
    assert torch.equal(full, every)
    if window is None:
        assert torch.equal(partial, some & ~every)
    else:  # a block may be looked into for nothing, but none may be missed
        assert not (some & ~every & ~partial).any()
        assert not (partial & full).any()
    for asked_by_keys, asked_by_queries in zip(classes(made.tables[4:]), (partial, full), strict=True):
        assert torch.equal(asked_by_keys, asked_by_queries.T)
    query, key = (side.reshape(-1) for side in torch.meshgrid(torch.arange(len(mask)), torch.arange(len(mask)), indexing="ij"))
    seen = (key <= query) & (query < made.end_T[key])
    if made.depth_T is not None and made.reach_T is not None:
        seen &= made.depth_T[query] < made.reach_T[key]
    assert torch.equal(seen.view(mask.shape), mask)


@settings(max_examples=50)
@given(length=st.integers(1, 100_000))
@example(length=3 * BLOCK)
@example(length=1)
def test_padding_is_less_than_a_block_or_two(length: int) -> None:
    padded = padded_length(length)
    assert padded % BLOCK == 0
    assert length <= padded < max(length + BLOCK, 2 * BLOCK + 1)


CALLS = {
    "plain": LayerCall(0, 0.25),
    "window": LayerCall(0, 0.25, 30),
    "cap": LayerCall(0, 0.25, None, 2.0),
    "sinks": LayerCall(0, 0.25, None, None, torch.linspace(-1, 2, 6, dtype=torch.float64)),
    "all": LayerCall(0, 0.25, 50, 1.5, torch.linspace(-1, 2, 6, dtype=torch.float64)),
}


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000), tokens=st.integers(20, 400), heads=st.sampled_from([(6, 6), (6, 2), (6, 1)]))
@example(seed=1, tokens=600, heads=(6, 2))
def test_outputs_and_gradients_equal_the_dense_mask(name: str, seed: int, tokens: int, heads: tuple[int, int]) -> None:
    forest = forest_of(seed, tokens=tokens)
    torch.manual_seed(seed)
    shapes = ((heads[0], 16), (heads[1], 16), (heads[1], 24))  # values may be wider than keys
    inputs = [torch.randn(1, forest.num_tokens, h, width, dtype=torch.float64).transpose(1, 2).requires_grad_() for h, width in shapes]
    grad = torch.randn(1, forest.num_tokens, heads[0], 24, dtype=torch.float64)
    results = {}
    for path in ("flex", "dense"):
        out = TreeAttention(forest, path).attend(*inputs, CALLS[name])  # type: ignore[arg-type]
        results[path] = (out.detach(), *torch.autograd.grad(out, inputs, grad))
    for found, expected in zip(results["flex"], results["dense"], strict=True):
        assert float((found - expected).abs().max()) < 1e-12 * max(1.0, float(expected.abs().max()))


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_model_equals_one_row_at_a_time(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = forest_of_depth_four(seed)
    module = tiny_model(name, torch.float64)
    asked = []
    monkeypatch.setattr(plan, "_flash_serves", lambda *_: False)
    monkeypatch.setattr(plan, "flex_serves", lambda *given: asked.append(given) is None)
    with fp64_norms(module):
        logprobs, grads = forest_pass(LanguageModel(module, probe=False), rows)
        assert asked, "the model must have gone through the kernel"
        expected_logprobs, expected_grads = row_by_row(module, rows)
    assert float((logprobs - expected_logprobs).abs().max() / expected_logprobs.abs().max()) < 1e-12
    assert worst(grads, expected_grads) < 1e-12


class Counted:
    """A compiler that runs what was traced as it is, and keeps what it was given."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward


@pytest.mark.parametrize("call", [LayerCall(0, 0.3), LayerCall(0, 0.3, 3, 5.0)])
def test_one_compilation_serves_every_length(call: LayerCall, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counted = Counted()
    compiled = torch.compile(flex._attend, fullgraph=True, backend=counted)
    monkeypatch.setattr(on_gpu, "compiled", lambda _: compiled)
    monkeypatch.setattr(flex, "_plainly", flex._compiled_attend)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    lengths = set()
    for number, tokens in enumerate((30, 200, 300, 600, 1200, 2300)):
        forest = forest_of(number, tokens=tokens)
        lengths.add(padded_length(forest.num_tokens))
        states = [torch.randn(1, forest.num_tokens, heads, 16).transpose(1, 2) for heads in (4, 2, 2)]
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=number > 0):
            out, dense = (TreeAttention(forest, path).attend(*states, call) for path in ("flex", "dense"))  # type: ignore[arg-type]
        torch.testing.assert_close(out, dense, rtol=0, atol=1e-5)
    assert len(lengths) > 4
    assert len(counted.graphs) == 1
    traced = [node.meta.get("example_value") for node in counted.graphs[0].graph.nodes if node.op == "placeholder"]
    shapes = [value.shape for value in traced if isinstance(value, Tensor)]
    rows = [str(shape[2]) for shape in shapes if len(shape) == 4 and isinstance(shape[3], int)]
    assert rows
    assert all(row.startswith("128*") for row in rows), f"whole blocks must be known to the compiler: {shapes}"


def on_cuda(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """What `flex_serves` reads of a tensor, without a device."""
    return mock.Mock(device=torch.device("cuda", 0), dtype=dtype, shape=torch.Size(shape))


def test_each_form_is_tried_once_and_refused_where_it_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(flex, "_refusals", {})
    monkeypatch.setattr(flex, "_refusal", lambda *given: "wrong" if tried.append(given) or given[0].shape[3] == 64 else "")
    call = LayerCall(0, 0.3)
    for _ in range(2):
        assert flex.flex_serves(on_cuda(1, 4, 99, 32), on_cuda(1, 2, 99, 32), on_cuda(1, 2, 99, 32), call)
        assert flex.flex_serves(on_cuda(1, 4, 77, 32), on_cuda(1, 2, 77, 32), on_cuda(1, 2, 77, 32), call)
        assert flex.why_not() == "" or _ == 1
        assert not flex.flex_serves(on_cuda(1, 4, 99, 64), on_cuda(1, 2, 99, 64), on_cuda(1, 2, 99, 64), call)
    assert len(tried) == 2
    assert flex.why_not() == "wrong"
    assert not flex.flex_serves(on_cuda(1, 4, 9, 32, dtype=torch.float64), *[on_cuda(1, 2, 9, 32)] * 2, call)
    assert len(tried) == 2
    assert not flex.flex_serves(*[torch.zeros(1, 4, 9, 32)] * 3, call), "the compiled kernel is for CUDA"


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("dtype", flex.TYPES)
@pytest.mark.parametrize("call", [CALLS["plain"], CALLS["all"]])
def test_the_trial_passes_what_is_right_alone(dtype: torch.dtype, call: LayerCall, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.zeros(1, heads, 9, 32, dtype=dtype) for heads in (6, 2, 2)]
    with torch.inference_mode():
        assert flex._refusal(*states, call) == ""
    right = flex._attend

    def wrong(*given: Any) -> Any:
        out, lse = right(*given)
        return out * 1.05, lse

    monkeypatch.setattr(flex, "_attend", wrong)
    assert "differs from the dense mask" in flex._refusal(*states, call)
    monkeypatch.setattr(flex, "_attend", lambda *_: 1 / 0)
    assert flex._refusal(*states, call) == "ZeroDivisionError: division by zero"


@pytest.mark.usefixtures("gradients_on_a_cpu")
def test_a_trial_inside_an_activation_checkpoint_leaves_it_alone() -> None:
    states = [torch.zeros(1, heads, 9, 32) for heads in (6, 2, 2)]
    tried = []

    def layer(x: Tensor) -> Tensor:
        if not tried:  # as `flex_serves` does: once
            tried.append(flex._refusal(*states, CALLS["window"]))
        return x.exp() * x

    x = torch.randn(5, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert tried == [""]
    torch.testing.assert_close(x.grad, (x.exp() * (1 + x)).detach())

"""The C++ kernels give what the formulas give, whatever the number of threads, and are left alone where they cannot serve."""

from __future__ import annotations

import copy
import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from sapwood import kernels
from sapwood.attention import TreeAttention, flash, register
from sapwood.attention.interface import LayerCall
from sapwood.forest import plant
from sapwood.kernels import compiling
from sapwood.model import LanguageModel, LoraConfig, add_lora, trainable_parameters
from sapwood.model.attending import is_fused_attention
from sapwood.model.gated import fuse_gates, is_fused_gate, unfuse_gates
from sapwood.model.head import head_logprobs
from sapwood.model.norms import rms_norm
from sapwood.records import Example, Row
from sapwood.train.step import accumulate

register()


@pytest.fixture(scope="module")
def served() -> Any:
    found = kernels.cpu_kernels()
    if found is None:
        pytest.skip(f"no kernels here: {kernels.why_not()}")
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def off(found: Tensor, truth: Tensor) -> float:
    return float(((found - truth.double()).norm() / truth.norm()).detach())


def forest_of(seed: int, rows: int, shared: int, own: int) -> Any:
    rng = np.random.default_rng(seed)
    beginning = rng.integers(0, 90, shared)
    made = [
        Row(np.concatenate([beginning, rng.integers(0, 90, own)]), rng.integers(0, 90, 1 + own // 2), np.ones(1 + own // 2))
        for _ in range(rows)
    ]
    return plant(made, min_saving=1)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 6),
    shared=st.integers(16, 600),
    own=st.integers(1, 150),
    heads=st.sampled_from([(1, 1), (4, 2), (9, 3)]),
    width=st.sampled_from([32, 64, 96, 128]),
)
def test_attention_is_the_dense_one_of_fp64_there_and_back(
    seed: int, rows: int, shared: int, own: int, heads: tuple[int, int], width: int
) -> None:
    if kernels.cpu_kernels() is None:
        pytest.skip(f"no kernels here: {kernels.why_not()}")
    forest = forest_of(seed, rows, shared, own)
    query, key, value, grad = (
        draw(1, forest.num_tokens, count, width, seed=seed + i).transpose(1, 2)
        for i, count in enumerate((heads[0], heads[1], heads[1], heads[0]))
    )

    def gradients(kind: torch.dtype, path: Any) -> list[Tensor]:
        inputs = [tensor.to(kind).detach().requires_grad_() for tensor in (query, key, value)]
        out = TreeAttention(forest, path).attend(*inputs, LayerCall(0, width**-0.5))
        return [out, *torch.autograd.grad(out, inputs, grad.transpose(1, 2).to(kind))]

    for found, truth in zip(gradients(torch.bfloat16, "flash"), gradients(torch.float64, "dense"), strict=True):
        assert found.shape == truth.shape
        assert off(found, truth) < 2e-2  # the output's own rounding, which meets what it cancels with


def test_attention_goes_through_the_kernel(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "attend_part", None)  # torch's own would fail
    monkeypatch.setattr(flash, "_backward", None)
    forest = forest_of(0, 3, 50, 20)
    query, key, value = (draw(1, forest.num_tokens, 2, 32, seed=i).transpose(1, 2).requires_grad_() for i in range(3))
    TreeAttention(forest, "flash").attend(query, key, value, LayerCall(0, 0.2)).sum().backward()
    assert query.grad is not None
    narrow = draw(1, forest.num_tokens, 2, 8).transpose(1, 2).requires_grad_()
    with pytest.raises(TypeError, match="not callable"):  # heads of 8 are not for it
        TreeAttention(forest, "flash").attend(narrow, narrow, narrow, LayerCall(0, 0.2)).sum().backward()


@settings(max_examples=20)
@given(
    rows=st.sampled_from([1, 7, 300]),
    width=st.sampled_from([32, 96, 576]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    seed=st.integers(0, 9),
)
def test_norms(rows: int, width: int, scale: float, seed: int) -> None:
    x, weight, grad = draw(rows, width, seed=seed) * scale, draw(width, seed=seed + 1), draw(rows, width, seed=seed + 2)
    found = rms_norm(x.requires_grad_(), weight, 1e-5)
    (found_grad,) = torch.autograd.grad(found, x, grad)
    wide = x.detach().double().requires_grad_()
    truth = F.rms_norm(wide, (width,), weight.double(), 1e-5)
    (truth_grad,) = torch.autograd.grad(truth, wide, grad.double())
    assert off(found, truth) < 5e-3
    assert off(found_grad, truth_grad) < 5e-3


@pytest.mark.parametrize("size", [1e-3, 1.0, 60.0])
def test_attention_to_keys_of_any_size(served: Any, size: float) -> None:
    """From scores that are all alike to scores of which one is everything, and across the edges of blocks."""
    query, key, value = (draw(1, 700, 2, 64, seed=i).transpose(1, 2) for i in range(3))
    parts = torch.tensor([[0, 700, 0, 700, 1]])
    out, lse = served.tree_forward(query[0], size * key[0], value[0], parts, 0.3)
    scores = (query[0].double() @ (size * key[0]).double().mT) * 0.3
    scores = scores.masked_fill(torch.ones(700, 700).triu(1).bool(), -torch.inf)
    assert torch.allclose(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert off(out, scores.softmax(-1) @ value[0].double()) < 5e-3


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [64, 128])
def test_positions_turn_and_turn_back(served: Any, heads: int, width: int) -> None:
    x, angle = draw(37, heads, width), torch.randn(37, width, generator=torch.Generator().manual_seed(1))
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()  # halves of their own, as no model has them

    def formula(states: Tensor) -> Tensor:
        halves = torch.cat([-states[..., width // 2 :], states[..., : width // 2]], -1)
        return states * cos[:, None].double() + halves * sin[:, None].double()

    wide = x.double().requires_grad_()
    truth = formula(wide)
    grad = draw(37, heads, width, seed=2)
    (truth_grad,) = torch.autograd.grad(truth, wide, grad.double())
    padded = torch.cat([x, x], 1)[:, :heads]  # rows that do not lie side by side
    assert off(served.rotate(padded, cos, sin, False), truth) < 4e-3
    assert off(served.rotate(grad, cos, sin, True), truth_grad) < 4e-3


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_gates(served: Any, scale: float) -> None:
    gate, up, grad = ((draw(40, 96, seed=i) * scale).requires_grad_() for i in range(3))
    wide = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    truth = F.silu(wide[0]) * wide[1]
    assert off(served.swiglu_forward(gate.detach(), up.detach()), truth) < 4e-3
    expected = torch.autograd.grad(truth, wide, grad.detach().double())
    for found, one in zip(served.swiglu_backward(grad.detach(), gate.detach(), up.detach()), expected, strict=True):
        assert off(found, one) < 4e-3


@pytest.mark.parametrize("vocabulary", [64, 70, 1000])
def test_the_head_where_one_place_has_several_targets(vocabulary: int) -> None:
    hidden, head = draw(5, 32), torch.nn.Linear(32, vocabulary, bias=False).bfloat16().requires_grad_(False)
    place, token = torch.tensor([0, 1, 1, 2, 3, 4]), torch.tensor([3, 5, 9, 63, 0, 1])
    grad = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    found = head_logprobs(hidden.requires_grad_(), head, place, token)
    (found_grad,) = torch.autograd.grad(found, hidden, grad)
    wide = hidden.detach().double().requires_grad_()
    truth = (wide @ head.weight.double().T).log_softmax(-1)[place, token]
    (truth_grad,) = torch.autograd.grad(truth, wide, grad.double())
    assert torch.allclose(found.double(), truth, atol=0.02)
    assert off(found_grad, truth_grad) < 1e-2


def test_a_sure_token_keeps_its_small_gradient(served: Any) -> None:
    """1 - p must not be what bf16 leaves of it when p is near 1."""
    logits = torch.zeros(1, 64)
    logits[0, 7] = 14.0
    logits = logits.bfloat16()
    pulled = served.pull(logits, served.row_lse(logits), torch.tensor([0]), torch.tensor([7]))
    truth = logits.double().softmax(-1)
    truth[0, 7] -= 1
    assert pulled[0, 7] < 0
    assert off(pulled, truth) < 5e-3


def small_model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64
    )
    return LanguageModel(LlamaForCausalLM(config).to(torch.bfloat16).eval())


def step(model: LanguageModel) -> tuple[float, Tensor]:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 128, 40)
    rows = [Row(np.concatenate([shared, rng.integers(0, 128, 9)]), rng.integers(0, 128, 12), np.ones(12, np.float32)) for _ in range(4)]
    sums = accumulate(model, [Example((row,)) for row in rows], 4096)
    found = torch.cat([parameter.grad.flatten() for parameter in trainable_parameters(model).values() if parameter.grad is not None])
    for parameter in trainable_parameters(model).values():
        parameter.grad = None
    return sums.mean_loss, found


def test_a_step_with_and_without_them_on_any_number_of_threads(served: Any, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    model = add_lora(small_model(), LoraConfig(r=4), 0)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data = 0.1 * draw(*parameter.shape).float()
    assert sum(is_fused_gate(block) for block in model.module.modules()) == 2
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(step(model))
    assert all(loss == results[0][0] and torch.equal(grad, results[0][1]) for loss, grad in results)
    assert sum(is_fused_attention(block) for block in model.module.modules()) == 2
    monkeypatch.setattr(kernels, "serves", lambda *tensors: None)
    loss, grad = step(model)
    true_loss, truth = step(LanguageModel(copy.deepcopy(model.module).double(), probe=False))
    assert results[0][0] == pytest.approx(true_loss, rel=5e-3)
    assert loss == pytest.approx(true_loss, rel=5e-3)
    assert off(results[0][1], truth) < 1.2 * off(grad, truth)


def test_gates_are_taken_off_again_and_others_stay() -> None:
    model = small_model().module
    assert fuse_gates(model) == fuse_gates(model) == 2
    assert unfuse_gates(model) == 2
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()
    assert fuse_gates(model) == 1
    assert fuse_gates(model.float()) == 0


def test_fp32_never_comes_here() -> None:
    assert kernels.serves(torch.ones(2)) is None
    assert kernels.serves(torch.ones(2).bfloat16(), torch.ones(2)) is None


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("SAPWOOD_KERNELS", "0", "SAPWOOD_KERNELS is 0"), ("CXX", "a-compiler-that-is-not-there", "a C\\+\\+ compiler")],
)
def test_switched_off_or_without_a_compiler(variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    found, why = kernels._load.__wrapped__()
    assert found is None
    assert re.search(reason, why)
    assert kernels.is_compiled()


def test_a_compiler_that_refuses_leaves_nothing_behind(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, served: Any) -> None:
    for name in compiling.SOURCES:
        (tmp_path / f"{name}.cpp").write_text("this is not C++;")
    monkeypatch.setattr(compiling, "FOLDER", tmp_path)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    found, why = kernels._load.__wrapped__()
    assert found is None
    assert why.startswith("the compiler refused: ")
    assert "error" in why
    assert not list((tmp_path / "cache" / "kernels").iterdir())
    assert not kernels.is_compiled()


def _small_sources(folder: Any) -> None:
    for name in compiling.SOURCES:
        (folder / f"{name}.cpp").write_text(f'extern "C" int {name}() {{ return 7; }}')


def test_what_was_begun_is_finished_where_nobody_waits_for_it(tmp_path: Any, served: Any) -> None:
    (tmp_path / "kernels").mkdir()
    _small_sources(tmp_path / "kernels")
    lines = "import pathlib, sys; from sapwood.kernels import compiling; compiling.FOLDER = pathlib.Path(sys.argv[1]); compiling.begin()"
    subprocess.run(
        [sys.executable, "-c", lines, str(tmp_path / "kernels")], check=True, env={**os.environ, "SAPWOOD_CACHE": str(tmp_path / "cache")}
    )
    until = time.monotonic() + 120
    while not list((tmp_path / "cache" / "kernels").glob("*.so")) and time.monotonic() < until:
        time.sleep(0.05)
    (made,) = (tmp_path / "cache" / "kernels").glob("*.so")
    assert ctypes.CDLL(str(made)).generation() == 7


def test_two_that_wait_get_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, served: Any) -> None:
    (tmp_path / "kernels").mkdir()
    _small_sources(tmp_path / "kernels")
    monkeypatch.setattr(compiling, "FOLDER", tmp_path / "kernels")
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    compiling.begin()
    assert compiling.compiled() == ""
    assert compiling.target().is_file()
    assert compiling.compiled() == ""  # nothing is left to be done
    assert [file.name for file in (tmp_path / "cache" / "kernels").iterdir()] == [compiling.target().name]


def test_who_waits_for_a_first_word_does_without(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, served: Any) -> None:
    said: list[str] = []
    begun: list[int] = []
    monkeypatch.setattr(kernels, "_put_off", [])
    monkeypatch.setattr(kernels, "begin", lambda niceness: begun.append(niceness))
    kernels.compile_beside(said.append)
    assert (said, begun) == ([], [])
    assert kernels._load.__wrapped__()[0] is not None
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    kernels.compile_beside(said.append)
    assert begun == [10]
    assert "in the background" in said[0]
    assert kernels._load.__wrapped__() == (None, kernels.BESIDE)


def test_people_hear_of_the_compiler_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, served: Any) -> None:
    said: list[str] = []
    kernels.prepare(torch.bfloat16, said.append)
    assert said == []
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "cpu_kernels", lambda: None)
    monkeypatch.setattr(kernels, "why_not", lambda: "the compiler refused: so it is")
    kernels.prepare(torch.float32, said.append)
    assert said == []
    kernels.prepare(torch.bfloat16, said.append)
    assert said[0].startswith("Compiling")
    assert said[1] == "They are left out, and training is slower: the compiler refused: so it is."


@pytest.mark.parametrize(
    "name",
    [
        "tree_backward",
        "lora_forward",
        "lora_backward",
        "rms_forward",
        "rms_backward",
        "swiglu_forward",
        "swiglu_backward",
        "row_lse",
        "pull",
    ],
)
def test_one_that_disagrees_is_seen(served: Any, name: str) -> None:
    class Other:
        def __getattr__(self, asked: str) -> Any:
            real = getattr(served, asked)
            if asked != name:
                return real

            def wrong(*given: Any) -> Any:
                found = real(*given)
                if not isinstance(found, tuple):
                    return found * 1.1
                last = [tensor * 1.1 for tensor in found[-1]] if isinstance(found[-1], list) else found[-1] * 1.1
                return (*found[:-1], last)

            return wrong

    assert kernels._agrees(served)
    assert not kernels._agrees(Other())

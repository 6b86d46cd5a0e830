"""The fused LoRA linear is peft's own layer, in fewer passes: same outputs, same gradients, and out of the way when asked."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapwood.attention import register
from sapwood.forest import plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_adapter, load_model, save_adapter, trainable_parameters
from sapwood.model.fused import FEW_TOKENS, fuse, is_fused, lora_linear, lora_linears, unfuse
from sapwood.records import Row
from tiny.folder import write_model
from tiny.models import ARCHITECTURES, fp64_norms, tiny_model

register()


class Projection(nn.Module):
    """One linear layer in a model that peft can wrap."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def lora_layer(dtype: torch.dtype, *, inputs: int = 24, outputs: int = 20, rank: int = 4, bias: bool = True, **config: Any) -> Any:
    """peft's own layer, not fused, with a B that is not 0; the same draws for the same sizes in every type."""
    torch.manual_seed(0)
    model = peft.get_peft_model(
        Projection(inputs, outputs, bias).to(dtype), peft.LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["linear"], **config)
    )
    layer = model.base_model.model.linear
    generator = torch.Generator().manual_seed(1)
    for weight in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        nn.init.zeros_(weight).data.add_(drawn.to(weight.dtype) / 5)
    return layer


def run(layer: Any, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output and gradients of one pass."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(grad)
    return {
        "y": y.detach(),
        "x": x.grad,
        "A": layer.lora_A["default"].weight.grad,
        "B": layer.lora_B["default"].weight.grad,
    }


def both(layer: Any, x: Tensor, grad: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(peft's own, fused)."""
    assert not is_fused(layer)
    own = run(layer, x, grad)
    assert fuse(layer) == 1
    assert is_fused(layer)
    return own, run(layer, x, grad)


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name].double() - expected[name].double()).norm() / expected[name].double().norm()) for name in expected)


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25)
@given(
    leading=st.sampled_from([(1,), (5,), (1, 7), (2, 3), (2, 1, 4)]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_peft(leading: tuple[int, ...], sizes: tuple[int, int, int], bias: bool, seed: int) -> None:
    inputs, outputs, rank = sizes
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        layer = lora_layer(dtype, inputs=inputs, outputs=outputs, rank=rank, bias=bias)
        own, fused = both(layer, draw((*leading, inputs), seed).to(dtype), draw((*leading, outputs), seed + 1).to(dtype))
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in fused.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in own.items()
        }
        assert worst(fused, own) < bound


def test_the_backward_is_the_derivative_of_the_forward() -> None:
    A, B, x = draw((3, 5), 0).requires_grad_(), draw((4, 3), 1).requires_grad_(), draw((2, 6, 5), 2).requires_grad_()
    weight, bias = draw((4, 5), 3), draw((4,), 4)
    assert torch.autograd.gradcheck(lambda x, A, B: lora_linear(x, weight, bias, A, B, 0.7), (x, A, B))


@pytest.mark.parametrize("wanted", ["x", "A", "B"])
def test_each_gradient_alone(wanted: str) -> None:
    tensors = {"x": draw((6, 5), 2), "A": draw((3, 5), 0), "B": draw((4, 3), 1)}
    weight = draw((4, 5), 3)
    every = [tensor.clone().requires_grad_() for tensor in tensors.values()]
    expected = dict(zip(tensors, torch.autograd.grad(lora_linear(every[0], weight, None, *every[1:], 0.7).sum(), every), strict=True))
    tensors[wanted] = tensors[wanted].clone().requires_grad_()
    (found,) = torch.autograd.grad(lora_linear(tensors["x"], weight, None, tensors["A"], tensors["B"], 0.7).sum(), tensors[wanted])
    torch.testing.assert_close(found, expected[wanted], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [3, 300])
def test_bf16_is_about_as_near_to_the_truth_as_peft(tokens: int) -> None:
    """peft keeps h and the adapters in fp32; the fused layer rounds them. Both round x, W, y and the gradients."""
    layer = lora_layer(torch.bfloat16, inputs=192, outputs=160, rank=16)
    x, grad = draw((tokens, 192), 5).bfloat16(), draw((tokens, 160), 6).bfloat16()
    own, fused = both(layer, x, grad)
    truth_layer = copy.deepcopy(layer).double()
    unfuse(truth_layer)
    truth = run(truth_layer, x.double(), grad.double())
    assert own["A"].dtype == fused["A"].dtype == torch.float32
    for name in truth:
        error, fused_error = (worst({name: found[name]}, {name: truth[name]}) for found in (own, fused))
        rounding = 2.0**-8  # of one bf16 number
        assert fused_error < max(2 * error, rounding), name
        assert fused_error > 0, "bf16 must round in this test"


def test_what_is_saved_for_the_backward_is_x_itself_and_h() -> None:
    layer = lora_layer(torch.bfloat16, rank=4)
    x = draw((50, 24), 0).bfloat16().requires_grad_()

    def saved_elements() -> tuple[int, bool]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            layer(x)
        weights = {weight.data_ptr() for weight in layer.parameters()}
        fresh = {t.data_ptr(): t.numel() for t in kept if t.data_ptr() not in weights | {x.data_ptr()}}
        return sum(fresh.values()), any(t.data_ptr() == x.data_ptr() for t in kept)

    own, _ = saved_elements()
    fuse(layer)
    fused, has_x = saved_elements()
    assert has_x
    assert fused == 50 * 4
    assert own > fused, "peft keeps a copy of x"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls of the fused product."""
    calls: list[int] = []

    def product(*args: Any) -> tuple[Tensor, ...]:
        calls.append(1)
        return lora_linears(*args)

    monkeypatch.setattr("sapwood.model.fused.lora_linears", product)
    return calls


def test_without_gradients_many_tokens_are_fused_and_few_are_left_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lora_layer(torch.bfloat16)
    fuse(layer)
    x = draw((2, FEW_TOKENS // 2, 24), 0).bfloat16()
    expected = layer(x).detach()
    calls = counted(monkeypatch)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            assert torch.equal(layer(x), expected)
            assert calls.pop() == 1
            few = x[:, 1:]
            assert torch.equal(layer(few), type(layer).forward(layer, few))
            assert calls == []


def a_hook(layer: Any) -> None:
    layer.lora_B["default"].register_forward_hook(lambda module, inputs, output: output * 2)


def a_second_adapter(layer: Any) -> None:
    layer.update_layer("second", 2, lora_alpha=2, config=peft.LoraConfig(r=2, init_lora_weights=False))
    layer.set_adapter(["default", "second"])


STATES: dict[str, tuple[dict[str, Any], Any]] = {
    "dropout": ({"lora_dropout": 0.5}, None),
    "dora": ({"use_dora": True}, None),
    "trained bias of the base": ({}, lambda layer: layer.base_layer.bias.requires_grad_()),
    "trained base": ({}, lambda layer: layer.base_layer.weight.requires_grad_()),
    "bias of B": ({"lora_bias": True}, None),
    "disabled": ({}, lambda layer: layer.enable_adapters(False)),
    "merged": ({}, lambda layer: layer.merge()),
    "two adapters": ({}, a_second_adapter),
    "a hook": ({}, a_hook),
}


@pytest.mark.parametrize("state", STATES)
def test_any_other_state_runs_the_forward_of_peft(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, change = STATES[state]
    layer = lora_layer(torch.float32, **config)
    fuse(layer)
    calls = counted(monkeypatch)
    if change is not None:
        layer(draw((6, 24), 0).float())
        assert calls == [1], "before the change, the layer is fused"
        calls.clear()
        change(layer)
    x = draw((6, 24), 0).float()
    torch.manual_seed(0)
    found = layer(x)
    assert calls == []
    torch.manual_seed(0)
    assert torch.equal(found, type(layer).forward(layer, x))


def test_fp16_and_autocast_run_the_forward_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    layer = lora_layer(torch.float16)
    fuse(layer)
    layer(draw((6, 24), 0).half())
    layer = lora_layer(torch.float32)
    fuse(layer)
    with torch.autocast("cpu", torch.bfloat16):
        layer(draw((6, 24), 0).float())
    assert calls == []


def test_disabling_and_merging_come_and_go() -> None:
    layer = lora_layer(torch.float64)
    x = draw((6, 24), 0)
    expected, base = layer(x), layer.base_layer(x)
    assert (expected - base).abs().max() > 0.1
    fuse(layer)
    for change, back in (
        (lambda: layer.enable_adapters(False), lambda: layer.enable_adapters(True)),
        (layer.merge, layer.unmerge),
    ):
        change()
        merged = layer.merged
        torch.testing.assert_close(layer(x), expected if merged else base, rtol=0, atol=1e-12)
        back()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_an_update_of_the_adapter_counts_at_once_however_it_is_written() -> None:
    layer = lora_layer(torch.bfloat16)
    fuse(layer)
    x = draw((6, 24), 0).bfloat16()
    before = layer(x)
    layer.lora_B["default"].weight.data.zero_()
    assert torch.equal(layer(x), layer.base_layer(x))
    assert not torch.equal(layer(x), before)


def test_switching_off_restores_the_forward_of_peft() -> None:
    model = with_lora("llama", torch.float32)
    layers = [layer for layer in model.module.modules() if isinstance(layer, peft.tuners.lora.Linear)]
    assert len(layers) == 21
    assert all(map(is_fused, layers)), "adapters are fused from the start"
    assert fuse(model.module) == 21, "and may be again"
    assert unfuse(model.module) == 21
    assert not any("forward" in layer.__dict__ for layer in layers)
    assert unfuse(model.module) == 0


def with_lora(name: str, dtype: torch.dtype) -> LanguageModel:
    model = add_lora(LanguageModel(tiny_model(name, dtype), probe=False), LoraConfig(r=4, alpha=8), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype) / 5)
    return model


def loss_of(model: LanguageModel) -> Tensor:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 97, 30)
    rows = [Row(tokens[:10], np.append(tokens[10 : 20 + i], 3 + i), np.ones(11 + i, np.float32)) for i in range(3)]
    return -model.target_logprobs(plant(rows, min_saving=1)).sum()


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    parameters = trainable_parameters(model)
    loss = loss_of(model)
    return dict(zip(["loss", *parameters], [loss.detach(), *torch.autograd.grad(loss, list(parameters.values()))], strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_training_step_has_the_same_gradients(name: str) -> None:
    model = with_lora(name, torch.float64)
    with fp64_norms(model.module):
        fused = gradients(model)
        assert unfuse(model.module) > 0
        assert worst(fused, gradients(model)) < 1e-12
    single = with_lora(name, torch.float32)
    assert worst(gradients(single), fused) < 1e-3


def test_under_activation_checkpointing() -> None:
    model = with_lora("llama", torch.float64)
    expected = gradients(model)
    model.base.train()
    model.base.activation_checkpointing_enable()
    assert worst(gradients(model), expected) < 1e-6


def test_saving_loading_and_unloading(tmp_path: Path) -> None:
    model = with_lora("qwen2", torch.float32)
    expected = loss_of(model).detach()
    save_adapter(model, tmp_path)
    loaded = load_adapter(LanguageModel(tiny_model("qwen2", torch.float32), probe=False), tmp_path)
    assert any(map(is_fused, loaded.module.modules()))
    torch.testing.assert_close(loss_of(loaded).detach(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = peft.PeftModel.from_pretrained(tiny_model("qwen2", torch.float32), str(tmp_path))
    torch.testing.assert_close(loss_of(LanguageModel(stock, probe=False)).detach(), expected)
    with model.module.disable_adapter():
        bare = loss_of(model).detach()
    assert abs(float(bare - expected)) > 0.1
    torch.testing.assert_close(bare, loss_of(LanguageModel(tiny_model("qwen2", torch.float32), probe=False)).detach())
    merged = model.module.merge_and_unload()
    assert not any(map(is_fused, merged.modules()))
    torch.testing.assert_close(loss_of(LanguageModel(merged, probe=False)).detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_copy_of_a_model_uses_its_own_weights() -> None:
    layer = lora_layer(torch.float64)
    fuse(layer)
    twin = copy.deepcopy(layer)
    assert is_fused(twin)
    twin.lora_B["default"].weight.data.zero_()
    x = draw((6, 24), 0)
    assert torch.equal(twin(x), twin.base_layer(x))
    assert not torch.equal(layer(x), twin(x))


def test_a_model_that_is_no_longer_used_is_gone_before_the_next_is_loaded(tmp_path: Path) -> None:
    """A fused layer holds itself, so nothing but the collector frees it, which is not called by the size of tensors: pilots piled up."""
    folder = write_model(tmp_path)
    gc.disable()
    try:
        model = add_lora(load_model(folder, "fp32"), LoraConfig(r=2), 0)
        layers = [weakref.ref(layer) for layer in model.module.modules() if is_fused(layer)]
        del model
        assert layers
        assert all(layer() is not None for layer in layers), "this is what is to be mended"
        load_model(folder, "fp32")
        assert not any(layer() for layer in layers)
    finally:
        gc.enable()

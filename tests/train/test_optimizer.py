"""AdamW with fp32 masters: what is updated, and that it continues to the bit."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sapwood.errors import TrainingError
from sapwood.run import saved_steps
from sapwood.train import OptimConfig, SftConfig
from sapwood.train.optimizer import Optimizer
from train.tiny_training import random_examples, train, trained_steps

CONFIG = OptimConfig(weight_decay=0.1)


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in (("w", (4, 3)), ("b", (3,)))}


def give_gradients(tensors: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for tensor in tensors.values():
        tensor.grad = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def test_bf16_parameters_are_rounded_copies_of_fp32_masters() -> None:
    narrow = parameters(torch.bfloat16)
    wide = {name: nn.Parameter(tensor.detach().float()) for name, tensor in narrow.items()}
    ours, reference = Optimizer(narrow, CONFIG), Optimizer(wide, CONFIG)
    for step in range(200):
        give_gradients(narrow, step)
        for name in wide:
            gradient = narrow[name].grad
            assert gradient is not None
            wide[name].grad = gradient.float()
        assert ours.step(1e-4) == reference.step(1e-4)
    for name in wide:
        assert torch.equal(ours.masters[name], wide[name])
        assert torch.equal(narrow[name], wide[name].bfloat16())
    fresh = parameters(torch.bfloat16)
    lost = [name for name in fresh if torch.equal(ours.masters[name].bfloat16(), ours.masters[name])]
    assert lost == [], "steps too small for bf16 must add up in the masters"


def test_fp32_parameters_have_no_masters() -> None:
    assert Optimizer(parameters(torch.float32), CONFIG).masters == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_restored_optimizer_continues_to_the_bit(dtype: torch.dtype) -> None:
    whole, half, rest = parameters(dtype), parameters(dtype), parameters(dtype)
    for name in rest:
        rest[name].data.zero_()
    first, second, third = (Optimizer(tensors, CONFIG) for tensors in (whole, half, rest))
    for step in range(6):
        give_gradients(whole, step)
        first.step(1e-2)
    for step in range(3):
        give_gradients(half, step)
        second.step(1e-2)
    state = {name: tensor.clone() for name, tensor in second.state().items()}
    third.restore(state)
    for step in range(3, 6):
        give_gradients(rest, step)
        third.step(1e-2)
    assert first.state().keys() == third.state().keys()
    for name, tensor in first.state().items():
        assert torch.equal(tensor, third.state()[name]), name
    assert all(torch.equal(state[name], tensor) for name, tensor in second.state().items()), "what was restored is not written to"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_updates_nothing(value: float) -> None:
    tensors = parameters(torch.bfloat16)
    optimizer = Optimizer(tensors, CONFIG)
    give_gradients(tensors, 0)
    optimizer.step(1e-2)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    give_gradients(tensors, 1)
    gradient = tensors["b"].grad
    assert gradient is not None
    gradient[0] = value
    assert not math.isfinite(optimizer.step(1e-2))
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state().items())
    assert all(tensor.grad is None for tensor in tensors.values())


def test_the_norm_is_clipped_and_told_as_it_was() -> None:
    tensors = parameters(torch.float64)
    moved = {}
    for limit in (0.0, 0.5, 1e9):
        tensors = parameters(torch.float64)
        optimizer = Optimizer(tensors, OptimConfig(max_grad_norm=limit, eps=1.0))
        give_gradients(tensors, 0)
        norm = math.sqrt(sum(float(tensor.grad.square().sum()) for tensor in tensors.values() if tensor.grad is not None))
        assert optimizer.step(1.0) == pytest.approx(norm, rel=1e-12)
        moved[limit] = tensors["w"].detach().clone()
    assert torch.equal(moved[0.0], moved[1e9])
    assert not torch.equal(moved[0.0], moved[0.5])


def test_decay_is_for_matrices_only() -> None:
    tensors = parameters(torch.float64)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    optimizer = Optimizer(tensors, OptimConfig(weight_decay=0.5))
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step(0.1)
    torch.testing.assert_close(tensors["w"].detach(), before["w"] * (1 - 0.1 * 0.5))
    assert torch.equal(tensors["b"], before["b"])


def test_a_run_stops_at_a_gradient_that_is_not_finite_and_keeps_what_was_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SftConfig(batch=2, epochs=4, save_every=50, budget=1000)
    folder, untouched = tmp_path / "stopped", tmp_path / "whole"
    sft_file = sys.modules["sapwood.train.sft"]  # the package's own `sft` is the function
    accumulate, calls = sft_file.accumulate, []

    def spoiled(model, examples, budget, **keywords):  # type: ignore[no-untyped-def]
        sums = accumulate(model, examples, budget, **keywords)
        calls.append(1)
        if len(calls) == 6:
            next(p for p in model.module.parameters() if p.grad is not None).grad[0] = torch.nan
        return sums

    monkeypatch.setattr(sft_file, "accumulate", spoiled)
    said: list[str] = []
    with pytest.raises(TrainingError, match=r"gradient of step 6 is nan.*made\.jsonl:\d+, made\.jsonl:\d+"):
        train(folder, config, say=said.append)
    assert saved_steps(folder) == [5]
    assert any("step-5" in sentence for sentence in said)
    monkeypatch.undo()
    train(folder, config, examples=random_examples(6))
    train(untouched, config)
    assert [r["loss"] for r in trained_steps(folder)] == [r["loss"] for r in trained_steps(untouched)]
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (untouched / name).read_bytes()

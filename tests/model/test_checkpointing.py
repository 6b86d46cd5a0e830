"""Layers that compute their inside twice: the very gradients, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sapwood.errors import ModelError
from sapwood.model import LanguageModel, LoraConfig, add_lora, checkpoint_layers, trainable_parameters
from sapwood.train.step import accumulate, evaluate
from tiny.models import ARCHITECTURES
from train.tiny_training import gradients, random_examples, tiny_lm


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps at the end of a forward pass, each storage once, parameters left out."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def with_adapter(name: str, dropout: float = 0.0) -> LanguageModel:
    model = add_lora(tiny_lm(name=name), LoraConfig(r=4, dropout=dropout), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_the_same_to_the_bit(name: str, dropout: float) -> None:
    examples = random_examples(6)
    once, twice = with_adapter(name, dropout), with_adapter(name, dropout)
    assert checkpoint_layers(twice) == 3
    sums = [accumulate(model, examples, 300, draw=(1, 2)) for model in (once, twice)]
    assert sums[0] == sums[1]
    expected, found = gradients(once), gradients(twice)
    assert expected.keys() == found.keys()
    for name_, gradient in expected.items():
        assert torch.equal(gradient, found[name_]), name_
    assert np.array_equal(*(evaluate(model, examples, 300).losses_B for model in (once, twice)))


def test_all_weights_train_the_same() -> None:
    models = [tiny_lm(), tiny_lm()]
    checkpoint_layers(models[1])
    found = []
    for model in models:
        model.module.requires_grad_(True)
        accumulate(model, random_examples(6), 300)
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_far_less_is_kept_for_the_backward_pass() -> None:
    examples = random_examples(6)
    once, twice = with_adapter("llama"), with_adapter("llama")
    checkpoint_layers(twice)
    whole, inputs = (kept_bytes(lambda model=model: accumulate(model, examples, 10_000)) for model in (once, twice))  # type: ignore[misc]
    assert inputs < 0.5 * whole


def test_it_may_be_asked_for_twice() -> None:
    model = with_adapter("llama")
    checkpoint_layers(model)
    calls = []
    model.base.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert checkpoint_layers(model) == 3
    accumulate(model, random_examples(1), 10_000)
    assert len(calls) == 2


def test_a_model_without_such_layers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm()
    monkeypatch.setattr(type(model.base), "get_decoder", lambda self: nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"Leave `checkpointing` off, and lower `budget`"):
        checkpoint_layers(model)

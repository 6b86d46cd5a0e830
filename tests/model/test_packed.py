"""Packed linear layers give what torch's give, follow their weights, and stay out of training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sapwood.model import packed


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(128, 160), nn.Linear(160, 128, bias=False), nn.Linear(128, 8)).to(request.param)
    if not packed.pack(found):
        pytest.skip("this torch has no packed products")
    return found


@contextmanager
def generating() -> Iterator[None]:
    with torch.inference_mode(), packed.in_force():
        yield


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=32 * torch.finfo(expected.dtype).eps)


@pytest.mark.parametrize("rows", [1, 3, 32, 100])
def test_the_products_are_torchs(model: nn.Sequential, rows: int) -> None:
    x = torch.randn(2, rows, 128, dtype=model[0].weight.dtype)
    with torch.no_grad():
        expected = model(x)  # outside of inference mode the layers run their own forward
    with generating():
        assert near(model(x), expected)
    assert model[0] in packed._COPIES, "the packed product was what ran"
    assert model[2] not in packed._COPIES, "small layers stay as they are"


def test_a_weight_that_was_written_to_is_packed_again(model: nn.Sequential) -> None:
    x = torch.randn(3, 128, dtype=model[0].weight.dtype)
    with generating():
        before = model(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
        expected = model(x)
    with generating():
        after = model(x)
    assert near(after, expected)
    assert not torch.allclose(after, before)


def test_training_never_comes_here(model: nn.Sequential) -> None:
    model(torch.randn(3, 128, dtype=model[0].weight.dtype)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0] not in packed._COPIES


def test_the_way_back(model: nn.Sequential) -> None:
    x = torch.randn(3, 128, dtype=model[0].weight.dtype)
    with generating():
        model(x)
    other = copy.deepcopy(model)
    assert packed.packed_bytes(model) == 2 * 128 * 160 * x.element_size()
    assert packed.unpack(model) == 2
    assert model[0] not in packed._COPIES
    with generating():
        assert near(other(x), model(x)), "a copy has a packed forward of its own"


def test_the_products_of_float32_are_served_where_those_of_bfloat16_are() -> None:
    assert packed._serves(torch.float32) == packed._serves(torch.bfloat16)


def test_what_generates_nothing_never_meets_a_copy(model: nn.Sequential) -> None:
    x = torch.randn(3, 128, dtype=model[0].weight.dtype)
    with generating():
        model(x)
    with torch.no_grad():
        model[0].weight.data.mul_(2)  # as peft merges: torch counts no write
        expected = model(x)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)

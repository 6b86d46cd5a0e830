"""LoRA layers by the kernels: as near to the truth as torch's own products, on any number of threads, whatever the sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood import kernels
from sapwood.model import fused
from sapwood.model.fused import Projection, lora_linears


@pytest.fixture(scope="module", autouse=True)
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
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(inner: int, sizes: list[tuple[int, int]], *, bias: bool = False, seed: int = 0) -> list[Projection]:
    """One projection for each (outputs, rank)."""
    return [
        Projection(
            draw(outer, inner, seed=seed + i).bfloat16(),
            draw(outer, seed=seed + i).bfloat16() if bias else None,
            draw(rank, inner, seed=seed + 10 + i),
            draw(outer, rank, seed=seed + 20 + i),
            0.5 + i,
        )
        for i, (outer, rank) in enumerate(sizes)
    ]


def results(x: Tensor, projections: list[Projection], grads: list[Tensor], kind: torch.dtype | None = None) -> list[Tensor]:
    """Outputs, then the gradients of x, all A and all B; all computed in `kind`, where one is given."""
    wide = [
        Projection(*(None if tensor is None else tensor.to(kind or tensor.dtype) for tensor in projection[:4]), projection.scale)  # type: ignore[arg-type]
        for projection in projections
    ]
    x = x.to(kind or x.dtype).requires_grad_()
    adapters = [tensor.detach().clone().requires_grad_() for projection in wide for tensor in (projection.A_RI, projection.B_OR)]
    trained = [one._replace(A_RI=adapters[2 * i], B_OR=adapters[2 * i + 1]) for i, one in enumerate(wide)]
    outputs = lora_linears(x, trained)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, [x, *adapters], [grad.to(kind or grad.dtype) for grad in grads])]


def off(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@settings(max_examples=30)
@given(
    tokens=st.integers(1, 700),
    inner=st.sampled_from([32, 96, 576]),
    sizes=st.lists(st.tuples(st.sampled_from([32, 96, 352]), st.sampled_from([2, 8, 16, 34])), min_size=1, max_size=3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_errors_are_those_of_torch_or_smaller(tokens: int, inner: int, sizes: list[tuple[int, int]], bias: bool, seed: int) -> None:
    projections, x = layers(inner, sizes, bias=bias, seed=seed), draw(tokens, inner, seed=seed).bfloat16()
    grads = [draw(tokens, outer, seed=seed + 30 + i).bfloat16() for i, (outer, _) in enumerate(sizes)]
    truth = results(x, projections, grads, torch.float64)
    found = results(x, projections, grads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_served", lambda *_: None)
        torchs = results(x, projections, grads)
    for ours, plain, exact in zip(found, torchs, truth, strict=True):
        assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype)
        assert off(ours, exact) < max(1.2 * off(plain, exact), 2.0**-8)


def test_they_serve_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.setattr(fused, "_stacked", None)  # torch's own products would fail
    projections, x = layers(192, [(320, 16), (64, 4)]), draw(1003, 192).bfloat16()
    grads = [draw(1003, outer).bfloat16() for outer in (320, 64)]
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(x, projections, grads))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_the_first_layer_asks_for_no_gradient_of_its_input() -> None:
    (projection,) = layers(64, [(96, 8)])
    x, grad = draw(50, 64).bfloat16(), draw(50, 96).bfloat16()
    A, B = projection.A_RI.requires_grad_(), projection.B_OR.requires_grad_()
    (y,) = lora_linears(x, [projection])
    found = torch.autograd.grad(y, (A, B), grad)
    expected = results(x, [projection._replace(A_RI=A.detach(), B_OR=B.detach())], [grad])[2:]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize(("inner", "outer", "rank"), [(24, 64, 4), (64, 40, 4), (64, 64, 3)])
def test_other_sizes_are_left_to_torch(inner: int, outer: int, rank: int) -> None:
    (projection,) = layers(inner, [(outer, rank)])
    assert fused._served(draw(5, inner).bfloat16(), [projection]) is None
    assert fused._served(draw(5, 64).bfloat16(), layers(64, [(64, 4)])) is not None
    assert fused._served(draw(5, 64), [one._replace(weight_OI=one.weight_OI.float()) for one in layers(64, [(64, 4)])]) is None
    x, grad = draw(5, inner).bfloat16(), draw(5, outer).bfloat16()
    truth = results(x, [projection], [grad], torch.float64)
    assert all(off(found, exact) < 2e-2 for found, exact in zip(results(x, [projection], [grad]), truth, strict=True))

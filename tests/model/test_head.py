"""The chunked head against a plain log-softmax, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sapwood.model import head as head_file
from sapwood.model.head import head_logprobs


def problem(
    places: int, targets: int, vocabulary: int, bias: bool, dtype: torch.dtype, seed: int
) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Hidden states, a head, and targets: every place at least none and at most many, tokens repeated too."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(places, 6, generator=generator, dtype=dtype).requires_grad_()
    head = nn.Linear(6, vocabulary, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    place = torch.randint(0, places, (targets,), generator=generator).sort().values
    token = torch.randint(0, vocabulary, (targets,), generator=generator)
    return hidden, head, place, token


def plain(hidden: Tensor, head: nn.Linear, place: Tensor, token: Tensor) -> Tensor:
    return head(hidden).log_softmax(-1)[place, token]


@settings(max_examples=40)
@given(
    places=st.integers(1, 9),
    targets=st.integers(1, 30),
    vocabulary=st.integers(2, 11),
    chunk=st.sampled_from([1, 20, 33, 1 << 23]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_all_gradients_in_fp64(places: int, targets: int, vocabulary: int, chunk: int, bias: bool, seed: int) -> None:
    hidden, head, place, token = problem(places, targets, vocabulary, bias, torch.float64, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_file, "CHUNK_ELEMENTS", chunk)
        found = head_logprobs(hidden, head, place, token)
        expected = plain(hidden, head, place, token)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        grad = torch.randn(targets, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        wanted = [hidden, *head.parameters()]
        for ours, theirs in zip(torch.autograd.grad(found, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_frozen_head_passes_the_gradient_on_and_gets_none() -> None:
    hidden, head, place, token = problem(5, 9, 7, True, torch.float64, 1)
    head.requires_grad_(False)
    head_logprobs(hidden, head, place, token).sum().backward()  # type: ignore[no-untyped-call]
    ours = hidden.grad
    hidden.grad = None
    plain(hidden, head, place, token).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, hidden.grad, rtol=0, atol=1e-12)
    assert head.weight.grad is None
    assert head.bias.grad is None


def test_bf16_sums_in_fp32() -> None:
    hidden, head, place, token = problem(64, 64, 5000, False, torch.bfloat16, 2)
    found = head_logprobs(hidden, head, place, token)
    assert found.dtype == torch.float32
    logits = head(hidden).double()  # the product itself is rounded; what follows must not be
    torch.testing.assert_close(found.double(), logits.log_softmax(-1)[place, token], rtol=0, atol=1e-5)


def test_no_chunk_holds_more_logits_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, place, token = problem(50, 50, 11, False, torch.float32, 3)
    monkeypatch.setattr(head_file, "CHUNK_ELEMENTS", 44)
    seen = []
    original = torch.mm

    def watched(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
        seen.append(len(left) * right.shape[1])
        return original(left, right, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    head_logprobs(hidden, head, place, token).sum().backward()  # type: ignore[no-untyped-call]
    assert max(seen) <= 44
    assert len(seen) == 2 * 13

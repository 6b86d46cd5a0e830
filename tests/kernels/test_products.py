"""Products with weights that are laid out once, and tokens drawn from logits: what the formulas give, whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapwood import kernels
from sapwood.generate.penalties import Edits
from sapwood.generate.sampling import sample, sample_at_once
from sapwood.records import SamplingParams

pytestmark = pytest.mark.skipif(kernels.cpu_kernels() is None, reason=f"no kernels here: {kernels.why_not()}")
SERVED: Any = kernels.cpu_kernels()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 70), inputs=st.integers(1, 40).map(lambda half: 2 * half), outputs=st.integers(1, 200), biased=st.booleans())
def test_a_product_is_that_of_fp64_rounded_once(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    x, weight, bias = draw(rows, inputs), draw(outputs, inputs, seed=1), draw(outputs, seed=2) if biased else None
    found = SERVED.packed_product(x, SERVED.pack_weight(weight), outputs, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


def test_a_row_is_the_same_in_every_batch_and_on_any_number_of_threads() -> None:
    x, packed = draw(700, 1024), SERVED.pack_weight(draw(200, 1024, seed=1))
    whole = SERVED.packed_product(x, packed, 200, None)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(SERVED.packed_product(x, packed, 200, None), whole)
    finally:
        torch.set_num_threads(threads)
    for row in (0, 8, 255, 256, 699):
        assert torch.equal(SERVED.packed_product(x[row : row + 1], packed, 200, None)[0], whole[row])


def test_what_does_not_belong_together_is_refused() -> None:
    packed = SERVED.pack_weight(draw(50, 64))
    with pytest.raises(RuntimeError, match="belong together"):
        SERVED.packed_product(draw(3, 62), packed, 50, None)
    with pytest.raises(RuntimeError, match="belong together"):
        SERVED.packed_product(draw(3, 64), packed, 500, None)
    with pytest.raises(RuntimeError, match="even width"):
        SERVED.pack_weight(draw(50, 63))


def bits_of(allowed_NV: Tensor) -> np.ndarray[Any, np.dtype[np.int32]]:
    words = -(-allowed_NV.shape[1] // 32)
    padded = np.zeros((len(allowed_NV), 32 * words), dtype=np.uint8)
    padded[:, : allowed_NV.shape[1]] = allowed_NV.numpy()
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


@pytest.mark.parametrize("width", [1, 15, 97, 1000, 5000])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("constrained", [False, True])
def test_tokens_and_log_probabilities_are_those_of_torch(width: int, temperature: float, constrained: bool) -> None:
    logits = draw(200, width) * 3
    uniform = np.random.default_rng(0).random(len(logits))
    params = SamplingParams(temperature=temperature)
    allowed = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    allowed[:, width // 2] = True
    edited = logits.float().masked_fill(~allowed, float("-inf")) if constrained else None
    expected = sample(logits, params, uniform, edited)
    found = sample_at_once(logits, [params] * len(logits), uniform, bits_of(allowed) if constrained else None)
    assert found is not None
    same = found[0] == expected[0]
    assert same.float().mean() >= (1.0 if temperature == 0 else 0.99), "only a draw on the edge itself may fall on the other side"
    torch.testing.assert_close(found[1][same], expected[1][same], rtol=0, atol=1e-5)
    if constrained:
        assert allowed.gather(1, found[0][:, None]).all()


def test_the_shares_of_what_is_drawn_are_the_probabilities() -> None:
    logits = draw(1, 700)
    uniform = (np.arange(20_000) + 0.5) / 20_000
    found = sample_at_once(logits.expand(len(uniform), -1).contiguous(), [SamplingParams(temperature=1.0)] * len(uniform), uniform)
    assert found is not None
    shares = torch.bincount(found[0], minlength=700) / len(uniform)
    torch.testing.assert_close(shares, logits[0].float().softmax(-1), rtol=0, atol=2 / len(uniform))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_has_no_log_probability(broken: float) -> None:
    logits = draw(2, 300)
    logits[1, 170] = broken
    found = sample_at_once(logits, [SamplingParams(temperature=1.0)] * 2, np.array([0.5, 0.5]))
    assert found is not None
    assert torch.isnan(found[1]).tolist() == [False, True]


def test_other_types_are_left_to_torch() -> None:
    assert sample_at_once(draw(1, 64).float(), [SamplingParams(temperature=1.0)], np.array([0.5])) is None


FILTERS = [
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.0, top_p=0.9912),
    SamplingParams(temperature=1.5, top_k=40),
    SamplingParams(temperature=1.5, top_k=10_000),
    SamplingParams(temperature=1.0, min_p=0.0512),
    SamplingParams(temperature=1.0, top_k=60, top_p=0.8123, min_p=0.0312),
    SamplingParams(temperature=1.0, top_p=0.1234, min_p=1.0),
    SamplingParams(temperature=0.8),
    SamplingParams(),
]


def warped(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities in fp64 behind transformers' warpers, in its order."""
    scores = logits_NV.double() / params.temperature
    if params.top_k:
        scores = transformers.TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = transformers.TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = transformers.MinPLogitsWarper(params.min_p)(None, scores)
    return torch.as_tensor(scores).softmax(-1)


@pytest.mark.parametrize("params", FILTERS[:-1], ids=repr)
@pytest.mark.parametrize("spread", [0.02, 0.25])
def test_filters_leave_what_transformers_leaves(params: SamplingParams, spread: float) -> None:
    """Logits are all different, for transformers keeps every one that equals the last. Stratified draws meet each kept token."""
    order = torch.randperm(250, generator=torch.Generator().manual_seed(0))
    logits = (order.double() * spread).bfloat16() if spread == 0.25 else (order.double() - 125).bfloat16() * 0.015625
    assert len(logits.unique()) == 250
    expected = warped(logits[None], params)[0]
    uniform = (np.arange(50_000) + 0.5) / 50_000
    found = sample_at_once(logits.expand(len(uniform), -1).contiguous(), [params] * len(uniform), uniform)
    assert found is not None
    sums = expected.cumsum(-1)
    sure = (sums[:, None] - torch.from_numpy(uniform)).abs().amin(0) > 1e-5
    assert torch.equal(found[0][sure], torch.searchsorted(sums, torch.from_numpy(uniform), right=True)[sure])
    assert expected[found[0].unique()].min() > 0
    torch.testing.assert_close(found[1], (logits.double() / params.temperature).log_softmax(-1)[found[0]].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [1, 97, 5000])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("edited", [False, True])
def test_each_row_goes_by_its_own_settings(width: int, constrained: bool, edited: bool) -> None:
    """Rows of all settings in one call, many of their logits equal, against torch one setting at a time."""
    params = [FILTERS[row % len(FILTERS)] for row in range(180)]
    logits, uniform = (draw(180, width) * 2).round().div(2).bfloat16(), np.random.default_rng(0).random(180)
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(logits.shape, generator=generator) < 0.2
    allowed[:, width // 2] = True
    edits, other = None, logits.float()
    if edited:
        row, token = ((torch.rand(logits.shape, generator=generator) < 0.1) & (torch.arange(180) % 3 != 1)[:, None]).nonzero(as_tuple=True)
        edits = Edits(row, token, torch.randn(len(row), generator=generator) * 3)
        other[edits.row_E, edits.id_E] = edits.value_E
    other = other.masked_fill(~allowed, float("-inf")) if constrained else other
    found = sample_at_once(logits, params, uniform, bits_of(allowed) if constrained else None, edits)
    assert found is not None
    different = 0
    for row, one in enumerate(params):
        token, logprob = sample(logits[row : row + 1], one, uniform[row : row + 1], other[row : row + 1])
        different += int(found[0][row] != token[0])
        if found[0][row] == token[0]:
            torch.testing.assert_close(found[1][row], logprob[0], rtol=0, atol=1e-5)
        if constrained:
            assert allowed[row, found[0][row]]
    assert different <= 2, "only a draw on the edge itself may fall on the other side"


def test_what_a_row_draws_does_not_depend_on_the_others() -> None:
    logits, uniform = draw(18, 700) * 3, np.random.default_rng(3).random(18)
    params = [FILTERS[row % len(FILTERS)] for row in range(18)]
    together = sample_at_once(logits, params, uniform)
    alone = [sample_at_once(logits[row : row + 1], params[row : row + 1], uniform[row : row + 1]) for row in range(18)]
    assert together is not None
    assert together[0].tolist() == [int(one[0]) for one in alone if one is not None]

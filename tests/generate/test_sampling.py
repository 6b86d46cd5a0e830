"""Each filter against an independent reference in plain Python, and the frequencies of what is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sapwood.errors import ConfigError
from sapwood.generate import sampling
from sapwood.generate.sampling import kept, sample, uniforms
from sapwood.records import SamplingParams

LOGITS = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=12)


def reference(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Kept tokens and their probabilities, straight from the definitions; equal tokens rank by id."""
    scaled = [x / params.temperature for x in logits]
    weights = {token: math.exp(x - max(scaled)) for token, x in enumerate(scaled)}
    ranked = sorted(weights, key=lambda token: (-logits[token], token))
    if params.top_k:
        ranked = ranked[: params.top_k]
    if params.top_p < 1:
        total, sum_, left = sum(weights[token] for token in ranked), 0.0, []
        for token in ranked:
            if sum_ / total >= params.top_p:
                break
            left.append(token)
            sum_ += weights[token]
        ranked = left
    if params.min_p:
        ranked = [token for token in ranked if weights[token] >= params.min_p * weights[ranked[0]]]
    total = sum(weights[token] for token in ranked)
    return {token: weights[token] / total for token in sorted(ranked)}


def inverse(probabilities: dict[int, float], uniform: float) -> int:
    below = 0.0
    for token, probability in probabilities.items():
        below += probability
        if uniform < below:
            return token
    return max(probabilities)


# values that no cumulative sum of these weights meets exactly, so that rounding decides nothing
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 5, 40]),
    top_p=st.sampled_from([1.0, 0.1234567, 0.512345, 0.9123457]),
    min_p=st.sampled_from([0.0, 0.0512345, 0.312345, 1.0]),
)


@example(logits=[0.0] * 6, params=SamplingParams(temperature=1.0, top_k=3, top_p=0.512345), uniform=0.2)  # p of what top_k left
@given(logits=LOGITS, params=PARAMS, uniform=st.floats(0, 1, exclude_max=True))
def test_filters_and_draws_are_those_of_the_definitions(logits: list[float], params: SamplingParams, uniform: float) -> None:
    expected = reference(logits, params)
    scaled = torch.tensor([logits], dtype=torch.float64) / params.temperature
    assert kept(scaled, params)[0].nonzero()[:, 0].tolist() == list(expected)
    sums = np.cumsum(list(expected.values()))
    if np.abs(sums - uniform).min() > 1e-9:
        token, _ = sample(torch.tensor([logits], dtype=torch.float64), params, np.array([uniform]))
        assert int(token[0]) == inverse(expected, uniform)


@given(params=PARAMS, seed=st.integers(0, 100))
def test_few_candidates_give_what_the_whole_vocabulary_gives(params: SamplingParams, seed: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).integers(-4, 5, (3, 64)).astype(np.float32))  # many ties
    whole = kept(logits, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CANDIDATES", 8)
        assert torch.equal(kept(logits, params), whole)


@pytest.mark.parametrize("width", [64, 97, 256])
def test_greedy_takes_the_first_of_the_largest(width: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (50, width)).astype(np.float32))
    token, logprob = sample(logits, SamplingParams(), np.zeros(50))
    assert token.tolist() == [int(row.argmax()) for row in logits.numpy()]
    torch.testing.assert_close(logprob, logits.log_softmax(-1).amax(-1))


def test_logprobs_are_of_the_tempered_distribution_before_truncation() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    token, logprob = sample(logits, SamplingParams(temperature=2.0, top_k=2), np.array([0.9999]))
    assert token.tolist() == [3]
    torch.testing.assert_close(logprob, (logits / 2).log_softmax(-1)[:, 3])


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.8), SamplingParams(temperature=0.8, top_k=5, top_p=0.97, min_p=0.05)])
def test_frequencies_are_the_probabilities(params: SamplingParams) -> None:
    logits = [0.5, 1.0, -1.0, 2.0, 0.0, 1.5, -3.0]
    expected, draws = reference(logits, params), 20_000
    uniform = np.concatenate([uniforms(7, index, 100) for index in range(draws // 100)])
    tokens, _ = sample(torch.tensor([logits]).expand(draws, -1), params, uniform)
    counts = np.bincount(tokens.numpy(), minlength=len(logits))
    assert counts.sum() == counts[list(expected)].sum()
    assert chisquare(counts[list(expected)], draws * np.array(list(expected.values()))).pvalue > 0.01


def test_streams_differ_by_seed_and_index_and_never_by_length() -> None:
    streams = [uniforms(seed, index, 50) for seed in (0, 1, -1, 2**63) for index in range(4)]
    assert len({stream.tobytes() for stream in streams}) == len(streams)
    np.testing.assert_array_equal(uniforms(3, 2, 10), uniforms(3, 2, 50)[:10])


def test_the_edge_of_the_distribution_never_gives_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    token, _ = sample(logits, SamplingParams(temperature=1.0), np.array([np.nextafter(1.0, 0.0)]))
    assert token.tolist() == [1]


@pytest.mark.parametrize("given", [{"stop": ("",)}, {"stop": "\n\n"}, {"temperature": float("nan")}])
def test_what_would_end_every_answer_at_once_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        SamplingParams(**given)

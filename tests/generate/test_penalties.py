"""Penalties against transformers' own processor and OpenAI's formula; alternatives and log-probabilities against the training path."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from generate.prompts_and_engines import Letters, engine, model, nested_prompts, prompts, rounding, stock_model
from sapwood.errors import ConfigError
from sapwood.generate.penalties import Seen, edited
from sapwood.records import Row, SamplingParams
from tiny.models import ARCHITECTURES

IDS = st.lists(st.integers(0, 11), min_size=1, max_size=20)
PENALTY = st.floats(-2, 2).map(lambda number: round(number, 3))


BIASES = st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=5)


@given(prompt=IDS, sampled=IDS, repetition=st.floats(0.2, 3), presence=PENALTY, frequency=PENALTY, bias=BIASES, seed=st.integers(0, 99))
def test_each_penalty_is_that_of_its_definition(
    prompt: list[int], sampled: list[int], repetition: float, presence: float, frequency: float, bias: dict[int, float], seed: int
) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=12))
    params = SamplingParams(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    processor = transformers.RepetitionPenaltyLogitsProcessor(repetition)
    biased = logits.clone()
    for token, value in bias.items():
        biased[token] += value
    expected = processor(torch.tensor([[*prompt, *sampled]]), biased[None])[0]
    for token, times in Counter(sampled).items():
        expected[token] -= times * frequency + presence
    found = logits.clone()
    seen = Seen(prompt, len(sampled), tuple(bias.items()))
    for length in range(len(sampled) + 1):  # told one at a time, as in decoding
        seen.take(sampled[:length])
    edits = edited(torch.stack([logits + 1, logits]), [1], [seen], [params])
    assert edits.row_E.unique().tolist() == [1]
    assert sorted(edits.id_E.tolist()) == sorted({*prompt, *sampled, *bias})
    found[edits.id_E] = edits.value_E
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_greedy_tokens_under_a_repetition_penalty_are_those_of_transformers(name: str) -> None:
    ids = nested_prompts(1)[:5]
    found = engine(name, slots=3).generate(prompts(ids), SamplingParams(max_new_tokens=12, repetition_penalty=1.3))
    for prompt, completion in zip(ids, found, strict=True):
        out = stock_model(name).generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=1.3,
            eos_token_id=1,
            pad_token_id=0,
        )
        assert list(completion.ids) == out[0, len(prompt) :].tolist()


def test_a_high_penalty_says_nothing_twice() -> None:
    chat = Letters([])
    [free] = engine("llama", chat).generate(prompts([[7, 11]]), SamplingParams(max_new_tokens=60))
    assert len(set(free.ids)) < 60
    for name in ("presence_penalty", "frequency_penalty"):
        [found] = engine("llama", chat).generate(prompts([[7, 11]]), SamplingParams(max_new_tokens=60, **{name: 1e6}))
        assert len(set(found.ids)) == 60
        assert min(found.logprobs) > -100, "log-probabilities are those of the model, without penalties"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_of_prompts_and_alternatives_are_those_of_training(name: str) -> None:
    ids = nested_prompts(2)
    params = SamplingParams(max_new_tokens=4, temperature=1.0, top_logprobs=3, prompt_logprobs=True, top_k=2)
    found = engine(name, slots=4, keep_from=1).generate(prompts(ids), params)
    for prompt, completion in zip(ids, found, strict=True):
        assert len(completion.prompt_logprobs) == len(prompt) - 1
        if len(prompt) > 1:
            row = Row(np.array(prompt[:1]), np.array(prompt[1:]), np.ones(len(prompt) - 1, np.float32))
            np.testing.assert_allclose(completion.prompt_logprobs, model(name).logprobs([row])[0], rtol=0, atol=rounding(name))
        rows = []
        assert len(completion.prompt_top_logprobs) == len(completion.prompt_logprobs)
        for place, (top, value) in enumerate(zip(completion.prompt_top_logprobs, completion.prompt_logprobs, strict=True), 1):
            assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
            assert top[0][1] >= value - 1e-5
            assert dict(top).get(prompt[place], value) == value, "one number for one token"
            rows += [Row(np.array(prompt[:place]), np.array([token]), np.ones(1, np.float32)) for token, _ in top]
        for place, top in enumerate(completion.top_logprobs):
            so_far = np.array([*prompt, *completion.ids[:place]])
            rows += [Row(so_far, np.array([token]), np.ones(1, np.float32)) for token, _ in top]
            assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
            assert completion.ids[place] in dict(top), "top_k is 2, so the sampled one is among the first three"
            assert dict(top)[completion.ids[place]] == completion.logprobs[place], "one number for one token"
        expected = np.concatenate(model(name).logprobs(rows))
        found_values = [value for top in (*completion.prompt_top_logprobs, *completion.top_logprobs) for _, value in top]
        np.testing.assert_allclose(found_values, expected, rtol=0, atol=rounding(name))


@pytest.mark.parametrize(
    "wrong", [{"repetition_penalty": 0.0}, {"presence_penalty": float("nan")}, {"frequency_penalty": float("inf")}, {"top_logprobs": -1}]
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingParams(**wrong)  # type: ignore[arg-type]

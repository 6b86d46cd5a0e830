"""The claim of the engine: whatever runs beside it, a sequence gets the tokens it would get alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from generate.prompts_and_engines import (
    SCHEDULES,
    Letters,
    engine,
    greedy_by_transformers,
    ids_of,
    model,
    nested_prompts,
    prompts,
    rounding,
    stock_model,
    wide_model,
)
from sapwood.generate import Engine
from sapwood.records import Completion, Row, SamplingParams
from tiny.models import ARCHITECTURES, fp64_norms

NEW = 14


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    ids = nested_prompts(1)
    expected = [greedy_by_transformers(name, sequence, NEW) for sequence in ids]
    assert len({tuple(answer) for answer in expected}) > 3, "the model must say different things"
    for schedule in SCHEDULES:
        found = engine(name, **schedule).generate(prompts(ids), SamplingParams(max_new_tokens=NEW))
        assert ids_of(found) == expected, schedule


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logprobs_of_the_cache_are_those_of_the_training_path(name: str, schedule: dict[str, Any]) -> None:
    params = SamplingParams(max_new_tokens=NEW, temperature=1.0, seed=3)
    with fp64_norms(wide_model(name).module):  # in fp64 the two are the same numbers: nothing is left out, and nothing comes twice
        found = Engine(wide_model(name), Letters(), **schedule).generate(prompts(nested_prompts(2)), params)
        _compare(found, wide_model(name).logprobs(_rows(found)), 1e-10)
    found = engine(name, **schedule).generate(prompts(nested_prompts(2)), params)
    _compare(found, model(name).logprobs(_rows(found)), rounding(name))


def _rows(completions: Sequence[Completion]) -> list[Row]:
    return [Row(np.array(one.prompt.ids), np.array(one.ids), np.ones(len(one.ids), np.float32)) for one in completions]


def _compare(found: Sequence[Completion], expected: Sequence[NDArray[np.float64]], bound: float) -> None:
    for completion, values in zip(found, expected, strict=True):
        np.testing.assert_allclose(completion.logprobs, values, rtol=0, atol=bound)


def test_a_long_prompt_in_many_forwards() -> None:
    ids = [list(np.random.default_rng(0).integers(2, 97, 150)), list(np.random.default_rng(0).integers(2, 97, 120))]
    expected = [greedy_by_transformers("gemma3", sequence, NEW) for sequence in ids]
    found = engine("gemma3", budget=16, keep_from=40).generate(prompts(ids), SamplingParams(max_new_tokens=NEW))
    assert ids_of(found) == expected


def test_what_is_above_a_kept_node_is_kept_too() -> None:
    root, child = [3, 5, 7, 9], list(range(20, 40))  # the root alone would be copied, and would then lie at the wrong depth
    ids = [*([*root, *child, token] for token in (50, 51, 52)), [*root, 60]]
    expected = [greedy_by_transformers("mistral", sequence, NEW) for sequence in ids]
    found = engine("mistral", min_saving=1, keep_from=40).generate(prompts(ids), SamplingParams(max_new_tokens=NEW))
    assert ids_of(found) == expected


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 9),
    budget=st.integers(1, 40),
    keep_from=st.sampled_from([1, 12, 40, 10_000]),
    min_saving=st.sampled_from([1, 6, 16]),
    temperature=st.sampled_from([0.0, 1.0]),
    name=st.sampled_from(["llama", "mistral", "gemma3"]),
)
def test_any_schedule_gives_the_tokens_of_one_at_a_time(
    seed: int, slots: int, budget: int, keep_from: int, min_saving: int, temperature: float, name: str
) -> None:
    ids = nested_prompts(seed)
    params = SamplingParams(max_new_tokens=9, temperature=temperature, seed=seed)
    alone = engine(name, slots=1, min_saving=10**6).generate(prompts(ids), params)
    together = engine(name, slots=slots, budget=budget, keep_from=keep_from, min_saving=min_saving).generate(prompts(ids), params)
    assert ids_of(together) == ids_of(alone)


def test_each_shared_token_is_computed_once() -> None:
    shared = list(range(2, 42))
    ids = [[*shared, 50, token] for token in range(60, 66)] + [shared] * 3
    seen: list[int] = []
    original = model("llama").hidden

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(model("llama"), name)

        def hidden(self, tokens_T: Any, positions_T: Any, attention: Any, media: Any = ()) -> torch.Tensor:
            seen.append(len(tokens_T))
            return original(tokens_T, positions_T, attention, media)

    counted: Any = Counting()
    Engine(counted, engine("llama").chat_like, slots=3, min_saving=1, keep_from=1).generate(prompts(ids), SamplingParams(max_new_tokens=1))
    assert sum(seen[1:]) == len(shared) + 1 + 6  # the first call asks what one token's cache looks like


def test_the_reference_model_is_the_same_model() -> None:
    ours, stock = model("llama").module.state_dict(), stock_model("llama").state_dict()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)

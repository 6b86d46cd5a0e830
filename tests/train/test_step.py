"""One step: its loss and gradient are those of the rows, however they are cut and in whatever order they come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.errors import TrainingError
from sapwood.records import Example, Source
from sapwood.train.step import accumulate, evaluate, micro_batches
from tiny.models import fp64_norms
from train.tiny_training import gradients, random_examples, tiny_lm


def reference(module: Any, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss of all rows by transformers alone, one row at a time, and its gradients."""
    module.set_attn_implementation("sdpa")
    total = sum(float(row.weights_T.sum(dtype=np.float64)) for example in examples for row in example.rows)
    loss = torch.zeros((), dtype=torch.float64)
    for row in (row for example in examples for row in example.rows):
        logits = module(input_ids=torch.from_numpy(row.inputs_T)[None], use_cache=False).logits[0, len(row.prompt_T) - 1 :]
        logprob = logits.log_softmax(-1)[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)]
        loss = loss - (logprob * torch.from_numpy(row.weights_T)).sum() / total
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    module.set_attn_implementation("sapwood")
    return float(loss.detach()), found


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_the_step_is_the_plain_mean_whatever_the_budget_and_the_order(seed: int) -> None:
    model = tiny_lm(torch.float64)
    examples = random_examples(8, seed=seed)
    with fp64_norms(model.module):
        loss, expected = reference(model.module, examples)
        cuts = set()
        for budget in (1, 60, 150, 10_000):
            for order in (examples, examples[::-1], [examples[i] for i in np.random.default_rng(seed).permutation(8)]):
                sums = accumulate(model, order, budget)
                assert sums.mean_loss == pytest.approx(loss, rel=1e-12)
                assert worst(gradients(model), expected) < 1e-12
                assert evaluate(model, order, budget).mean_loss == pytest.approx(loss, rel=1e-12)
                assert sums.row_tokens == sum(example.length for example in examples)
            cuts.add(len(micro_batches(model, examples, budget)))
        assert {1, 8} <= cuts, "one micro-batch of eight and eight of one must both have been tried"


def test_one_by_eight_is_eight_by_one() -> None:
    """Accumulating example by example, each alone, adds up to the batch: nothing is averaged twice."""
    model = tiny_lm(torch.float64)
    examples = random_examples(8)
    with fp64_norms(model.module):
        whole = accumulate(model, examples, 10_000)
        expected = gradients(model)
        summed = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
        for example in examples:
            accumulate(model, [example], 10_000)
            for name, gradient in gradients(model).items():
                summed[name] += gradient * example.weight / whole.weight
        assert worst(summed, expected) < 1e-12


def test_a_weight_of_zero_trains_nothing() -> None:
    model = tiny_lm(torch.float64)
    examples = random_examples(4)
    silent = [
        Example(tuple(replace(row, weights_T=np.zeros_like(row.weights_T)) for row in example.rows))
        for example in random_examples(4, seed=9)
    ]
    with fp64_norms(model.module):
        loss = accumulate(model, examples, 10_000).mean_loss
        expected = gradients(model)
        assert accumulate(model, [*silent, *examples], 10_000).mean_loss == pytest.approx(loss, rel=1e-12)
        assert worst(gradients(model), expected) < 1e-12


def test_doubling_every_weight_changes_nothing() -> None:
    model = tiny_lm(torch.float64)
    examples = random_examples(4)
    doubled = [Example(tuple(replace(row, weights_T=2 * row.weights_T) for row in example.rows)) for example in examples]
    loss = accumulate(model, examples, 10_000).mean_loss
    expected = gradients(model)
    assert accumulate(model, doubled, 10_000).mean_loss == pytest.approx(loss, rel=1e-12)
    assert worst(gradients(model), expected) < 1e-12


def test_a_loss_that_is_not_finite_names_its_examples_and_reaches_no_gradient() -> None:
    model = tiny_lm()
    with torch.no_grad():
        model.base.lm_head.weight[5] = torch.nan
    with pytest.raises(TrainingError, match=r"loss became nan on made\.jsonl:1"):
        accumulate(model, random_examples(1), 10_000)
    assert gradients(model) == {}


def test_a_loss_that_is_not_finite_names_its_own_row_where_rows_run_alone() -> None:
    model = tiny_lm(torch.float64)
    model.shares_prefixes = False
    examples = [replace(example, source=Source("my.jsonl", line)) for line, example in enumerate(random_examples(3), 1)]
    places = [index for index, example in enumerate(examples) for _ in example.rows]
    assert [batch.examples for batch in micro_batches(model, examples, 100)] == [(index,) for index in places]

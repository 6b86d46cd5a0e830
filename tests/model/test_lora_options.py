"""What peft offers around LoRA: exact under shared prefixes, or refused by name; dropout draws for each row apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sapwood.errors import ConfigError
from sapwood.forest import plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, count_parameters, drawing, trainable_parameters
from sapwood.train.step import accumulate, evaluate, micro_batches
from tiny.models import tiny_model
from train.plain_loop import tie
from train.tiny_training import gradients, random_examples, tiny_lm

EXAMPLES = random_examples(5)


def dropping(p: float = 0.5) -> LanguageModel:
    model = add_lora(tiny_lm(), LoraConfig(r=4, dropout=p, init="gaussian"), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def test_no_token_is_shared_where_dropout_draws() -> None:
    model = dropping()
    batches = micro_batches(model, EXAMPLES, 10_000, share=False)
    assert len(batches) == 1, "rows stand side by side"
    rows = [row for example in EXAMPLES for row in example.rows]
    assert batches[0].forest.num_tokens == sum(row.length - 1 for row in rows)
    assert {int(parent) for parent in batches[0].forest.nodes_M[:, 2]} == {-1}
    sums = accumulate(model, EXAMPLES, 10_000)
    assert sums.unique_tokens == sums.row_tokens - len(rows)
    assert evaluate(model, EXAMPLES, 10_000).unique_tokens < sums.unique_tokens, "evaluation draws nothing, and shares"


def test_rows_side_by_side_are_rows_alone() -> None:
    model = tiny_lm(torch.float64)
    rows = [row for example in EXAMPLES for row in example.rows]
    alone = torch.cat([model.target_logprobs(plant([row]))[plant([row]).target_E] for row in rows])
    beside = plant(rows, share=False)
    torch.testing.assert_close(model.target_logprobs(beside)[beside.target_E], alone)


def test_draws_are_a_function_of_seed_and_step() -> None:
    model = dropping()
    losses = [accumulate(model, EXAMPLES, 300, draw=draw).loss for draw in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_nobody_else_is_disturbed_and_nothing_is_left_on() -> None:
    model = dropping()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    accumulate(model, EXAMPLES, 300)
    assert torch.equal(before, torch.get_rng_state())
    first, second = (evaluate(model, EXAMPLES, 300).losses_B for _ in range(2))
    assert np.array_equal(first, second)
    assert not any(module.training for module in model.module.modules() if isinstance(module, torch.nn.Dropout))
    gradients(model)


def test_a_pass_with_dropout_is_peft_s_own_with_the_same_draws() -> None:
    """One row a pass; the reference runs the stock model in training mode from the same state of the generator."""
    model = dropping()
    example = EXAMPLES[0]
    accumulate(model, [example], 0, draw=(3, 4))
    found = gradients(model)
    module = model.module
    module.set_attn_implementation("sdpa")
    with drawing(model, 3, 4):
        for row in example.rows:
            ids = torch.from_numpy(row.inputs_T)[None]
            logprob = module(input_ids=ids, use_cache=False).logits[0, len(row.prompt_T) - 1 :].log_softmax(-1)
            picked = logprob[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)]
            (-(picked * torch.from_numpy(row.weights_T)).sum() / example.weight).backward()
    expected = gradients(model)
    assert len(example.rows) == 1, "several rows of one example are one pass here, and two there"
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


def test_mean_of_many_draws_is_near_no_dropout() -> None:
    model, plain = dropping(0.1), dropping(0.0)
    losses = [accumulate(model, EXAMPLES, 10_000, draw=(0, step)).mean_loss for step in range(60)]
    assert sum(losses) / 60 == pytest.approx(accumulate(plain, EXAMPLES, 10_000).mean_loss, rel=0.05)


def test_parameters_are_counted() -> None:
    model = add_lora(tiny_lm(), LoraConfig(r=4, targets=("q_proj",)), 0)
    parameters = count_parameters(model)
    assert parameters.trained == 3 * 4 * (32 + 32)
    assert parameters.total == parameters.trained + sum(parameter.numel() for parameter in tiny_lm().module.parameters())


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"dropout": 1.0}, r"lora\.dropout is 1\.0; it is a share"),
        ({"dropout": -0.1}, r"lora\.dropout is -0\.1"),
        ({"dora": True, "init": "mica"}, "do not go together"),
        ({"init": "orthogonal", "r": 3}, "needs even ranks"),
        ({"init": "orthogonal", "rank_pattern": ("q_proj=3",)}, "needs even ranks"),
        ({"rank_pattern": ("q_proj",)}, r"lora\.rank_pattern holds 'q_proj'; give"),
        ({"rank_pattern": ("q_proj=0",)}, r"lora\.rank_pattern holds 'q_proj=0'"),
        ({"rank_pattern": ("q_proj=1.5",)}, r"lora\.rank_pattern holds"),
        ({"rank_pattern": ("(=4",)}, r"lora\.rank_pattern holds '\(=4'"),
        ({"alpha_pattern": ("=4",)}, r"lora\.alpha_pattern holds '=4'"),
        ({"alpha_pattern": ("q_proj=nan",)}, r"lora\.alpha_pattern holds 'q_proj=nan'"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LoraConfig(**knobs)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"rank_pattern": ("q_porj=4",)}, r"lora\.rank_pattern holds 'q_porj', but no layer .* They are: down_proj, .*q_proj"),
        ({"alpha_pattern": ("lm_head=4",)}, r"lora\.alpha_pattern holds 'lm_head'"),
        ({"exclude": ("q_porj",)}, r"lora\.exclude .*no layer is called 'q_porj'"),
        ({"modules_to_save": ("lm_haed",)}, r"lora\.modules_to_save .*no layer is called 'lm_haed'"),
        ({"targets": (r".*q_porj\d",)}, r"lora\.targets .*no layer is called"),
        ({"targets": ("(",)}, r"lora\.targets holds '\(', which is no regular expression"),
        ({"layers": (3,)}, r"lora\.layers holds 3, but the model's 3 layers are numbered 0 to 2"),
        ({"layers": (0,), "targets": (r".*q_pro.",)}, r"lora\.layers takes targets by name"),
    ],
)
def test_what_the_model_does_not_have_is_refused(knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        add_lora(tiny_lm(), LoraConfig(**knobs), 0)


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_a_start_that_rewrites_the_base_wants_it_in_fp32(init: Any) -> None:
    with pytest.raises(ConfigError, match="--dtype fp32"):
        add_lora(tiny_lm(torch.bfloat16), LoraConfig(init=init), 0)


def test_an_adapter_on_one_side_of_a_tied_embedding_is_refused() -> None:
    for target in ("lm_head", "embed_tokens"):
        model = LanguageModel(tie(tiny_model("llama", torch.float32)), probe=False)
        with pytest.raises(ConfigError, match=r"the embedding and the head at once.*modules_to_save"):
            add_lora(model, LoraConfig(targets=("q_proj", target)), 0)


def test_an_embedding_is_not_trained_twice() -> None:
    model = tiny_lm()
    model.new_tokens = (5,)
    with pytest.raises(ConfigError, match="Leave the embedding out"):
        add_lora(model, LoraConfig(modules_to_save=("embed_tokens",)), 0)

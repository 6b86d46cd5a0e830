"""What is found out about a model at load: its head, and whether its layers can share prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from sapwood.attention import register
from sapwood.errors import ModelError
from sapwood.forest import plant
from sapwood.model import LanguageModel, language_model
from sapwood.records import Row
from sapwood.train import SftConfig, StepReport
from sapwood.train.step import accumulate, evaluate, micro_batches
from tiny.models import ARCHITECTURES, SIZES, tiny_model
from train.tiny_training import gradients, random_examples, train, trained_steps

register()

# of transformers' own: kernels that are not installed are replaced by plain ones, and it says so
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")

SCALED: dict[str, tuple[type, dict[str, Any]]] = {
    "granite": (transformers.GraniteConfig, {"logits_scaling": 0.25}),
    "cohere": (transformers.CohereConfig, {"logit_scale": 3.0}),
    "gemma2": (
        transformers.Gemma2Config,
        {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 8},
    ),
}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
UNSHAREABLE: dict[str, tuple[type, dict[str, Any]]] = {
    "lfm2": (transformers.Lfm2Config, {"layer_types": ["conv", "full_attention", "conv"]}),
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        {"head_dim": 8, "layer_types": ["linear_attention", "full_attention", "linear_attention"], **LINEAR, **EXPERTS},
    ),
    "jamba": (
        transformers.JambaConfig,
        {"num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
}


def random_model(
    family: tuple[type, dict[str, Any]], dtype: torch.dtype = torch.float32, *, attention: str = "sdpa", std: float = 0.2
) -> Any:
    """A random model; weights large enough that attention is not nearly uniform."""
    kind, extra = family
    torch.manual_seed(0)
    config = kind(**SIZES, **extra)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    return module


def stock_losses(module: Any, rows: list[Any]) -> list[np.ndarray]:
    """Log-probabilities of completions by the model's own forward, one row at a time."""
    found = []
    with torch.no_grad():
        for row in rows:
            logits = module(input_ids=torch.from_numpy(row.inputs_T)[None], use_cache=False).logits[0, len(row.prompt_T) - 1 :]
            logprob = logits.double().log_softmax(-1)
            found.append(logprob[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)].numpy())
    return found


ROWS = [row for example in random_examples(4) for row in example.rows]


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_scaled_and_capped_heads_are_found(name: str) -> None:
    expected = stock_losses(random_model(SCALED[name], attention="eager"), ROWS)
    model = LanguageModel(random_model(SCALED[name], attention="eager"))
    assert model.notes == []
    unscaled = LanguageModel(random_model(SCALED[name], attention="sapwood"), probe=False)
    for ours, theirs, plain in zip(model.logprobs(ROWS), expected, unscaled.logprobs(ROWS), strict=True):
        assert abs(ours - theirs).max() < 1e-4
        assert abs(plain - theirs).max() > 0.1, "the scale must matter in this test"


def test_a_head_that_is_not_understood_is_refused() -> None:
    module = random_model((transformers.LlamaConfig, {}))
    original = module.forward

    def scaled(*arguments: Any, **keywords: Any) -> Any:
        out = original(*arguments, **keywords)
        out.logits = 5 * out.logits
        return out

    module.forward = scaled
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: its own logits and those .* differ by .* not supported"):
        LanguageModel(module)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_head_never_makes_a_full_matrix_of_logits(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(tiny_model(name, dtype))
    calls = []
    original = language_model.head_logprobs
    monkeypatch.setattr(language_model, "head_logprobs", lambda *given: (calls.append(1), original(*given))[1])
    model.target_logprobs(plant(ROWS))
    assert calls == [1]


@pytest.mark.parametrize("name", UNSHAREABLE)
def test_layers_that_cannot_share_are_found_and_run_row_by_row(name: str) -> None:
    expected = stock_losses(random_model(UNSHAREABLE[name]), ROWS)
    model = LanguageModel(random_model(UNSHAREABLE[name]))
    assert not model.shares_prefixes
    assert len(model.notes) == 1
    assert "cannot share prefixes: it runs row by row" in model.notes[0]
    for ours, theirs in zip(model.logprobs(ROWS), expected, strict=True):
        assert abs(ours - theirs).max() < 1e-4
    examples = random_examples(4)
    assert len(micro_batches(model, examples, 10_000)) == len(ROWS)
    total = -sum(float((values * row.weights_T).sum()) for values, row in zip(expected, ROWS, strict=True))
    weight = sum(float(row.weights_T.sum()) for row in ROWS)
    assert evaluate(model, examples, 10_000).mean_loss == pytest.approx(total / weight, rel=1e-5)
    sums = accumulate(model, examples, 10_000)
    assert sums.mean_loss == pytest.approx(total / weight, rel=1e-5)
    assert sums.unique_tokens == sum(row.length - 1 for row in ROWS), "nothing is saved"


@pytest.mark.parametrize("name", ["lfm2"])
def test_row_by_row_gradients_are_the_plain_ones(name: str) -> None:
    module = random_model(UNSHAREABLE[name])
    model = LanguageModel(module)
    examples = random_examples(4)
    accumulate(model, examples, 1)
    found = gradients(model)
    weight = sum(example.weight for example in examples)
    for row in ROWS:
        logits = module(input_ids=torch.from_numpy(row.inputs_T)[None], use_cache=False).logits[0, len(row.prompt_T) - 1 :]
        logprob = logits.log_softmax(-1)[torch.arange(len(row.completion_T)), torch.from_numpy(row.completion_T)]
        (-(logprob * torch.from_numpy(row.weights_T)).sum() / weight).backward()
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for key in expected:
        assert float((found[key] - expected[key]).abs().max()) < 1e-4 * float(expected[key].abs().max()), key


def test_a_run_of_such_a_model_continues_to_the_bit(tmp_path: Path) -> None:
    config = SftConfig(batch=2, epochs=3, budget=10_000, save_every=2)

    def stop(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    train(tmp_path / "a", config, model=LanguageModel(random_model(UNSHAREABLE["lfm2"])))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", config, model=LanguageModel(random_model(UNSHAREABLE["lfm2"])), report=stop)
    train(tmp_path / "b", config, model=LanguageModel(random_model(UNSHAREABLE["lfm2"])))
    ours, theirs = ([record["loss"] for record in trained_steps(tmp_path / name)] for name in "ab")
    assert len(ours) == 9
    assert ours == theirs
    files = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["lfm2", "jamba"])
def test_layers_that_cannot_share_are_found_whatever_the_weights(name: str) -> None:
    assert not LanguageModel(random_model(UNSHAREABLE[name], std=0.02)).shares_prefixes


def test_rows_of_other_lengths_do_not_change_angles_that_depend_on_the_longest() -> None:
    """longrope takes other factors beyond a length, for the whole pass: a short row beside a long one got the long one's."""
    half = SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [4.0] * half, "factor": 8.0, "original_max_position_embeddings": 32}
    family = (transformers.Phi3Config, {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors}})
    rng = np.random.default_rng(0)
    short, long = (Row(rng.integers(3, 60, length), rng.integers(3, 60, 6), np.ones(6, np.float32)) for length in (10, 60))
    expected = stock_losses(random_model(family), [short, long])
    model = LanguageModel(random_model(family))
    assert "row by row" in model.notes[0]
    for ours, theirs in zip(model.logprobs([short, long]), expected, strict=True):
        assert abs(ours - theirs).max() < 1e-4

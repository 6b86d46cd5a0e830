"""Base and several adapters in one batch: each answer is that of its adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from generate.prompts_and_engines import Letters, nested_prompts, prompts
from sapwood.errors import ConfigError
from sapwood.generate import Engine
from sapwood.model import LanguageModel, LoraConfig, add_lora, save_adapter, trainable_parameters
from sapwood.model.routes import BASE
from sapwood.model.several import add_adapter, use_adapter
from sapwood.records import Completion, SamplingParams
from tiny.models import tiny_model

CONFIGS = {
    "law": LoraConfig(r=4, alpha=8),
    "verse": LoraConfig(r=2, alpha=2, rslora=True),
    "some": LoraConfig(r=3, targets=("q_proj", "down_proj")),
}
PARAMS = SamplingParams(max_new_tokens=8, temperature=1.0, seed=2, prompt_logprobs=True)


def saved(place: Path, name: str, config: LoraConfig, base: LanguageModel) -> Path:
    model = add_lora(base, config, 0)
    generator = torch.Generator().manual_seed(len(name))
    for parameter in trainable_parameters(model).values():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, place / name)
    return place / name


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def several(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    place = tmp_path_factory.mktemp("adapters")
    model = LanguageModel(tiny_model(request.param, torch.float64))
    for name, config in CONFIGS.items():
        model = add_adapter(model, saved(place, name, config, LanguageModel(tiny_model(request.param, torch.float64))), name)
    return model


def alone(model: LanguageModel, name: str, ids: list[list[int]]) -> list[Completion]:
    """A fresh engine, one adapter in force."""
    if name == BASE:
        with model.module.disable_adapter():
            return Engine(model, Letters()).generate(prompts(ids), PARAMS)
    return Engine(use_adapter(model, name), Letters()).generate(prompts(ids), PARAMS)


@pytest.mark.parametrize("schedule", [{}, {"slots": 5, "budget": 20, "min_saving": 1, "keep_from": 1}])
def test_each_answer_is_that_of_its_adapter_alone(several: LanguageModel, schedule: dict[str, Any]) -> None:
    ids, names = nested_prompts(3)[:4], [BASE, *CONFIGS]
    expected = {name: alone(several, name, ids) for name in names}
    assert len({tuple(answers[0].ids) for answers in expected.values()}) == len(names), "the adapters must say different things"
    use_adapter(several, "verse")
    with Engine(several, Letters(), **schedule).open() as session:
        answers = {
            (index, name): session.add(prompt, PARAMS, index=index, adapter=name)
            for index, prompt in enumerate(prompts(ids))
            for name in (*names, None)
        }
        while not session.idle:
            session.step()
    for (index, name), answer in answers.items():
        one = expected["verse" if name is None else name][index]
        assert answer.ids == list(one.ids)
        np.testing.assert_allclose(answer.logprobs, one.logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(answer.prompt_logprobs, one.prompt_logprobs, rtol=0, atol=1e-5)
    assert not any("forward" in layer.__dict__ and "_Routed" in repr(layer.__dict__["forward"]) for layer in several.module.modules())


def test_models_that_run_row_by_row_take_adapters_too() -> None:
    torch.manual_seed(0)
    config = transformers.Lfm2Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["conv", "full_attention"], pad_token_id=0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    stock = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in stock.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    model = add_lora(LanguageModel(stock), LoraConfig(r=2, targets=("q_proj", "w1")), 0)
    assert not model.shares_prefixes
    for parameter in trainable_parameters(model).values():
        parameter.data.add_(0.3)
    ids, params = [[5, 6], [7, 8, 9]], SamplingParams(max_new_tokens=6)
    engine = Engine(model, Letters())
    tuned = engine.generate(prompts(ids), params)
    with model.module.disable_adapter():
        plain = engine.generate(prompts(ids), params)
    assert [answer.ids for answer in engine.generate(prompts(ids), params, adapter="default")] == [answer.ids for answer in tuned]
    assert [answer.ids for answer in engine.generate(prompts(ids), params, adapter=BASE)] == [answer.ids for answer in plain]
    assert tuned[0].ids != plain[0].ids


def test_adapters_that_cannot_share_a_batch_are_refused_by_name(several: LanguageModel, tmp_path: Path) -> None:
    params = SamplingParams(max_new_tokens=2)
    with pytest.raises(ConfigError, match=r"no adapter called 'low'\. Loaded: law, verse, some"):
        Engine(several, Letters()).generate(prompts([[3]]), params, adapter="low")
    odd = add_lora(LanguageModel(tiny_model("llama", torch.float32)), LoraConfig(r=2, dora=True), 0)
    assert Engine(odd, Letters()).generate(prompts([[3]]), params)[0].error is None
    with pytest.raises(ConfigError, match="'default' has DoRA"):
        Engine(odd, Letters()).generate(prompts([[3]]), params, adapter="default")
    bare = LanguageModel(tiny_model("llama", torch.float32))
    assert Engine(bare, Letters()).generate(prompts([[3]]), params, adapter=BASE) == Engine(bare, Letters()).generate(
        prompts([[3]]), params
    )

"""Decoder layers in two calls are the layers of transformers, with an adapter and without; what computes something else stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from generate.prompts_and_engines import Letters, prompts
from model.test_attending import SIZES, adapted, model_of
from sapwood import kernels
from sapwood.attention.plan import TreeAttention
from sapwood.forest import plant
from sapwood.generate import Engine
from sapwood.model import LanguageModel, LoraConfig, add_lora, packed, trainable_parameters
from sapwood.model import layers as module
from sapwood.model.attending import fuse_attention
from sapwood.model.gated import fuse_gates
from sapwood.model.layers import fuse_layers, is_fused_layer
from sapwood.model.norms import fuse_norms
from sapwood.model.routes import BASE, Routes
from sapwood.records import Row, SamplingParams

pytestmark = pytest.mark.skipif(kernels.cpu_kernels() is None, reason=f"no kernels here: {kernels.why_not()}")


@pytest.fixture(autouse=True)
def _small_layers_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1)


def prepared(model: LanguageModel) -> LanguageModel:
    for prepare in (fuse_norms, fuse_gates, fuse_attention, packed.pack, fuse_layers):
        prepare(model.module)
    return model


def layers(model: LanguageModel) -> list[nn.Module]:
    return [layer for layer in model.module.modules() if type(layer).__name__.endswith("DecoderLayer")]


def hidden(model: LanguageModel, *, in_force: bool = True, known: dict[nn.Module, Any] | None = None, through: str | None = None) -> Tensor:
    rng = np.random.default_rng(0)
    forest = plant([Row(rng.integers(0, 97, 30), rng.integers(0, 97, 12), np.ones(12, np.float32)) for _ in range(3)])
    with torch.inference_mode():
        if not in_force:
            return model.hidden(forest.tokens_T, forest.positions_T, TreeAttention(forest))
        with packed.in_force(known), Routes(model).of([through] * len(forest.tokens_T)):
            return model.hidden(forest.tokens_T, forest.positions_T, TreeAttention(forest))


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    own = module._two_calls
    monkeypatch.setattr(module, "_two_calls", lambda *args: calls.append(1) or own(*args))  # type: ignore[func-returns-value]
    return calls


def near(found: Tensor, expected: Tensor, rounding: float = 0.01) -> bool:
    return bool((found.float() - expected.float()).norm() < rounding * expected.float().norm())


@pytest.mark.parametrize("kind", [transformers.LlamaConfig, transformers.Qwen2Config], ids=["llama", "qwen2 with biases"])
@pytest.mark.parametrize("make", [model_of, adapted], ids=["alone", "with an adapter"])
def test_the_states_are_those_of_the_class(make: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(make(kind))
    assert all(is_fused_layer(layer) for layer in layers(model))
    calls = calls_of(monkeypatch)
    expected = hidden(model, in_force=False)
    assert not calls, "outside of a session layers run as they are"
    found = hidden(model)
    assert len(calls) == len(layers(model)) == 2
    assert near(found, expected)


def test_an_adapter_that_was_trained_is_seen_and_one_that_is_off_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(adapted())
    calls = calls_of(monkeypatch)
    before = hidden(model)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-2)
    after = hidden(model)
    assert near(after, hidden(model, in_force=False))
    assert not near(after, before)
    model.module.base_model.disable_adapter_layers()  # type: ignore[operator, union-attr]
    assert near(hidden(model), hidden(model, in_force=False))
    assert not near(hidden(model), after)
    assert len(calls) == 8, "none of these went another way"


def test_adapters_of_an_odd_rank_and_of_some_layers_alone() -> None:
    for config in (LoraConfig(r=3), LoraConfig(r=4, targets=("q_proj", "down_proj")), LoraConfig(r=4, alpha_pattern=("q_proj=64",))):
        model = add_lora(model_of(transformers.LlamaConfig), config, 0)
        torch.manual_seed(1)
        for name, parameter in trainable_parameters(model).items():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        prepared(model)
        assert near(hidden(model), hidden(model, in_force=False), 0.03), "odd ranks are rounded once more outside of a session"


def test_who_watches_a_part_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(model_of(transformers.LlamaConfig))
    calls, seen = calls_of(monkeypatch), []
    layers(model)[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr, operator, arg-type]
    hidden(model)
    assert seen == [1]
    assert len(calls) == 1


def test_what_is_known_of_layers_is_asked_once_and_not_where_rows_are_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(adapted())
    looked: list[int] = []
    own = module._joined
    monkeypatch.setattr(module, "_joined", lambda *args: looked.append(1) or own(*args))  # type: ignore[func-returns-value]
    known: dict[nn.Module, Any] = {}
    expected = hidden(model)
    assert len(looked) == 2
    for _ in range(3):
        assert torch.equal(hidden(model, known=known), expected)
    assert len(looked) == 4, "once a layer"
    assert not near(hidden(model, known=known, through=BASE), expected), "rows that go through no adapter"
    assert torch.equal(hidden(model, known=known), expected)


def test_a_session_forgets_what_it_knew_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(adapted())
    engine = Engine(model, Letters(), pack=True)
    params = SamplingParams(max_new_tokens=6, temperature=1.0, seed=0)
    with engine.open() as session:

        def answer() -> tuple[int, ...]:
            one = session.add(prompts([[5, 6, 7, 8]])[0], params)
            while not session.idle:
                session.step()
            return tuple(one.ids)

        before = answer()
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-9)
        after = answer()
    assert after != before
    assert after == tuple(Engine(model, Letters(), pack=True).generate(prompts([[5, 6, 7, 8]]), params)[0].ids)


@pytest.mark.parametrize("kind", [transformers.Qwen3Config, transformers.Gemma2Config], ids=["norms of queries", "other norms"])
def test_other_layers_keep_their_forward(kind: Any) -> None:
    model = prepared(model_of(kind))
    assert not any(is_fused_layer(layer) for layer in layers(model))
    assert SIZES["num_hidden_layers"] == len(layers(model))
    assert near(hidden(model), hidden(model, in_force=False))

"""An engine that has laid weights out anew never answers with those of before, however they were changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from generate.prompts_and_engines import Letters, nested_prompts, prompts
from sapwood.generate import Engine
from sapwood.model import LanguageModel, LoraConfig, add_lora, packed, trainable_parameters
from sapwood.records import Row, SamplingParams
from sapwood.train import OptimConfig
from sapwood.train.optimizer import Optimizer
from sapwood.train.reference import Reference
from train.tiny_training import tiny_lm

SAMPLING = SamplingParams(max_new_tokens=3, temperature=1.0, seed=5)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if not packed._serves(request.param):
        pytest.skip("this torch has no packed products")
    monkeypatch.setattr(packed, "SMALLEST", 1)
    model = add_lora(tiny_lm(request.param), LoraConfig(r=4), 0)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    yield Engine(model, Letters(), pack=True)
    packed.unpack(model.module)


def train(model: LanguageModel) -> None:
    optimizer = Optimizer(trainable_parameters(model), OptimConfig(lr=0.1))
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)


def base(model: LanguageModel) -> None:
    with torch.no_grad():
        for parameter in model.base.parameters():
            parameter.mul_(1.3)


def switched_off(model: LanguageModel) -> None:
    model.module.base_model.disable_adapter_layers()  # type: ignore[operator, union-attr]


CHANGES: dict[str, Callable[[Any], None]] = {
    "an optimizer's step": train,
    "base weights written to": base,
    "the adapter merged": lambda model: model.module.merge_adapter(),
    "the adapter off": switched_off,
}


def answers(engine: Engine) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    return [(tuple(one.ids), one.logprobs) for one in engine.generate(prompts(nested_prompts(2)[:4]), SAMPLING)]


def scored(engine: Engine) -> Any:
    ids = np.arange(2, 40)
    return engine.model.logprobs([Row(ids[:20], ids[20:], np.ones(18, np.float32))])[0]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_those_that_answer_and_score(engine: Engine, change: str) -> None:
    answers(engine)
    assert packed._COPIES, "packed products were what ran"
    before = scored(engine)
    CHANGES[change](engine.model)
    after = scored(engine)  # no engine has looked at the weights since
    found = answers(engine)
    packed.unpack(engine.model.module)
    assert np.array_equal(after, scored(engine))
    for (ids, logprobs), (own, expected) in zip(found, answers(Engine(engine.model, Letters(), pack=False)), strict=True):
        assert ids == own
        np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-4)
    if change != "the adapter merged":
        assert np.abs(after - before).max() > 0.1, "the change is one that would be seen"


def copies(engine: Engine) -> list[Any]:
    found = [packed._COPIES.get(layer, {}).get("alone") for name, layer in engine.model.module.named_modules() if "lora_" not in name]
    return [copy[1] for copy in found if copy is not None]


def test_copies_of_the_base_outlive_a_step_of_its_adapter(engine: Engine) -> None:
    answers(engine)
    before = copies(engine)
    engine.release()
    train(engine.model)
    answers(engine)
    assert len(before) > 2
    assert all(one is other for one, other in zip(before, copies(engine), strict=True))
    base(engine.model)
    answers(engine)
    assert not any(one is other for one, other in zip(before, copies(engine), strict=True))


def test_the_adapter_unmerged_is_the_one_of_before(engine: Engine) -> None:
    before = scored(engine)
    for change in ("merge_adapter", "unmerge_adapter"):
        answers(engine)
        getattr(engine.model.module, change)()
        found = scored(engine)
        packed.forget(engine.model.module)
        assert np.array_equal(found, scored(engine))
    if engine.model.dtype == torch.float32:  # in bf16 the sum and its undoing round
        np.testing.assert_allclose(found, before, rtol=0, atol=1e-4)


def test_a_reference_in_force_and_out_again(engine: Engine) -> None:
    reference = Reference(engine.model)
    before = scored(engine)
    answers(engine)
    train(engine.model)
    now = scored(engine)
    with reference.in_force():
        assert np.array_equal(scored(engine), before)
    assert np.array_equal(scored(engine), now)

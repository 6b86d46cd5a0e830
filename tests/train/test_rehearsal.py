"""The rehearsal finds in the first minute what would end a run later, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from sapwood.errors import StorageError, TrainingError
from sapwood.forest import unique_tokens
from sapwood.model import LanguageModel, LoraConfig, add_lora, save_adapter, trainable_parameters
from sapwood.records import Example, Row, Source
from sapwood.train import OptimConfig, rehearsal
from sapwood.train.optimizer import Optimizer
from sapwood.train.rehearsal import BUDGETS, rehearse
from sapwood.train.step import forests_of
from train.tiny_training import random_examples, tiny_lm


def lora_and_optimizer(model: LanguageModel | None = None) -> tuple[LanguageModel, Optimizer]:
    wrapped = add_lora(model or tiny_lm(), LoraConfig(r=4), 0)
    return wrapped, Optimizer(trainable_parameters(wrapped), OptimConfig())


def whole_and_optimizer(dtype: torch.dtype = torch.float32) -> tuple[LanguageModel, Optimizer]:
    model = tiny_lm(dtype)
    model.module.requires_grad_(True)
    return model, Optimizer(trainable_parameters(model), OptimConfig())


def row(prompt: int, completion: int, seed: int) -> Row:
    ids = np.random.default_rng(seed).integers(2, 97, prompt + completion)
    return Row(ids[:prompt], ids[prompt:], np.ones(completion, np.float32))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["adapter", "whole", "whole in bf16"])
def test_nothing_is_left_behind(tmp_path: Path, kind: str) -> None:
    dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
    model, optimizer = lora_and_optimizer() if kind == "adapter" else whole_and_optimizer(dtype)
    (tmp_path / "config.yaml").write_text("mine")
    parameters = {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    before, random = files(tmp_path), torch.get_rng_state()
    found = rehearse(model, optimizer, random_examples(5), random_examples(2, seed=3), tmp_path, 500)
    assert found.budget == 500
    assert found.worst_seconds > 0
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameters[name], parameter), name
        assert parameter.grad is None, name
    assert state.keys() == optimizer.state().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in optimizer.state().items())
    assert files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("made", [lora_and_optimizer, whole_and_optimizer])
def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path, made: Any) -> None:
    model, optimizer = made()
    (tmp_path / "run").write_text("a file where the folder should be")
    parameters = {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}
    with pytest.raises(StorageError, match=r"run/\.rehearsal"):
        rehearse(model, optimizer, random_examples(3), [], tmp_path / "run", 500)
    assert all(torch.equal(parameters[name], parameter) for name, parameter in model.module.named_parameters())


def test_an_example_whose_loss_is_not_finite_is_found_wherever_it_hides(tmp_path: Path) -> None:
    """The largest example is always tried; here the token that breaks the model stands in it alone."""
    model, optimizer = lora_and_optimizer()
    with torch.no_grad():
        model.base.get_input_embeddings().weight[1] = torch.nan
    bad = row(60, 5, 1)
    bad.prompt_T[3] = 1
    examples = [*random_examples(6), Example((bad,), Source("made.jsonl", 77))]
    with pytest.raises(TrainingError, match=r"made\.jsonl:77"):
        rehearse(model, optimizer, examples, [], tmp_path, 50)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_the_worst_case_is_what_goes_through_the_model_not_what_is_written(tmp_path: Path) -> None:
    """Ten rows that share 60 of 65 tokens are less work than one row of 120."""
    shared = row(60, 5, 2)
    many = Example(tuple(Row(shared.prompt_T, row(1, 5, n).completion_T, shared.weights_T) for n in range(10)), Source("many", 1))
    long = Example((row(100, 20, 3),), Source("long", 1))
    assert many.length > long.length
    assert unique_tokens(many) < unique_tokens(long)
    model, optimizer = lora_and_optimizer()
    assert rehearse(model, optimizer, [many, long], [], tmp_path, 90).worst_tokens == 119
    model.shares_prefixes = False
    assert rehearsal._largest(model, [many, long]) == (1, 119)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_fastest_budget_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    model, optimizer = lora_and_optimizer()
    asked = []

    def measured(model: LanguageModel, examples: list[Example], budget: int) -> float:
        asked.append(budget)
        return sum(unique_tokens(example) for example in examples) / (2.0 if budget == BUDGETS[best] else 1.0)

    monkeypatch.setattr(rehearsal, "_pass", measured)
    examples = [Example((row(900, 3, n),)) for n in range(9)]
    assert rehearse(model, optimizer, examples, [], tmp_path, None).budget == BUDGETS[best]
    assert [budget for budget in asked if budget in BUDGETS][:3] == list(BUDGETS)


def test_the_budget_that_leaves_fewest_tokens_to_compute_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token takes as long with each: what the steps of the run share counts, not what the largest examples do."""
    model, optimizer = lora_and_optimizer()

    def measured(model: LanguageModel, examples: list[Example], budget: int) -> float:
        return float(sum(forest.num_tokens for forest in forests_of(model, examples, budget)))

    monkeypatch.setattr(rehearsal, "_pass", measured)
    prompt = np.arange(900) % 97
    alike = [Example((Row(np.append(prompt, [n] * 40), np.array([1, 2]), np.ones(2, np.float32)),)) for n in range(20)]
    examples = [*(Example((row(950, 3, n),)) for n in range(9)), *alike]
    for typical, best in ([], 0), ([alike[:8], alike[8:16]], 1), ([alike], 1):
        assert rehearse(model, optimizer, examples, [], tmp_path, None, batch=8, typical=typical).budget == BUDGETS[best]


def test_what_fits_into_the_smallest_budget_needs_no_larger_one(tmp_path: Path) -> None:
    model, optimizer = lora_and_optimizer()
    assert rehearse(model, optimizer, random_examples(4), [], tmp_path, None).budget == BUDGETS[0]


def test_an_adapter_that_is_saved_without_a_tensor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = lora_and_optimizer()

    def dropping(model: LanguageModel, folder: Path) -> None:
        save_adapter(model, folder)
        tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        tensors.pop(sorted(tensors)[3])
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")

    monkeypatch.setattr(rehearsal, "save_adapter", dropping)
    with pytest.raises(TrainingError, match=r"saved, but without .*lora_B"):
        rehearse(model, optimizer, random_examples(3), [], tmp_path, 500)


@pytest.mark.parametrize("damage", ["scaled", "exchanged"])
def test_an_adapter_that_computes_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    model, optimizer = lora_and_optimizer()

    def spoiling(model: LanguageModel, folder: Path) -> None:
        save_adapter(model, folder)
        tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        first, second = (f"base_model.model.model.layers.{n}.mlp.up_proj.lora_B.weight" for n in (0, 1))
        if damage == "scaled":
            tensors[first] *= 1.01
        else:
            tensors[first], tensors[second] = tensors[second], tensors[first]
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")

    monkeypatch.setattr(rehearsal, "save_adapter", spoiling)
    before = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
    with pytest.raises(TrainingError, match="saved and loaded again, but computes something else"):
        rehearse(model, optimizer, random_examples(3), [], tmp_path, 500)
    assert all(torch.equal(before[name], parameter) for name, parameter in trainable_parameters(model).items())
    assert list(tmp_path.iterdir()) == []


def test_a_whole_model_that_is_saved_otherwise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = whole_and_optimizer()
    original = rehearsal.save_whole

    def spoiling(model: LanguageModel, folder: Path) -> None:
        original(model, folder)
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(rehearsal, "save_whole", spoiling)
    with pytest.raises(TrainingError, match=r"1 of its tensors .*model\.layers\.1\.mlp\.up_proj\.weight"):
        rehearse(model, optimizer, random_examples(3), [], tmp_path, 500)


def test_too_little_memory_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = lora_and_optimizer()

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you asked for 9 bytes")

    monkeypatch.setattr(rehearsal, "accumulate", full)
    with pytest.raises(TrainingError, match=r"does not fit into memory\. Lower `budget`"):
        rehearse(model, optimizer, random_examples(3), [], tmp_path, 500)

"""Whole steps on a pretended GPU, in a process of their own; prints as JSON what was read on the host: `pretended_steps.py FOLDER`."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pretended
import torch
import transformers
from torch.nn.attention import flex_attention as torch_flex

from sapwood.attention import plan, register
from sapwood.kernels import on_gpu
from sapwood.model import LanguageModel, LoraConfig, add_lora, lora, train_whole, trainable_parameters
from sapwood.model import on_gpu as layers_on_gpu
from sapwood.records import Example, Row
from sapwood.train.dpo import DpoConfig
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.policy import PolicyConfig
from sapwood.train.preferred import ToPrefer, accumulate_preferences
from sapwood.train.rollouts import Objective, TrainedRow
from sapwood.train.step import accumulate, evaluate

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CONFIGS = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}


def model_of(name: str, dtype: torch.dtype) -> LanguageModel:
    """Random weights on the pretended GPU."""
    register()
    with torch.device("cuda"):
        module = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](**SIZES), attn_implementation="sapwood", dtype=dtype)
    return LanguageModel(module.eval(), probe=False)


def examples() -> list[Example]:
    """Two examples of two rows each behind a shared beginning."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 97, 60)
    rows = [Row(np.concatenate([shared, rng.integers(0, 97, 5)]), rng.integers(0, 97, 9), np.ones(9, np.float32)) for _ in range(4)]
    return [Example(tuple(rows[:2])), Example(tuple(rows[2:]))]


def on_the_gpu(tensors: dict[str, torch.Tensor]) -> None:
    """AdamW counts its updates on the CPU; all else lies beside the parameters."""
    away = [name for name, tensor in tensors.items() if tensor.device.type != "cuda" and not name.startswith("step.")]
    assert not away, away


def imitation(model: LanguageModel) -> None:
    """A supervised step."""
    accumulate(model, examples(), 100)


def preference(model: LanguageModel) -> None:
    """Of pairs."""
    asked = ToPrefer(examples(), [np.zeros(2), np.zeros(2)], DpoConfig(), votes=False)
    accumulate_preferences(model, asked, 1000, draw=(0, 0))


def policy(model: LanguageModel) -> None:
    """Of groups."""
    made = examples()
    nine = np.zeros(9)
    facts = [[TrainedRow(1.0 - 2 * row, nine, row, nine, nine) for row in range(2)] for _ in made]
    accumulate(model, made, 1000, objective=Objective(facts, PolicyConfig(kl=0.1)), weight=4.0)


STEPS: dict[str, Callable[[LanguageModel], None]] = {"imitation": imitation, "preference": preference, "policy": policy}


def step(mode: pretended.Pretended, name: str, dtype: torch.dtype, full: bool, take: Callable[[LanguageModel], None]) -> dict[str, int]:
    """Gradient, update, state and back, evaluation. What was read on the host in the first two."""
    model = model_of(name, dtype)
    if full:
        train_whole(model)
    else:
        with torch.device("cuda"):  # peft makes an adapter on the CPU and moves it, which a module of fake tensors cannot (`stay`)
            model = add_lora(model, LoraConfig(r=4), 0)
    layers_on_gpu.fuse_on_gpu(model.module)
    assert layers_on_gpu.count_on_gpu(model.module) == 2 * SIZES["num_hidden_layers"] + 1 + SIZES["num_hidden_layers"]
    trained = trainable_parameters(model)
    on_the_gpu(dict(trained))  # type: ignore[arg-type]
    optimizer = Optimizer(trained, OptimConfig())
    mode.reads.clear()
    take(model)
    assert all(parameter.grad is not None for parameter in trained.values())
    optimizer.step(1e-3)
    reads = dict(mode.reads)
    state = optimizer.state()
    on_the_gpu(state)
    another = Optimizer(trained, OptimConfig())
    another.restore({key: value.cpu() for key, value in state.items()})  # as a checkpoint is read
    on_the_gpu(another.state())
    take(model)
    another.step(1e-3)
    assert evaluate(model, examples(), 100).losses_B is not None
    model.logprobs([row for example in examples() for row in example.rows])
    return reads


def main(folder: Path) -> None:
    """All cases; evaluation of those of `flex` goes through the kernel's own description, uncompiled: with gradients it asks the engine."""
    pretended.guard(folder)
    torch.autograd.set_multithreading_enabled(False)
    mode = pretended.Pretended()
    pretended.install(mode)
    found: dict[str, Any] = {}
    cases = [
        ("llama", torch.bfloat16, False, "imitation", "flex"),
        ("qwen2", torch.bfloat16, False, "imitation", "plain"),
        ("llama", torch.bfloat16, True, "imitation", "plain"),
        ("qwen2", torch.float32, False, "preference", "plain"),
        ("llama", torch.float32, False, "policy", "plain"),
    ]
    for name, dtype, full, objective, path in cases:
        flexes = path == "flex"
        with (
            mock.patch.object(plan, "flex_serves", lambda *_, flexes=flexes: flexes and not torch.is_grad_enabled()),
            mock.patch.object(lora, "generators_of", return_value=[]),  # the state of its random numbers cannot be pretended
            mock.patch.object(on_gpu, "call", lambda function, _, *given: function(*given)),  # nothing can be compiled
            mock.patch.object(layers_on_gpu, "_agrees", return_value=True),  # nor can numbers be compared
            mock.patch.object(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
            mode,
        ):
            key = f"{name} {str(dtype).removeprefix('torch.')} {'full' if full else 'lora'} {objective} {path}"
            try:
                found[key] = step(mode, name, dtype, full, STEPS[objective])
            except Exception as error:  # noqa: BLE001 - told to the test, whatever it is
                where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
                found[key] = f"{type(error).__name__}: {str(error)[:400]} at {' > '.join(where[-12:])}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

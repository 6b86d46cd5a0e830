"""No option is accepted and ignored: each knob of training, turned, changes something that can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from sapwood.config import from_dict, known_keys, to_dict
from sapwood.model import LanguageModel
from sapwood.run import saved_steps
from sapwood.train import SftConfig
from train.tiny_training import random_examples, tiny_lm, train, trained_steps

BASE: dict[str, Any] = {"batch": 2, "epochs": 2, "budget": 1000, "lora": {"r": 4}, "optim": {"lr": 2e-3}}
RISING: dict[str, Any] = {"eval_every": 1, "optim": {"lr": 1e-2}}
"""With such a rate the held-out loss rises at step 2, and falls below its beginning at step 5."""
BESIDE: dict[str, dict[str, Any]] = {"optim.decay": {"optim": {"schedule": "wsd"}}, "keep_best": RISING, "patience": RISING}
"""Knobs that are read only beside another one: its value, in both runs that are compared."""
TABLE: dict[str, tuple[Any, str]] = {
    "epochs": (3.0, "steps"),
    "max_steps": (3, "steps"),
    "batch": (3, "steps"),
    "seed": (1, "losses"),
    "together": (20, "losses"),
    "budget": (1, "unique tokens"),
    "eval_every": (1, "observed"),
    "save_every": (1, "checkpoints"),
    "keep": (4, "checkpoints"),
    "keep_best": (True, "checkpoints"),
    "patience": (1, "steps"),
    "checkpointing": (True, "passes"),
    "full": (True, "files"),
    "lora.r": (8, "shapes"),
    "lora.alpha": (5.0, "losses"),
    "lora.targets": (("q_proj",), "shapes"),
    "lora.exclude": (("q_proj",), "shapes"),
    "lora.layers": ((0, 2), "shapes"),
    "lora.rank_pattern": (("q_proj=2",), "shapes"),
    "lora.alpha_pattern": (("q_proj=99",), "losses"),
    "lora.rslora": (True, "losses"),
    "lora.dora": (True, "shapes"),
    "lora.init": ("gaussian", "losses"),
    "lora.dropout": (0.5, "losses"),
    "lora.bias": ("all", "shapes"),
    "lora.modules_to_save": (("lm_head",), "shapes"),
    "optim.optimizer": ("adafactor", "losses"),
    "optim.lr": (1e-4, "rates"),
    "optim.schedule": ("linear", "rates"),
    "optim.warmup": (0.5, "rates"),
    "optim.decay": (0.6, "rates"),
    "optim.final": (0.9, "rates"),
    "optim.b_ratio": (16.0, "losses"),
    "optim.weight_decay": (3.0, "losses"),
    "optim.beta1": (0.1, "losses"),
    "optim.beta2": (0.5, "losses"),
    "optim.eps": (1.0, "losses"),
    "optim.max_grad_norm": (0.0, "losses"),
}
"""Knob → a value other than its default, and what of a run it changes."""


def seen(folder: Path, config: SftConfig) -> dict[str, Any]:
    """Everything of a run that a knob may change."""
    observed: list[int] = []
    model = tiny_lm(name="qwen2")  # it has biases
    with passes_of(model) as passes:
        held_out = random_examples(3, seed=2)
        train(folder, config, observe=lambda step, _: observed.append(step), examples=random_examples(6), held_out=held_out, model=model)
    records = trained_steps(folder)
    result = next(
        path for path in (folder / "adapter" / "adapter_model.safetensors", folder / "model" / "model.safetensors") if path.exists()
    )
    return {
        "steps": len(records),
        "losses": [record["loss"] for record in records],
        "rates": [record["lr"] for record in records],
        "unique tokens": [record["unique_tokens"] for record in records],
        "observed": observed,
        "passes": passes[0],
        "checkpoints": saved_steps(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "shapes": {name: tuple(tensor.shape) for name, tensor in safetensors.torch.load_file(result).items()},
    }


@contextmanager
def passes_of(model: LanguageModel) -> Iterator[list[int]]:
    """How often the first layer's attention has been called."""
    count = [0]

    def called(*_: object) -> None:
        count[0] += 1

    handle = model.base.get_decoder().layers[0].self_attn.register_forward_hook(called)
    try:
        yield count
    finally:
        handle.remove()


def config_with(*turned: Mapping[str, Any]) -> SftConfig:
    """The base's values with others over them."""
    merged = dict(BASE)
    for entry in turned:
        for key, value in entry.items():
            merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
    if merged.get("full"):
        del merged["lora"]
    return from_dict(SftConfig, merged, "the test")


@pytest.fixture(scope="module")
def unturned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen(tmp_path_factory.mktemp("unturned"), config_with())


def test_every_knob_has_a_line_in_the_table() -> None:
    assert set(TABLE) == set(known_keys(SftConfig))


@pytest.mark.parametrize("knob", TABLE)
def test_turning_it_changes_what_it_should(tmp_path: Path, knob: str, unturned: dict[str, Any]) -> None:
    value, what = TABLE[knob]
    *outer, name = knob.split(".")
    beside = BESIDE.get(knob, {})
    config = config_with(beside, {outer[0]: {name: value}} if outer else {name: value})
    if beside:
        unturned = seen(tmp_path / "beside", config_with(beside))
    assert to_dict(config) != to_dict(config_with(beside)), "the table's value is the base's"
    found = seen(tmp_path / "turned", config)
    assert found[what] != unturned[what]
    if knob == "checkpointing":
        assert found["losses"] == unturned["losses"], "computing twice must not change what is computed"


def test_two_runs_of_the_same_knobs_are_the_same(tmp_path: Path, unturned: dict[str, Any]) -> None:
    assert seen(tmp_path, config_with()) == unturned

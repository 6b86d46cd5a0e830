"""No option is accepted and ignored: each knob of training, turned, changes something that can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from sapwood.config import from_dict, known_keys, to_dict
from sapwood.train import SftConfig
from sapwood.train.checkpoint import saved_steps
from train.tiny_training import random_examples, train, trained_steps

BASE: dict[str, Any] = {"batch": 2, "epochs": 2, "budget": 1000, "lora": {"r": 4}, "optim": {"lr": 2e-3}}
TABLE: dict[str, tuple[Any, str]] = {
    "epochs": (3.0, "steps"),
    "max_steps": (3, "steps"),
    "batch": (3, "steps"),
    "seed": (1, "losses"),
    "budget": (1, "unique tokens"),
    "eval_every": (1, "observed"),
    "save_every": (1, "checkpoints"),
    "keep": (4, "checkpoints"),
    "full": (True, "files"),
    "lora.r": (8, "shapes"),
    "lora.alpha": (5.0, "losses"),
    "lora.targets": (("q_proj",), "shapes"),
    "lora.rslora": (True, "losses"),
    "optim.lr": (1e-4, "rates"),
    "optim.schedule": ("linear", "rates"),
    "optim.warmup": (0.5, "rates"),
    "optim.final": (0.9, "rates"),
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
    train(folder, config, observe=lambda step, _: observed.append(step), examples=random_examples(6))
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
        "checkpoints": saved_steps(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "shapes": {name: tuple(tensor.shape) for name, tensor in safetensors.torch.load_file(result).items()},
    }


@pytest.fixture(scope="module")
def unturned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen(tmp_path_factory.mktemp("unturned"), from_dict(SftConfig, BASE, "the test"))


def test_every_knob_has_a_line_in_the_table() -> None:
    assert set(TABLE) == set(known_keys(SftConfig))


@pytest.mark.parametrize("knob", TABLE)
def test_turning_it_changes_what_it_should(tmp_path: Path, knob: str, unturned: dict[str, Any]) -> None:
    value, what = TABLE[knob]
    *outer, name = knob.split(".")
    turned = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in BASE.items()}
    target = turned[outer[0]] if outer else turned
    target[name] = value
    config = from_dict(SftConfig, turned, "the test")
    assert to_dict(config) != to_dict(from_dict(SftConfig, BASE, "the test")), "the table's value is the base's"
    assert seen(tmp_path, config)[what] != unturned[what]


def test_two_runs_of_the_same_knobs_are_the_same(tmp_path: Path, unturned: dict[str, Any]) -> None:
    assert seen(tmp_path, from_dict(SftConfig, BASE, "the test")) == unturned

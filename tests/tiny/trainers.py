"""A tiny model and rows for tests of the drop-in face."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from sapwood.trl import SFTConfig, SFTTrainer
from tiny.folder import write_rows

Rows = list[dict[str, Any]]


def quiet(out: Path, **options: Any) -> SFTConfig:
    """Options of a short silent training."""
    return SFTConfig(str(out), **{"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "disable_tqdm": True, **options})


def model_of(folder: Path) -> Any:
    """The model as people load it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer as people load it."""
    return transformers.AutoTokenizer.from_pretrained(folder)


def some_rows(folder: Path, count: int = 30) -> Rows:
    """Conversations with an answer each."""
    return [json.loads(line) for line in write_rows(folder / "rows.jsonl", count).read_text().splitlines()]


def trainer_of(folder: Path, out: Path, rows: Any, **named: Any) -> SFTTrainer:
    """A trainer on a model by name."""
    options = {name: named.pop(name) for name in list(named) if name in {field.name for field in dataclasses.fields(SFTConfig)}}
    return SFTTrainer(model=str(folder), args=quiet(out, **options), train_dataset=rows, **named)


def losses_of(trainer: SFTTrainer) -> list[float]:
    """Every loss of the history."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def notes_of(trainer: SFTTrainer) -> str:
    """What the trainer said on its arguments."""
    return "\n".join([*trainer.args.notes, *trainer._notes])


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

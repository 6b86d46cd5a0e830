"""One process of `sapwood bench memory`.

train   load the model, take two steps of one pass, give the most memory that the process held
plan    what the plan expects of passes of so many unique tokens, from the model's folder alone
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.contestant import Request, serve, versions_of
from sapwood.forest import plant
from sapwood.model import LoraConfig, add_lora, load_model, trainable_parameters
from sapwood.model.checkpointing import checkpoint_layers
from sapwood.records import Example, Row
from sapwood.train import SftConfig
from sapwood.train.measuring import estimate
from sapwood.train.memory import peak_memory
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.step import accumulate

ROWS, APART = 8, 256
"""Rows under one beginning; tokens of a row that shares nothing."""


def rows_of(kind: str, size: int, vocabulary: int) -> list[Row]:
    """Rows of random tokens that hold about `size` unique ones; half of a row's own tokens are trained."""
    rng = np.random.default_rng(size)
    shared, own = (size // 2, size // 2 // ROWS) if kind == "shared" else (0, min(APART, size))
    beginning = rng.integers(0, vocabulary, shared)
    rows = []
    for _ in range(ROWS if kind == "shared" else size // own):
        ids = np.concatenate([beginning, rng.integers(0, vocabulary, own)])
        cut = len(ids) - own // 2
        rows.append(Row(ids[:cut], ids[cut:], np.ones(len(ids) - cut, np.float32)))
    return rows


def train(request: Request) -> dict[str, Any]:
    """Two steps, for moments stand from the second one on."""
    model = add_lora(load_model(Path(request["model"]), request["dtype"]), LoraConfig(), 0)
    if request["checkpointing"]:
        checkpoint_layers(model)
    rows = rows_of(request["kind"], request["size"], model.vocabulary)
    optimizer = Optimizer(trainable_parameters(model), OptimConfig())
    for _ in range(2):
        accumulate(model, [Example((row,)) for row in rows], sys.maxsize)
        optimizer.step(1e-4)
    forest = plant(rows)
    return {"unique_tokens": forest.num_tokens, "row_tokens": forest.row_tokens, "peak_bytes": peak_memory()}


def plan(request: Request) -> dict[str, Any]:
    """Bytes at the peak of a step, as `sapwood plan` would say before a model is there."""
    found, _ = estimate(Path(request["model"]), SftConfig(checkpointing=request["checkpointing"]), request["dtype"], timed=False)
    return {"peaks": [found.peak(tokens) for tokens in request["tokens"]]}


if __name__ == "__main__":
    serve({"train": train, "plan": plan}, versions_of(["sapwood", "torch", "transformers", "peft", "numpy"]))

"""A training loop that anyone would write: transformers, peft and torch alone, one row at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sapwood.train import OptimConfig
from tiny.models import tiny_model
from train.tiny_training import random_examples

STEPS, BATCH, COUNT, SEED = 10, 4, 10, 3
PEAK, FINAL, WARMUP, DECAY = 2e-3, 0.2, 2, 0.1
CONFIG: dict[str, Any] = {
    "epochs": STEPS * BATCH / COUNT,
    "batch": BATCH,
    "seed": SEED,
    "budget": 150,
    "optim": OptimConfig(lr=PEAK, final=FINAL, warmup=WARMUP / STEPS, weight_decay=DECAY, max_grad_norm=0.7),
}
"""The same for Sapwood."""


def stock_model(name: str = "llama", *, tied: bool = False) -> Any:
    """The tiny model with transformers' own attention."""
    module = tiny_model(name, torch.float32, attention="sdpa")
    return tie(module) if tied else module


def tie(module: Any) -> Any:
    """The same model with one matrix for both embeddings."""
    module.config.tie_word_embeddings = True
    module.lm_head.weight = module.model.embed_tokens.weight
    return module


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)


def plain_run(
    module: Any, optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = adamw, *, b_ratio: float = 1.0
) -> list[float]:
    """The loss of each step, and the module trained in place. `b_ratio` scales the rate of what is called lora_B."""
    examples = random_examples(COUNT)
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [parameter], "weight_decay": DECAY if parameter.ndim > 1 else 0.0, "ratio": b_ratio if "lora_B" in name else 1.0}
        for name, parameter in trained.items()
    ]
    stepping = optimizer(groups)
    shuffles = [np.random.Generator(np.random.Philox(key=[SEED, epoch])).permutation(COUNT) for epoch in range(4)]
    line = np.concatenate(shuffles)
    losses = []
    for step in range(STEPS):
        rows = [row for index in line[step * BATCH : (step + 1) * BATCH] for row in examples[index].rows]
        total = sum(float(row.weights_T.sum()) for row in rows)
        loss = torch.zeros(())
        for row in rows:
            ids = torch.from_numpy(np.concatenate([row.prompt_T, row.completion_T]))
            logits = module(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[len(row.prompt_T) - 1 :]
            loss = loss + (nll * torch.from_numpy(row.weights_T)).sum() / total
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 0.7)
        falling = (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - 1 - WARMUP))) / 2
        rate = PEAK * (step + 1) / WARMUP if step < WARMUP else PEAK * (FINAL + (1 - FINAL) * falling)
        for group in stepping.param_groups:
            group["lr"] = rate * group["ratio"]
        stepping.step()
        stepping.zero_grad()
    return losses


def prompt_logits(module: Any) -> torch.Tensor:
    """What a model says to a fixed prompt."""
    ids = torch.from_numpy(random_examples(3, seed=5)[0].rows[0].inputs_T)[None]
    with torch.no_grad():
        logits: torch.Tensor = module.eval()(input_ids=ids, use_cache=False).logits
    return logits

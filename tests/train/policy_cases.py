"""Rows, advantages and log-probabilities on which objectives are compared with another implementation, all from fixed seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sapwood.records import Example, Row
from tiny.models import tiny_model

FILE = Path(__file__).with_name("trl_losses.json")
GROUP, LONGEST, NOISE = 4, 12, 0.35


@dataclass(frozen=True)
class Case:
    """One setting, in both tools' words."""

    name: str
    ours: dict[str, Any]
    theirs: dict[str, Any]


POLICIES = [
    Case("grpo", {"loss": "grpo"}, {"loss_type": "grpo"}),
    Case("dr_grpo", {"loss": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    Case("dapo", {"loss": "dapo", "clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    Case(
        "gspo",
        {"loss": "gspo", "clip_low": 0.03, "clip_high": 0.04},
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    Case("kl", {"loss": "grpo", "kl": 0.04}, {"loss_type": "grpo", "beta": 0.04}),
    Case("overlong", {"loss": "grpo", "mask_overlong": True}, {"loss_type": "grpo", "overlong": True}),
    Case(
        "token-correction",
        {"loss": "dapo", "correction": "token", "correction_cap": 1.1},
        {"loss_type": "dapo", "correction": "token_truncate", "cap": 1.1},
    ),
    Case(
        "sequence-correction",
        {"loss": "dapo", "correction": "sequence", "correction_cap": 2.0},
        {"loss_type": "dapo", "correction": "sequence_mask", "cap": 2.0},
    ),
]
PREFERENCES = [
    Case("sigmoid", {"loss": "sigmoid"}, {"loss_type": "sigmoid"}),
    Case("robust", {"loss": "robust", "smoothing": 0.1}, {"loss_type": "robust", "label_smoothing": 0.1}),
    Case("ipo", {"loss": "ipo"}, {"loss_type": "ipo"}),
    Case("kto", {"good_weight": 1.2}, {"desirable_weight": 1.2}),
]


def module(attention: str) -> Any:
    """The model of all cases, in fp32."""
    return tiny_model("llama", torch.float32, attention=attention)


def groups() -> list[Example]:
    """Two groups of four answers."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(2):
        prompt = rng.integers(2, 97, int(rng.integers(18, 25)))
        completions = [rng.integers(2, 97, int(rng.integers(2, LONGEST + 1))) for _ in range(GROUP)]
        found.append(Example(tuple(Row(prompt, one, np.ones(len(one), np.float32)) for one in completions)))
    return found


REWARDS_PG = np.array([[1.0, 0.0, 0.0, 0.25], [0.5, 1.0, 1.0, 0.0]])
CUT = (2, 5)
"""Rows that were cut at the limit."""


def noise(examples: list[Example], seed: int) -> list[np.ndarray[Any, Any]]:
    """What is added to a row's log-probabilities to make those of another policy."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0, NOISE, len(row.completion_T)) for example in examples for row in example.rows]


def pairs() -> list[Example]:
    """Four pairs of a chosen and a rejected answer; the answers of two begin alike."""
    rng = np.random.default_rng(6)
    found = []
    for number in range(4):
        prompt, common = rng.integers(2, 97, 20), rng.integers(2, 97, 4 * (number % 2))
        ends = [rng.integers(2, 97, int(rng.integers(2, 9))) for _ in range(2)]
        rows = [np.concatenate([common, end]) for end in ends]
        found.append(Example(tuple(Row(prompt, one, np.ones(len(one), np.float32)) for one in rows)))
    return found


REFERENCE_B2 = np.random.default_rng(7).normal(0, 2.0, (4, 2))
"""What is added to the log-probability of each row to make the reference's."""
GOOD = (True, False, True, True)


def probe(gradient: torch.Tensor) -> list[float]:
    """Two numbers that stand for a gradient: its norm, and its product with a fixed vector."""
    flat = gradient.detach().double().flatten()
    return [float(flat.norm()), float(flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64)))]

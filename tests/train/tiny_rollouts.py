"""A tiny model, prompts of random ids, and rewards that read the sampled ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generate.prompts_and_engines import Letters
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.records import Completion, Conversation, Item, Message, Prompt, Rewarded
from sapwood.train.grpo import GrpoConfig, GrpoResult, grpo
from sapwood.train.rollouts import Asked
from train.tiny_training import opened, tiny_lm


def asked(count: int, *, seed: int = 0) -> list[Asked]:
    """Prompts that share their first tokens."""
    rng = np.random.default_rng(seed)
    system = rng.integers(2, 97, 18).tolist()
    found = []
    for number in range(count):
        ids = (*system, *rng.integers(2, 97, int(rng.integers(1, 6))).tolist())
        found.append(Asked(Item(Conversation((Message("user", f"question {number}"),)), number), Prompt((), ids, "")))
    return found


def low_ids(items: Sequence[Item], completions: Sequence[Completion]) -> list[Rewarded]:
    """The share of sampled ids below 40: easy to learn, and hardly ever alike in a group."""
    shares = [float(np.mean([token < 40 for token in one.ids])) for one in completions]
    return [Rewarded(share, {"low": share}, share == 1) for share in shares]


def engine_of(model: LanguageModel) -> Engine:
    """The sampler of a tiny model; its memory is given, so that nothing depends on the machine's."""
    return Engine(model, Letters(), memory=1 << 24)


def reinforce(folder: Path, config: GrpoConfig, *, model: LanguageModel | None = None, judge: Any = low_ids, **calls: Any) -> GrpoResult:
    """One sitting of a run in `folder`, on five prompts."""
    with opened(folder) as run:
        return grpo(model or tiny_lm(), calls.pop("asked", asked(5)), judge, calls.pop("sampler_of", engine_of), config, run, **calls)

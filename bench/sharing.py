"""`sapwood bench sharing`: forward and backward of rows under one prompt, as a forest and with nothing shared.

One process, arms alternating A B A B, the median of each round's ratio. Both arms give the same log-probabilities; the largest
difference is in the result. Without `--model` it takes a random model of SmolLM2-135M's shape: the work does not depend on the weights.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bench.fused_lora import random_model, seconds
from bench.rounds import alternate, at_least, ratio, summary
from bench.setting import commit, machine
from sapwood.cli.options import Json, parse, screen_for
from sapwood.forest import Forest, plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model
from sapwood.model.load import torch_dtype
from sapwood.records import Row

SHARED, APART = "forest", "nothing shared"


@dataclass(frozen=True, kw_only=True)
class SharingBench:
    """The sharing workload."""

    model: Path | None = None
    """A model folder; a random model without one."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of the frozen weights."""
    rows: int = 8
    """Rows in the micro-batch."""
    prompt: int = 480
    """Tokens of the prompt that all rows share."""
    own: int = 130
    """Tokens of each row's own, of which a third is trained."""
    rounds: int = 5
    """Rounds of A B."""

    def __post_init__(self) -> None:
        at_least(1, rows=self.rows, prompt=self.prompt, own=self.own, rounds=self.rounds)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write."""
    config = parse(SharingBench(), "bench sharing", words, "A training pass as a forest, and with nothing shared.")
    screen = screen_for(json)
    base = (
        load_model(config.model, config.dtype, device="cpu")
        if config.model
        else random_model(torch_dtype(config.dtype, torch.device("cpu")))
    )
    model = add_lora(base, LoraConfig(), seed=0)
    shared, apart = trees(model.vocabulary, config)
    difference = largest_difference(model, shared, apart)
    work = {SHARED: lambda: seconds(model, shared), APART: lambda: seconds(model, apart)}
    alternate(work, 1)  # warm up
    times = alternate(work, config.rounds, lambda number, name, took: screen.say(f"round {number + 1}, {name}: {took:.2f} s"))
    found = ratio(times[APART], times[SHARED])
    screen.say(f"{shared.row_tokens:,} row tokens, {shared.num_tokens:,} unique; the forest is {found:.2f} times as fast", "bold")
    for name, taken in times.items():
        screen.say(f"{name:<16}{shared.row_tokens / statistics.median(taken):>8,.0f} row tokens/s")
    screen.say(f"largest difference of a log-probability: {difference:.2g} nats")
    json.write(
        {
            "workload": "sharing",
            "settings": asdict(config),
            "commit": commit(),
            "machine": machine(),
            "ratio": found,
            "times": {name: summary(taken, shared.row_tokens) for name, taken in times.items()},
            "row_tokens": shared.row_tokens,
            "unique_tokens": shared.num_tokens,
            "largest_difference_nats": difference,
        }
    )


def trees(vocabulary: int, config: SharingBench) -> tuple[Forest, Forest]:
    """The same rows as a forest, and apart."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(2, vocabulary, config.prompt)
    answer = max(1, config.own // 3)
    own = rng.integers(2, vocabulary, (config.rows, config.own))
    rows = [Row(np.concatenate([prompt, ids[:-answer]]), ids[-answer:], np.ones(answer, np.float32)) for ids in own]
    shared, apart = plant(rows), plant(rows, min_saving=1 << 40)
    assert shared.row_tokens == apart.row_tokens
    return shared, apart


def largest_difference(model: LanguageModel, shared: Forest, apart: Forest) -> float:
    """Between the two arms, of a log-probability in nats."""
    with torch.inference_mode():
        values = [model.target_logprobs(tree).float().numpy()[tree.target_E] for tree in (shared, apart)]
    return float(np.abs(values[0] - values[1]).max())

"""`sapwood bench fused-lora`: how much faster is a training pass with the fused layers than with peft's and transformers' own?

One process, one micro-batch of rows that share nothing, forward and backward, alternating A B A B … so that whatever else the
machine does meets all arms alike. The median of each round's ratio matters more than seconds on a shared machine.
Without `--model` it takes a random model of SmolLM2-135M's shape: the work does not depend on the weights.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers

from bench.rounds import alternate, at_least, ratio, summary
from bench.setting import commit, machine
from sapwood.attention import NAME, register
from sapwood.cli.options import Json, parse, screen_for
from sapwood.forest import Forest, plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model
from sapwood.model.fused import fuse, unfuse
from sapwood.model.load import torch_dtype
from sapwood.model.norms import fuse_norms, unfuse_norms
from sapwood.records import Row

PLAIN, ARMS = "plain", ("plain", "fused", "fused + norms")


@dataclass(frozen=True, kw_only=True)
class FusedBench:
    """The fused layers' workload."""

    model: Path | None = None
    """A model folder; a random model without one."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of the frozen weights."""
    rows: int = 8
    """Rows in the micro-batch."""
    tokens: int = 252
    """Tokens of each row, of which a fifth is trained."""
    rounds: int = 9
    """Rounds of A B C."""
    threads: int = 0
    """Threads of torch; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        at_least(1, rows=self.rows, rounds=self.rounds)
        at_least(2, tokens=self.tokens)


def run(words: list[str], json: Json) -> None:
    """Measure, show, write."""
    config = parse(FusedBench(), "bench fused-lora", words, "A training pass with the fused layers, and with peft's and transformers' own.")
    screen = screen_for(json)
    if config.threads:
        torch.set_num_threads(config.threads)
    base = (
        load_model(config.model, config.dtype, device="cpu")
        if config.model
        else random_model(torch_dtype(config.dtype, torch.device("cpu")))
    )
    model = add_lora(base, LoraConfig(), 0)
    forest = micro_batch(config.rows, config.tokens, model.vocabulary)
    work = {arm: partial(one_arm, model, forest, arm) for arm in ARMS}
    alternate(work, 1)  # warm up
    times = alternate(work, config.rounds)
    screen.say(f"{config.dtype}, {config.rows} × {config.tokens} tokens, {torch.get_num_threads()} threads, {config.rounds} rounds")
    for arm, taken in times.items():
        found = summary(taken, forest.row_tokens)
        screen.say(f"{arm:<14} median {found['median_seconds']:6.2f} s, {ratio(times[PLAIN], taken):.2f} times as fast as plain")
    json.write(
        {
            "workload": "fused-lora",
            "settings": {**asdict(config), "threads": torch.get_num_threads()},
            "commit": commit(),
            "machine": machine(),
            "ratio": ratio(times[PLAIN], times[ARMS[-1]]),
            "ratio_of_each": {arm: ratio(times[PLAIN], taken) for arm, taken in times.items()},
            "times": {arm: summary(taken, forest.row_tokens) for arm, taken in times.items()},
        }
    )


def one_arm(model: LanguageModel, forest: Forest, arm: str) -> float:
    """Switch the layers, then the seconds of one pass."""
    switch(model, arm)
    return seconds(model, forest)


def random_model(dtype: torch.dtype, **changed: int) -> LanguageModel:
    """Random weights in SmolLM2-135M's shape, or with some of it changed, by the names of transformers' config."""
    shape = {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    config = transformers.LlamaConfig(**(shape | changed), tie_word_embeddings=True)
    register()
    torch.manual_seed(0)
    return LanguageModel(transformers.AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype).eval(), probe=False)


def micro_batch(rows: int, tokens: int, vocabulary: int) -> Forest:
    rng = np.random.default_rng(0)
    answer = max(1, tokens // 5)
    ids = rng.integers(2, vocabulary, (rows, tokens))
    return plant([Row(row[:-answer], row[-answer:], np.ones(answer, np.float32)) for row in ids])


def seconds(model: LanguageModel, forest: Forest) -> float:
    begin = time.perf_counter()
    (-model.target_logprobs(forest).sum()).backward()  # type: ignore[no-untyped-call]
    took = time.perf_counter() - begin
    model.module.zero_grad()
    return took


def switch(model: LanguageModel, arm: str) -> None:
    (fuse if arm != "plain" else unfuse)(model.module)
    (fuse_norms if arm == "fused + norms" else unfuse_norms)(model.module)

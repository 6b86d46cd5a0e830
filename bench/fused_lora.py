"""How much faster is a training pass with the fused layers than with peft's and transformers' own?

    python bench/fused_lora.py [--model FOLDER] [--dtype bf16] [--rows 8] [--tokens 252] [--rounds 9] [--threads 2]

One process, one micro-batch of rows that share nothing, forward and backward, alternating A B A B … so that whatever else the
machine does meets both alike. Prints the medians and, which matters more on a shared machine, the median of each round's ratio.
Without `--model` it takes a random model of SmolLM2-135M's shape: the work does not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from sapwood.attention import NAME, register
from sapwood.forest import Forest, plant
from sapwood.model import LanguageModel, LoraConfig, add_lora, load_model
from sapwood.model.fused import fuse, unfuse
from sapwood.model.load import torch_dtype
from sapwood.model.norms import fuse_norms, unfuse_norms
from sapwood.records import Row


def random_model(dtype: torch.dtype) -> LanguageModel:
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    register()
    torch.manual_seed(0)
    return LanguageModel(transformers.AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype).eval(), probe=False)


def micro_batch(rows: int, tokens: int, vocabulary: int) -> Forest:
    rng = np.random.default_rng(0)
    answer = tokens // 5
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=252)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = load_model(given.model, given.dtype) if given.model else random_model(torch_dtype(given.dtype))
    model = add_lora(base, LoraConfig(), 0)
    forest = micro_batch(given.rows, given.tokens, model.vocabulary)
    arms = ("plain", "fused", "fused + norms")
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for round_number in range(given.rounds + 1):
        for arm in arms:
            switch(model, arm)
            took = seconds(model, forest)
            if round_number > 0:  # the first warms up
                times[arm].append(took)
    print(f"{given.dtype}, {given.rows} × {given.tokens} tokens, {given.threads} threads, {given.rounds} rounds")
    for arm in arms:
        ratios = [plain / took for plain, took in zip(times["plain"], times[arm], strict=True)]
        print(
            f"{arm:14s} median {statistics.median(times[arm]):6.2f} s   least {min(times[arm]):6.2f} s   plain / this: "
            f"median {statistics.median(ratios):.2f}, least against least {min(times['plain']) / min(times[arm]):.2f}"
        )


if __name__ == "__main__":
    main()

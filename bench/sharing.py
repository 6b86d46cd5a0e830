"""What sharing saves: forward and backward of rows under one prompt, as a forest and with nothing shared.

    python bench/sharing.py [--model FOLDER] [--dtype bf16] [--rows 8] [--prompt 480] [--own 130] [--rounds 5]

One process, arms alternating A B A B, medians of each round's ratio. Both arms give the same log-probabilities; the largest
difference is printed beside the ratio. Without `--model` it takes a random model of SmolLM2-135M's shape.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from fused_lora import random_model, seconds

from sapwood.forest import plant
from sapwood.model import LoraConfig, add_lora, load_model
from sapwood.model.load import torch_dtype
from sapwood.records import Row


def main() -> None:
    """Print one line for each round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    for name, default in (("rows", 8), ("prompt", 480), ("own", 130), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()

    base = load_model(chosen.model, chosen.dtype) if chosen.model else random_model(torch_dtype(chosen.dtype))
    model = add_lora(base, LoraConfig(), seed=0)
    rng = np.random.default_rng(0)
    prompt = rng.integers(2, model.vocabulary, chosen.prompt)
    answer = chosen.own // 3
    own = rng.integers(2, model.vocabulary, (chosen.rows, chosen.own))
    rows = [Row(np.concatenate([prompt, ids[:-answer]]), ids[-answer:], np.ones(answer, np.float32)) for ids in own]
    shared, apart = plant(rows), plant(rows, min_saving=1 << 40)
    assert shared.row_tokens == apart.row_tokens

    with torch.inference_mode():
        values = [model.target_logprobs(tree).float().numpy()[tree.target_E] for tree in (shared, apart)]
    print(f"largest difference of a log-probability: {np.abs(values[0] - values[1]).max():.2g} nats")
    times: dict[str, list[float]] = {"forest": [], "nothing shared": []}
    for trees in (shared, apart):  # warm up
        seconds(model, trees)
    for number in range(chosen.rounds):
        times["forest"].append(seconds(model, shared))
        times["nothing shared"].append(seconds(model, apart))
        print(f"round {number + 1}: forest {times['forest'][-1]:.2f} s, nothing shared {times['nothing shared'][-1]:.2f} s", flush=True)
    ratios = [b / a for a, b in zip(times["forest"], times["nothing shared"], strict=True)]
    print(f"{shared.row_tokens} row tokens, {shared.num_tokens} unique; nothing shared / forest: {statistics.median(ratios):.2f}")
    for name, taken in times.items():
        print(f"{name}: {shared.row_tokens / statistics.median(taken):,.0f} row tokens a second")


if __name__ == "__main__":
    main()

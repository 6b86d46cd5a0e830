"""What drawing 32 tokens costs, by setting: the kernel beside torch, on a model's own logits. In bf16, one thread.

    python -m bench.drawing MODEL_FOLDER

In: a model folder. Out: milliseconds of processor time (least of many, settings in turns), and times what plain temperature takes by the
kernel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sapwood.chat import Chat
from sapwood.generate.penalties import Seen, edited
from sapwood.generate.sampling import sample, sample_at_once
from sapwood.records import SamplingParams

TEXT = (
    "Once upon a time there was a tree that gave sweet sap in spring, and people came from far to taste it. They asked the old woman who "
    "lived beside it: why does it rise, and where does it come from?"
)
SETTINGS = {
    "greedy": SamplingParams(),
    "temperature 0.8": SamplingParams(temperature=0.8),
    "with top-p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "top-p 0.95 at temperature 1": SamplingParams(temperature=1.0, top_p=0.95),
    "with top-k 40": SamplingParams(temperature=0.8, top_k=40),
    "with min-p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "with top-k 50, top-p 0.9, min-p 0.02": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02),
    "with repetition penalty 1.1": SamplingParams(temperature=0.8, repetition_penalty=1.1),
}
PLAIN = "temperature 0.8"


def logits_of(folder: Path, rows: int) -> tuple[torch.Tensor, list[int]]:
    """(rows, V) behind the first tokens of a text, and these."""
    ids = Chat.load(folder).tokens.encode(TEXT)[:rows]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].contiguous(), ids


def measure(logits_NV: torch.Tensor, ids: list[int], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds by (kernel, torch) of each setting."""
    count = len(logits_NV)
    uniform_N = np.random.default_rng(0).random(count)
    seen = [Seen(ids, 1)] * count

    def changed(params: SamplingParams) -> object:
        return edited(logits_NV, range(count), seen, [params] * count) if params.repetition_penalty != 1 else None

    def kernel(params: SamplingParams) -> None:
        found = sample_at_once(logits_NV, [params] * count, uniform_N, None, changed(params))  # type: ignore[arg-type]
        assert found is not None, "there are no kernels here"

    def by_torch(params: SamplingParams) -> None:
        edits, copy = changed(params), None
        if edits is not None:
            copy = logits_NV.float()
            copy[edits.row_E, edits.id_E] = edits.value_E  # type: ignore[attr-defined]
        sample(logits_NV, params, uniform_N, copy)

    best = {name: [float("inf")] * 2 for name in SETTINGS}
    ways: tuple[Callable[[SamplingParams], None], ...] = (kernel, by_torch)
    for _ in range(rounds):
        for name, params in SETTINGS.items():
            for place, draw in enumerate(ways):
                began = time.process_time()
                draw(params)
                best[name][place] = min(best[name][place], time.process_time() - began)
    return {name: (one, other) for name, (one, other) in best.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(*logits_of(given.folder, 32), given.rounds)
    plain = found[PLAIN][0]
    for name, (one, other) in found.items():
        print(f"{name:40} kernel {1e3 * one:7.2f} ms ({one / plain:5.2f})   torch {1e3 * other:7.2f} ms ({other / plain:6.1f})")


if __name__ == "__main__":
    main()

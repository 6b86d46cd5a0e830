"""The table of docs/generation.md: the engine beside transformers' `generate` and the training path, on every tiny architecture.

PYTHONPATH=tests python -m generate.parity_table
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from generate.prompts_and_engines import Letters, engine, greedy_by_transformers, model, nested_prompts, prompts
from sapwood.records import Completion, Row, SamplingParams
from tiny.models import ARCHITECTURES

NEW = 14
NEAR = 1e-4
"""Top two log-probabilities as near as this may change places by rounding."""


@dataclass(frozen=True)
class Parity:
    """Counts of tokens."""

    compared: int
    near: int
    """Places where the top two lie within `NEAR`."""
    different: int
    """Places where the tokens differ and the top two do not lie that near. What follows a difference is not compared."""
    largest: float
    """Largest difference of a log-probability from the training path's, of sampled tokens and of prompts."""


@cache
def parity(name: str) -> Parity:
    """Prompts that share beginnings at four depths, in a batch of four."""
    ids = nested_prompts(1)
    params = SamplingParams(max_new_tokens=NEW, top_logprobs=2, prompt_logprobs=True)
    found = engine(name, Letters(), slots=4, min_saving=1, keep_from=30).generate(prompts(ids), params)
    compared = near = different = 0
    for prompt, completion in zip(ids, found, strict=True):
        expected = greedy_by_transformers(name, prompt, NEW)
        for place, (token, wanted) in enumerate(zip(completion.ids, expected, strict=False)):
            (_, best), (_, second) = completion.top_logprobs[place]
            compared, near = compared + 1, near + (best - second < NEAR)
            if token != wanted:
                different += best - second >= NEAR
                break
        else:
            different += len(completion.ids) != len(expected)
    return Parity(compared, near, different, max(_largest(name, prompt, one) for prompt, one in zip(ids, found, strict=True)))


def _largest(name: str, prompt: list[int], completion: Completion) -> float:
    whole = np.array([*prompt, *completion.ids])
    rows = [Row(whole[:1], whole[1:], np.ones(len(whole) - 1, np.float32))]
    found = np.array([*completion.prompt_logprobs, *completion.logprobs])
    return float(np.abs(found - model(name).logprobs(rows)[0]).max())


def table() -> list[str]:
    """Markdown lines."""
    lines = [
        "| architecture | tokens compared | top two within 1e-4 | different | log-probabilities beyond 1e-5 |",
        "|---|---|---|---|---|",
    ]
    for name in ARCHITECTURES:
        found = parity(name)
        beyond = "none" if found.largest <= 1e-5 else f"{found.largest:.1e}"
        lines.append(f"| {name} | {found.compared} | {found.near} | {found.different} | {beyond} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

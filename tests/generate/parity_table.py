"""The table of docs/generation.md: the engine beside transformers' `generate` and the training path, on every tiny architecture.

PYTHONPATH=tests python -m generate.parity_table
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from generate.prompts_and_engines import Letters, engine, greedy_by_transformers, model, nested_prompts, prompts, rounding, wide_model
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.records import Completion, Row, SamplingParams
from tiny.models import ARCHITECTURES, fp64_norms

NEW = 14
NEAR = 1e-4
"""Top two log-probabilities as near as this may change places by rounding."""
EXACT = 1e-10
"""Nats by which fp64 may round."""


@dataclass(frozen=True)
class Parity:
    """Counts of tokens."""

    compared: int
    near: int
    """Places where the top two lie within `NEAR`."""
    different: int
    """Places where the tokens differ and the top two do not lie that near. What follows a difference is not compared."""
    largest: float
    """Largest difference of a log-probability from the training path's, of sampled tokens and of prompts, in nats."""
    largest_wide: float
    """The same in fp64, where rounding hides nothing."""


@cache
def parity(name: str) -> Parity:
    """Prompts that share beginnings at four depths, in a batch of four."""
    ids = nested_prompts(1)
    params = SamplingParams(max_new_tokens=NEW, top_logprobs=2, prompt_logprobs=True)
    schedule: dict[str, Any] = {"slots": 4, "min_saving": 1, "keep_from": 30}
    found = engine(name, Letters(), **schedule).generate(prompts(ids), params)
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
    with fp64_norms(wide_model(name).module):
        wide = _largest(wide_model(name), Engine(wide_model(name), Letters(), **schedule).generate(prompts(ids), params))
    return Parity(compared, near, different, _largest(model(name), found), wide)


def _largest(one: LanguageModel, completions: Sequence[Completion]) -> float:
    wholes = [np.array([*completion.prompt.ids, *completion.ids]) for completion in completions]
    rows = [Row(whole[:1], whole[1:], np.ones(len(whole) - 1, np.float32)) for whole in wholes]
    found = [np.array([*completion.prompt_logprobs, *completion.logprobs]) for completion in completions]
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(found, one.logprobs(rows), strict=True))


def table() -> list[str]:
    """Markdown lines."""
    lines = [
        "| architecture | tokens compared | top two within 1e-4 | different "
        "| log-probabilities beyond 1e-10 in fp64 | beyond rounding in fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for name in ARCHITECTURES:
        found = parity(name)
        wide = "none" if found.largest_wide <= EXACT else f"{found.largest_wide:.1e}"
        narrow = "none" if found.largest <= rounding(name) else f"{found.largest:.1e}"
        lines.append(f"| {name} | {found.compared} | {found.near} | {found.different} | {wide} | {narrow} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

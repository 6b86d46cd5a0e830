"""Prompts, engines and references for the tests of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from sapwood.attention import register
from sapwood.chat.parsing import Answer
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.records import Completion, Message, Prompt, Row
from tiny.models import fp64_norms, tiny_model

register()


class Letters:
    """A chat of one word a token: `t7` is token 7."""

    def __init__(self, stop_ids: Sequence[int] = (1,), context_length: int | None = 200) -> None:
        self.stop_ids = frozenset(stop_ids)
        self.context_length = context_length

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"t{token} " for token in ids)

    def parse(self, answer: str | Sequence[int], prompt: Prompt) -> Answer:
        text = answer if isinstance(answer, str) else self.decode([token for token in answer if token not in self.stop_ids])
        return Answer(Message("assistant", text), True)


@cache
def model(name: str) -> LanguageModel:
    """A tiny model in fp32."""
    return LanguageModel(tiny_model(name, torch.float32))


@cache
def wide_model(name: str) -> LanguageModel:
    """The same weights in fp64. Its norms compute in fp64 inside `fp64_norms` alone."""
    return LanguageModel(tiny_model(name, torch.float64))


ROUNDING = 4.0
"""How much further than training's own fp32 is from fp64 the engine's may be from training's.

Both do the same sums in another order, so both are about as far from the truth, on any processor: on one with 16 lanes the engine was
0.4 to 2.1 times as far from training as training was from fp64 (some 1e-5 nats). A fixed bound would hold a processor to the
rounding of another one.
"""


@cache
def rounding(name: str) -> float:
    """What fp32 may do to a log-probability of this model, in nats: `ROUNDING` times the most that it does to training's own."""
    rows = [Row(np.array(ids[:1]), np.array(ids[1:]), np.ones(len(ids) - 1, np.float32)) for ids in nested_prompts(2) if len(ids) > 1]
    with fp64_norms(wide_model(name).module):
        truth = np.concatenate(wide_model(name).logprobs(rows))
    own = float(np.abs(np.concatenate(model(name).logprobs(rows)) - truth).max())
    assert own < 5e-5, "fp32 rounds these tiny models by some 1e-5 nats: far more is an error, not rounding"
    return ROUNDING * own


@cache
def stock_model(name: str) -> Any:
    """The same weights with transformers' own attention."""
    return tiny_model(name, torch.float32, attention="sdpa")


def prompts(ids: Sequence[Sequence[int]]) -> list[Prompt]:
    return [Prompt((), tuple(map(int, sequence)), "") for sequence in ids]


def nested_prompts(seed: int) -> list[list[int]]:
    """Prompts that share beginnings at four depths, contain one another, are identical, or are one token long."""
    rng = np.random.default_rng(seed)
    found: list[list[int]] = []

    def grow(path: list[int], level: int) -> None:
        path = path + rng.integers(2, 97, rng.integers(1, 14)).tolist()
        if level == 4 or rng.random() < 0.3:
            found.append(path)
        if level < 4:
            for _ in range(rng.integers(1, 3)):
                grow(path, level + 1)

    grow([], 1)
    grow([], 1)
    chosen = [found[index] for index in rng.permutation(len(found))[:7]]
    return [*chosen, chosen[0], chosen[0], [5], [5], [6]]


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"slots": 1},
    {"slots": 3, "budget": 16, "min_saving": 1},
    {"slots": 5, "budget": 7, "min_saving": 1, "keep_from": 1},
    {"slots": 4, "min_saving": 1, "keep_from": 30},
]


def engine(name: str, chat: Letters | None = None, **schedule: Any) -> Engine:
    return Engine(model(name), chat or Letters(), **schedule)


def row_of(limit: int, step: str) -> int:
    """Tokens of memory that an answer of so many tokens takes beside its prompt, in tests of short prompts."""
    return limit if step == "static" else 128


def ids_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [list(completion.ids) for completion in completions]


def greedy_by_transformers(name: str, ids: Sequence[int], new: int) -> list[int]:
    """transformers' own `generate`, one prompt at a time."""
    return list(_greedy(name, tuple(map(int, ids)), new))


@cache
def _greedy(name: str, ids: tuple[int, ...], new: int) -> tuple[int, ...]:
    out = stock_model(name).generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=0,
    )
    return tuple(out[0, len(ids) :].tolist())

"""A tiny model, random examples that share beginnings, and runs of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sapwood.attention import register
from sapwood.model import LanguageModel
from sapwood.records import Example, Row, Source
from sapwood.run import open_run, step_records
from sapwood.train import SftConfig, SftResult, sft
from tiny.models import tiny_model

register()

VOCABULARY = 97


def tiny_lm(dtype: torch.dtype = torch.float32, *, seed: int = 0, name: str = "llama") -> LanguageModel:
    """A fresh random model; the same weights for the same seed."""
    return LanguageModel(tiny_model(name, dtype, seed=seed), probe=False)


def random_examples(count: int, *, seed: int = 0, weighted: bool = True) -> list[Example]:
    """Examples of one or two rows; all begin with the same 20 tokens, so that micro-batches share."""
    rng = np.random.default_rng(seed)
    system = rng.integers(2, VOCABULARY, 20)
    examples = []
    for line in range(count):
        path = np.concatenate([system, rng.integers(2, VOCABULARY, rng.integers(1, 8))])
        rows = []
        for _ in range(rng.integers(1, 3)):
            completion = rng.integers(2, VOCABULARY, rng.integers(2, 9))
            weights = rng.random(len(completion)) if weighted else np.ones(len(completion))
            rows.append(Row(path, completion, weights.astype(np.float32)))
            path = np.concatenate([path, completion, rng.integers(2, VOCABULARY, 3)])
        examples.append(Example(tuple(rows), Source("made.jsonl", line + 1)))
    return examples


def train(
    folder: Path,
    config: SftConfig,
    *,
    examples: Sequence[Example] | None = None,
    held_out: Sequence[Example] = (),
    model: LanguageModel | None = None,
    **calls: Any,
) -> SftResult:
    """One sitting of a run in `folder`, on six random examples where none are given."""
    with opened(folder) as run:
        return sft(model or tiny_lm(), random_examples(6) if examples is None else examples, held_out, config, run, **calls)


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """An open run whose lock is given back."""
    run = open_run(folder)
    try:
        yield run
    finally:
        run.close()


def trained_steps(folder: Path) -> list[dict[str, Any]]:
    """What a run logged about its training steps, each once."""
    return [record for record in step_records(folder / "metrics.jsonl") if record["kind"] == "train"]


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Gradients that stand in the parameters, which are cleared."""
    found = {name: parameter.grad.clone() for name, parameter in model.module.named_parameters() if parameter.grad is not None}
    model.module.zero_grad()
    return found

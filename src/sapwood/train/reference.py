"""The model as it was before step 1: what a policy must not drift from, and what preferences are measured against.

In: a model with its trainable part in place. Out: the same model with the values of before, for as long as a block lasts. A fresh
adapter begins as no change at all, so that this is the base model with the adapter off; an adapter or a whole model that was
trained before is its own reference. The copy is as large as what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from sapwood.model import LanguageModel, trainable_parameters
from sapwood.records import Example
from sapwood.train.step import micro_batches


class Reference:
    """Values of before step 1. Make it before anything is restored or trained."""

    def __init__(self, model: LanguageModel) -> None:
        self._parameters = trainable_parameters(model)
        self._before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The model computes as it did before step 1."""
        now = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            self._write(self._before)
            yield
        finally:
            self._write(now)

    def _write(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])


def row_logprobs(
    model: LanguageModel, examples: Sequence[Example], budget: int, *, temperature: float = 1.0
) -> list[list[NDArray[np.float64]]]:
    """The log-probability of each completion token of each row of each example, as training computes it, in nats."""
    found: list[list[NDArray[np.float64]]] = [[] for _ in examples]
    with torch.inference_mode():
        for batch in micro_batches(model, examples, budget):
            forest = batch.forest
            value_E = model.target_logprobs(forest, temperature=temperature).double().cpu().numpy()[forest.target_E]
            rows = np.split(value_E, np.flatnonzero(np.diff(forest.row_E)) + 1)
            for index in batch.examples:
                count = 1 if not model.shares_prefixes else len(examples[index].rows)
                found[index] += rows[:count]
                rows = rows[count:]
    return found


def by_rows(examples: Sequence[Example]) -> list[Example]:
    """Each row as an example of its own: for objectives that see one row at a time, where a model runs row by row."""
    return [Example((row,), example.source, example.meta) for example in examples for row in example.rows]

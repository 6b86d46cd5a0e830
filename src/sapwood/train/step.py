"""One optimizer step: every micro-batch forward and backward, one division by the step's total weight, one update.

The division is by the weight of the whole step, so that neither the budget of a micro-batch nor the number of devices
changes the gradient. Evaluation keeps sums, never logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sapwood.errors import TrainingError
from sapwood.forest import MicroBatch, cut
from sapwood.model import LanguageModel
from sapwood.records import Example
from sapwood.train.objectives import supervised


@dataclass(frozen=True, slots=True)
class Sums:
    """What one pass over examples adds up to."""

    loss: float
    """Σ -weight · log p, in nats."""
    weight: float
    row_tokens: int
    """Tokens of the rows as given, shared ones in every row."""
    unique_tokens: int
    """Tokens that went through the model."""

    @property
    def mean_loss(self) -> float:
        """Nats a unit of weight: a token, where no weights are given."""
        return self.loss / self.weight


def micro_batches(model: LanguageModel, examples: Sequence[Example], budget: int) -> list[MicroBatch]:
    """Cut a step's examples; a model that cannot share prefixes gets one row a micro-batch."""
    if model.shares_prefixes:
        return cut(examples, budget)
    return [
        MicroBatch((index,), batch.forest)
        for index, example in enumerate(examples)
        for row in example.rows
        for batch in cut([Example((row,))], 0)
    ]


def accumulate(model: LanguageModel, examples: Sequence[Example], budget: int) -> Sums:
    """Gradient of the step's mean loss, left in the parameters. Raises `TrainingError` before any update if it is not finite."""
    weight = sum(example.weight for example in examples)
    loss, row_tokens, unique = 0.0, 0, 0
    for batch in micro_batches(model, examples, budget):
        batch_loss = supervised(model.target_logprobs(batch.forest), batch.forest)
        value = float(batch_loss.detach())
        if not math.isfinite(value):
            places = ", ".join(examples[index].where for index in batch.examples[:5])
            raise TrainingError(
                f"The loss became {value} on {places}. Nothing was updated with it. Lower optim.lr, or look at these rows with "
                "`sapwood doctor`."
            )
        (batch_loss / weight).backward()  # type: ignore[no-untyped-call]
        loss, row_tokens, unique = loss + value, row_tokens + batch.forest.row_tokens, unique + batch.forest.num_tokens
    return Sums(loss, weight, row_tokens, unique)


def evaluate(model: LanguageModel, examples: Sequence[Example], budget: int) -> Sums:
    """The same sums without gradients."""
    loss, row_tokens, unique = 0.0, 0, 0
    with torch.inference_mode():
        for batch in micro_batches(model, examples, budget):
            loss += float(supervised(model.target_logprobs(batch.forest), batch.forest))
            row_tokens, unique = row_tokens + batch.forest.row_tokens, unique + batch.forest.num_tokens
    return Sums(loss, sum(example.weight for example in examples), row_tokens, unique)

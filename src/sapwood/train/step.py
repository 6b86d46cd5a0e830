"""One optimizer step: every micro-batch forward and backward, one division by the step's total weight, one update.

The division is by the weight of the whole step, so that neither the budget of a micro-batch nor the number of devices
changes the gradient. Evaluation keeps sums, never logits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.errors import TrainingError
from sapwood.forest import Forest, MicroBatch, cut, unique_tokens
from sapwood.model import LanguageModel, drawing
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
    losses_B: NDArray[np.float64] | None = None
    """The loss of each example, where it was asked for: of an evaluation."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What the objective counted beside its loss."""

    @property
    def mean_loss(self) -> float:
        """Nats a unit of weight: a token, where no weights are given."""
        return self.loss / self.weight


Objective = Callable[[Tensor, MicroBatch], tuple[Tensor, Mapping[str, float]]]
"""From the log-probability of each target of a micro-batch to a sum, and counts that add up over micro-batches."""


def _imitation(logprob_N: Tensor, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
    return supervised(logprob_N, batch.forest), {}


def micro_batches(model: LanguageModel, examples: Sequence[Example], budget: int, *, share: bool = True) -> list[MicroBatch]:
    """Cut a step's examples; a model that cannot share prefixes gets one row a micro-batch."""
    if model.shares_prefixes:
        return cut(examples, budget, share=share)
    return [
        MicroBatch((index,), batch.forest)
        for index, example in enumerate(examples)
        for row in example.rows
        for batch in cut([Example((row,))], 0)
    ]


def forests_of(model: LanguageModel, examples: Sequence[Example], budget: int) -> list[Forest]:
    """The passes of a step, as `accumulate` makes them."""
    return [batch.forest for batch in micro_batches(model, examples, budget, share=not model.draws)]


def tokens_in_a_pass(model: LanguageModel, example: Example) -> int:
    """Tokens of one example in a training pass: unique ones, all where nothing is shared, the longest row's where rows run alone."""
    if not model.shares_prefixes:
        return max(row.length for row in example.rows) - 1
    return unique_tokens(example, share=not model.draws)


def accumulate(
    model: LanguageModel,
    examples: Sequence[Example],
    budget: int,
    *,
    draw: tuple[int, int] = (0, 0),
    objective: Objective = _imitation,
    weight: float | None = None,
    temperature: float = 1.0,
) -> Sums:
    """Gradient of the step's mean loss, left in the parameters. Raises `TrainingError` before any update if it is not finite.

    `draw` is (seed, step): what dropout draws is a function of it and of the budget. Where something is drawn, no prefix is
    shared, so that each row has its own draw. The sum of another `objective` is divided by `weight`; its log-probabilities are
    those at `temperature`.
    """
    weight = sum(example.weight for example in examples) if weight is None else weight
    loss, row_tokens, unique, counts = 0.0, 0, 0, Counter[str]()
    with drawing(model, *draw):
        for batch in micro_batches(model, examples, budget, share=not model.draws):
            with _enough_memory(batch, examples):
                batch_loss, counted = objective(model.target_logprobs(batch.forest, temperature=temperature), batch)
                counts.update(counted)
                (batch_loss / weight).backward()  # type: ignore[no-untyped-call]
                value = float(batch_loss.detach())  # behind the way back, which a GPU would otherwise wait for in front of
                if not math.isfinite(value):
                    model.module.zero_grad()  # what went back is worth as little
                    places = ", ".join(examples[index].where for index in batch.examples[:5])
                    raise TrainingError(
                        f"The loss became {value} on {places}. Nothing was updated with it. Lower optim.lr, or look at these rows with "
                        "`sapwood doctor`."
                    )
            loss, row_tokens, unique = loss + value, row_tokens + batch.forest.row_tokens, unique + batch.forest.num_tokens
    return Sums(loss, weight, row_tokens, unique, counts=counts)


@contextmanager
def _enough_memory(batch: MicroBatch, examples: Sequence[Example]) -> Iterator[None]:
    """Say what would fit where a pass does not."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TrainingError) or not is_out_of_memory(error):
            raise
        tokens = batch.forest.num_tokens
        if len(batch.examples) > 1:
            advice = f"Give --budget {tokens // 2}, which takes about half of it and changes no result"
        else:
            advice = (
                "It holds one example, which is not cut: give --checkpointing True, leave out the longest rows, or take a smaller model"
            )
        raise TrainingError(
            f"A pass over {tokens:,} tokens ({examples[batch.examples[0]].where} among them) does not fit into memory. {advice}."
        ) from error


_NO_MEMORY = ("can't allocate memory", "not enough memory")
"""What torch says on Linux and macOS, and on Windows."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory has run out; on a CPU torch raises a plain `RuntimeError`."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def evaluate(model: LanguageModel, examples: Sequence[Example], budget: int) -> Sums:
    """The same sums without gradients, and the loss of each example."""
    loss, row_tokens, unique = 0.0, 0, 0
    losses_B = np.zeros(len(examples))
    with torch.inference_mode():
        for batch in micro_batches(model, examples, budget):
            forest = batch.forest
            logprob_N = model.target_logprobs(forest)
            loss += float(supervised(logprob_N, forest))
            loss_E = -forest.weight_E * logprob_N.double().cpu().numpy()[forest.target_E]
            alone = len(batch.examples) == 1  # perhaps only one of its rows
            rows_of = [forest.num_rows] if alone else [len(examples[index].rows) for index in batch.examples]
            np.add.at(losses_B, np.repeat(batch.examples, rows_of)[forest.row_E], loss_E)
            row_tokens, unique = row_tokens + forest.row_tokens, unique + forest.num_tokens
    return Sums(loss, sum(example.weight for example in examples), row_tokens, unique, losses_B)

"""Which examples a step holds: a pure function of (seed, step), so that a resumed run needs to remember nothing.

The examples of all epochs stand in one long line, each epoch shuffled by its own stream; step s takes the s-th stretch of
`batch` places. Every example is trained exactly `epochs` times (the last step may be smaller).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def num_steps(num_examples: int, batch: int, epochs: float) -> int:
    """Optimizer steps of a run."""
    return math.ceil(_line_length(num_examples, epochs) / batch)


def step_examples(step: int, *, num_examples: int, batch: int, epochs: float, seed: int) -> NDArray[np.int64]:
    """Indices of the examples of step `step` (from 0)."""
    first, last = step * batch, min((step + 1) * batch, _line_length(num_examples, epochs))
    places = np.arange(first, last)
    chosen = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(places // num_examples):
        here = places // num_examples == epoch
        chosen[here] = _shuffled(num_examples, seed, int(epoch))[places[here] % num_examples]
    return chosen


def _line_length(num_examples: int, epochs: float) -> int:
    return max(1, round(num_examples * epochs))


def _shuffled(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)

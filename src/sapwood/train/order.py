"""Which examples a step holds: a pure function of (seed, step), so that a resumed run needs to remember nothing.

The examples of all epochs stand in one long line, each epoch shuffled by its own stream; step s takes the s-th stretch of
`batch` places. Every example is trained exactly `epochs` times (the last step may be smaller). In a mixture each source has
a line of its own, pass after pass over its examples, of which every epoch takes the next stretch, as long as its weight
says: however small the weight, all of its examples come before one comes again.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sapwood.records import Mixture


def epoch_length(num_examples: int, mixture: Mixture | None = None) -> int:
    """Examples that one epoch trains, repeated ones counted each time."""
    return num_examples if mixture is None else sum(mixture.counts)


def num_steps(num_examples: int, batch: int, epochs: float) -> int:
    """Optimizer steps of a run; `num_examples` is the length of an epoch."""
    return math.ceil(_line_length(num_examples, epochs) / batch)


def step_examples(
    step: int, *, num_examples: int, batch: int, epochs: float, seed: int, mixture: Mixture | None = None
) -> NDArray[np.int64]:
    """Indices of the examples of step `step` (from 0)."""
    length = epoch_length(num_examples, mixture)
    first, last = step * batch, min((step + 1) * batch, _line_length(length, epochs))
    places = np.arange(first, last)
    chosen = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(places // length):
        here = places // length == epoch
        chosen[here] = _epoch(num_examples, seed, int(epoch), mixture)[places[here] % length]
    return chosen


def _line_length(num_examples: int, epochs: float) -> int:
    return max(1, round(num_examples * epochs))


@lru_cache(maxsize=2)  # the epoch at hand, and the next where a step holds the end of one
def _epoch(num_examples: int, seed: int, epoch: int, mixture: Mixture | None) -> NDArray[np.int64]:
    """The examples of one epoch, in order."""
    if mixture is None:
        return _shuffled(num_examples, seed, epoch)
    taken = [
        _stretch(np.flatnonzero(mixture.source_B == source), seed, source, epoch * count, (epoch + 1) * count)
        for source, count in enumerate(mixture.counts)
        if count
    ]
    together = np.concatenate(taken)
    return together[_shuffled(len(together), seed, epoch)]


def _stretch(members: NDArray[np.int64], seed: int, source: int, first: int, last: int) -> NDArray[np.int64]:
    """Places `first` to `last` of a source's line: its examples shuffled, then shuffled anew, and so on."""
    size = len(members)
    passes = range(first // size, (last - 1) // size + 1)
    line = np.concatenate([members[_shuffled(size, seed, ((source + 1) << 32) + number)] for number in passes])
    return line[first - passes[0] * size : last - passes[0] * size]


def _shuffled(num_examples: int, seed: int, stream: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, stream])).permutation(num_examples)

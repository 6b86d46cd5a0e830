"""Which examples a step holds: a pure function of (seed, step), so that a resumed run needs to remember nothing.

The examples of all epochs stand in one long line, each epoch shuffled by its own stream; step s takes the s-th stretch of
`batch` places. Every example is trained exactly `epochs` times (the last step may be smaller). In a mixture each source has
a line of its own, pass after pass over its examples, of which every epoch takes the next stretch, as long as its weight
says: however small the weight, all of its examples come before one comes again.

Rows that begin alike may be brought together (`Kin`): an epoch still trains what it would have trained, in another order. Each
family fills whole steps as far as it goes, what is left of all families fills the rest, and the steps are shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sapwood.forest.keys import sort_key
from sapwood.records import Example, Mixture


@dataclass(frozen=True, slots=True, eq=False)
class Kin:
    """Which of B examples begin alike."""

    family_B: NDArray[np.int64]
    """Number of each example's family; one that begins like no other has a number of its own."""


def kin_of(examples: Sequence[Example], tokens: int) -> Kin | None:
    """Families of examples whose first `tokens` tokens are the same, media included; a shorter prompt is of no family. None for 0."""
    if not tokens:
        return None
    numbers: dict[bytes, int] = {}
    family_B = np.empty(len(examples), dtype=np.int64)
    for place, example in enumerate(examples):
        row = example.rows[0]
        long = len(row.prompt_T) >= tokens
        family_B[place] = numbers.setdefault(sort_key(row.keys_T[:tokens]) if long else b"alone %d" % place, len(numbers))
    return Kin(family_B)


TOGETHER = 1 << 62
"""Streams of the order of steps, beside those of the order of examples."""


def epoch_length(num_examples: int, mixture: Mixture | None = None) -> int:
    """Examples that one epoch trains, repeated ones counted each time."""
    return num_examples if mixture is None else sum(mixture.counts)


def num_steps(num_examples: int, batch: int, epochs: float) -> int:
    """Optimizer steps of a run; `num_examples` is the length of an epoch."""
    return math.ceil(_line_length(num_examples, epochs) / batch)


def spread(steps: int, count: int) -> list[int]:
    """At most `count` steps that stand for a run of `steps`: evenly spread over it, the first one among them."""
    count = min(steps, count)
    return [steps * number // count for number in range(count)]


def step_examples(
    step: int, *, num_examples: int, batch: int, epochs: float, seed: int, mixture: Mixture | None = None, kin: Kin | None = None
) -> NDArray[np.int64]:
    """Indices of the examples of step `step` (from 0); with `kin`, families come together as far as they fill steps."""
    length = epoch_length(num_examples, mixture)
    first, last = step * batch, min((step + 1) * batch, _line_length(length, epochs))
    places = np.arange(first, last)
    chosen = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(places // length):
        here = places // length == epoch
        chosen[here] = _epoch(num_examples, seed, int(epoch), mixture, kin, batch)[places[here] % length]
    return chosen


def _line_length(num_examples: int, epochs: float) -> int:
    return max(1, round(num_examples * epochs))


@lru_cache(maxsize=2)  # the epoch at hand, and the next where a step holds the end of one
def _epoch(num_examples: int, seed: int, epoch: int, mixture: Mixture | None, kin: Kin | None, batch: int) -> NDArray[np.int64]:
    """The examples of one epoch, in order."""
    line = _mixed(num_examples, seed, epoch, mixture)
    return line if kin is None else _together(line, kin.family_B, batch, seed, epoch)


def _together(line: NDArray[np.int64], family_B: NDArray[np.int64], batch: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The line in another order: whole steps of one family, then steps of what is left, all of them shuffled; a short one last."""
    by_family = line[np.argsort(family_B[line], kind="stable")]
    families = np.split(by_family, np.flatnonzero(np.diff(family_B[by_family])) + 1)
    steps, left = [], []
    for members in families:
        whole = len(members) // batch * batch
        steps += list(members[:whole].reshape(-1, batch))
        left.append(members[whole:])
    rest = np.concatenate(left)
    whole = len(rest) // batch * batch
    steps += list(rest[:whole].reshape(-1, batch))
    order = _shuffled(len(steps), seed, TOGETHER + epoch)
    return np.concatenate([*(steps[number] for number in order), rest[whole:]])


def _mixed(num_examples: int, seed: int, epoch: int, mixture: Mixture | None) -> NDArray[np.int64]:
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
